"""QLoRA of Llama 3.2 3B on questions about experimentation, statistics and A/B testing.

    python recipes/llama32_qlora.py                          one GPU of 6 GB or more; all GPUs where there are several
    python recipes/llama32_qlora.py --tiny                   the same code on a CPU, in about a minute
    python recipes/llama32_qlora.py --plan                   memory, time and cost beforehand; --plan --gpus 4xH100 of other GPUs
    python recipes/llama32_qlora.py --learning-rate 1e-4 --num-train-epochs 5
    python recipes/llama32_qlora.py --config my_run.yaml     constants from YAML or JSON
    python recipes/llama32_qlora.py --resume-from-checkpoint auto
    deepspeed --num_gpus=2 recipes/llama32_qlora.py          the same under ZeRO-2, started by hand

Every constant below is a flag (LEARNING_RATE is --learning-rate); --help lists them. Afterwards:
bash eval/eval_all_checkpoints.sh judges every checkpoint and writes report.html.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common import chat_rows, constants, forecast, hub, launch, log, memory, mixing, resume, run_directory, tokenised, versions, zero
from common.constants import Share
from common.job import Job, Zero
from common.refusal import Refusal

# Model
MODEL_NAME: str = "meta-llama/Llama-3.2-3B-Instruct"  # gated: needs HF_TOKEN; the ungated copy is the next line
UNGATED_COPY: str | None = "unsloth/Llama-3.2-3B-Instruct"  # named when the hub refuses MODEL_NAME
MODEL_REVISION: str | None = None  # branch, tag or commit; None takes the newest
INITIAL_MODEL: str | None = None  # final_model/ of another run to go on from; None starts from MODEL_NAME
LOAD_IN_4BIT: bool = True  # NF4, double quantisation, bf16 compute: 2.2 GB of weights instead of 6.4; False is plain LoRA
MAX_SEQ_LENGTH: PositiveInt = 2048  # tokens; longer rows lose their oldest turns, then the middle of the document, never the answer

# Data
TRAIN_FILES: dict[str, NonNegativeFloat] = {"data/cross_validated.jsonl": 1.0, "data/arxiv.jsonl": 1.0}  # weight 0.5 halves, 2.0 doubles
HELD_OUT: Share = 0.10  # of the rows, before weighting; half picks the best checkpoint, half is only reported; 0 turns it off
SPLIT_BY: str = "id"  # rows of one source question stay on one side: "id" takes cv_12_3 for an answer to cv_12, else a field's name
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted and written to skipped_rows.jsonl
PACKING: bool = True  # several rows in one of MAX_SEQ_LENGTH, kept apart by the attention kernel; a CPU groups by length instead

# Adapter
LORA_R: PositiveInt = 16  # rank: 24 million trainable parameters of 3.2 billion
LORA_ALPHA: PositiveInt = 32  # the update is scaled by LORA_ALPHA / LORA_R = 2
LORA_DROPOUT: Share = 0.0  # the original's 0.05 costs memory for its masks and regularises little in 3 epochs
TARGET_MODULES: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc"]] = [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # all linear layers; of a GPT c_attn, c_proj, c_fc
]  # fmt: skip

# Optimisation
NUM_TRAIN_EPOCHS: PositiveFloat = 3.0
MAX_STEPS: int = -1  # above 0 it decides instead of the epochs
PER_DEVICE_TRAIN_BATCH_SIZE: PositiveInt = 2  # 2 x 4 x 1 GPU = 8 rows a step; packed rows hold several conversations each
GRADIENT_ACCUMULATION_STEPS: PositiveInt = 4
PER_DEVICE_EVAL_BATCH_SIZE: PositiveInt = 2  # changes no figure
LEARNING_RATE: PositiveFloat = 2e-4  # LoRA takes ten times what full fine-tuning does
LR_SCHEDULER_TYPE: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"  # down to 0 at the last step
WARMUP_RATIO: Share = 0.03  # of all steps
OPTIM: Literal["paged_adamw_8bit", "adamw_8bit", "paged_adamw_32bit", "adamw_torch_fused"] = "paged_adamw_8bit"  # 2 bytes a parameter
WEIGHT_DECAY: NonNegativeFloat = 0.01
MAX_GRAD_NORM: NonNegativeFloat = 1.0  # 0 turns clipping off
GRADIENT_CHECKPOINTING: Literal["unsloth", "true", "none"] = "unsloth"  # "unsloth" also moves activations to the host; "none" is faster
SEED: NonNegativeInt = 42  # of the adapter's start, the split, the weighting and the order of rows
DS_CONFIG: str = "ds_configs/llama32_qlora.json"  # ZeRO-2, read only when several ranks were started

# Saving
OUTPUT_DIR: str = "outputs"
RUN_NAME: str | None = None  # None is llama32_qlora; a name that is taken gets -2, -3, …
SAVE_STEPS: PositiveInt = 500  # a multiple of EVAL_STEPS, so that every checkpoint has a held-out loss
SAVE_TOTAL_LIMIT: PositiveInt = 3  # on this disk, 0.17 GB each, 1.1 on several GPUs; the best one is kept as well
CHECKPOINT_URI: str | None = None  # gs://bucket/runs, s3://… or file:///…: every checkpoint is uploaded beside the training, and verified
KEEP_LOCAL: bool = True  # False removes from this disk what is verified in the store, but for the newest and the best checkpoint
EVAL_STEPS: PositiveInt = 100  # optimiser steps between held-out losses
EARLY_STOPPING_PATIENCE: PositiveInt | None = None  # evaluations without a better held-out loss until it stops; None never stops
LOAD_BEST_MODEL_AT_END: bool = True  # final_model is the checkpoint with the lowest held-out loss; False takes the last
RESUME_FROM_CHECKPOINT: str | None = None  # a checkpoint-N directory, gs://…/run, or "auto": the newest of RUN_NAME
MERGE: bool = True  # also write merged_model/ in 16 bit: 6.4 GB

# Logging
LOGGING_STEPS: PositiveInt = 10
REPORT_TO: list[Literal["tensorboard", "wandb"]] = ["tensorboard", "wandb"]  # [] for none; without a login W&B writes offline

TINY = {
    "MODEL_NAME": "tiny-llama",  # 0.9 million parameters, built here in half a minute, once
    "TRAIN_FILES": {"samples/cross_validated.jsonl": 1.0, "samples/arxiv.jsonl": 1.0},
    "SPLIT_BY": "family",  # held-out rows come from question templates never trained on
    "HELD_OUT": 0.2,
    "MAX_SEQ_LENGTH": 512,
    "PER_DEVICE_TRAIN_BATCH_SIZE": 8,
    "GRADIENT_ACCUMULATION_STEPS": 1,
    "PER_DEVICE_EVAL_BATCH_SIZE": 33,
    "NUM_TRAIN_EPOCHS": 2.0,
    "LEARNING_RATE": 1e-2,  # small models take large steps
    "GRADIENT_CHECKPOINTING": "none",
    "SAVE_STEPS": 48,
    "EVAL_STEPS": 24,
    "LOGGING_STEPS": 5,
}


def main(**overrides):
    """Train, save, report; the constants of this file are its keywords. Returns the run's figures and paths."""
    settings = constants.resolve(globals(), overrides)  # from here on the capitals hold the resolved values
    versions.check()
    if SAVE_STEPS % EVAL_STEPS and LOAD_BEST_MODEL_AT_END and HELD_OUT:
        raise Refusal(f"SAVE_STEPS = {SAVE_STEPS} is no multiple of EVAL_STEPS = {EVAL_STEPS}; a checkpoint without its held-out "
                              "loss cannot be the best: change one, or set LOAD_BEST_MODEL_AT_END = False")  # fmt: skip
    if EARLY_STOPPING_PATIENCE and not (HELD_OUT and LOAD_BEST_MODEL_AT_END):
        raise Refusal("EARLY_STOPPING_PATIENCE needs HELD_OUT above 0 and LOAD_BEST_MODEL_AT_END: it watches the held-out loss")

    def prepare(directory):  # runs once, in a process of its own, before any rank starts; later runs find the cache
        rows, report = chat_rows.read(TRAIN_FILES, bad_rows=BAD_ROWS, split_by=SPLIT_BY)
        train, validation, test = mixing.split(rows, HELD_OUT, seed=SEED, report=report)
        parts = {"train": mixing.weigh(train, TRAIN_FILES, seed=SEED), "validation": validation, "test": test}
        tokenised.encode(directory, parts, report, model_name, MODEL_REVISION, MAX_SEQ_LENGTH, BAD_ROWS, TRAIN_FILES)

    prepared = {name: settings.values[name] for name in ("TRAIN_FILES", "HELD_OUT", "SPLIT_BY", "SEED", "BAD_ROWS", "MAX_SEQ_LENGTH")}

    def ds_json():
        return zero.check(DS_CONFIG, most=2, gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS, gradient_clipping=MAX_GRAD_NORM,
                          train_micro_batch_size_per_gpu=PER_DEVICE_TRAIN_BATCH_SIZE, bf16__enabled=True)  # fmt: skip

    def job(name, sharded=True):  # what decides memory and time; the constants of this file are in it by their names
        model = hub.known_dimensions(name, MODEL_REVISION)
        shared = zero.facts(ds_json(), DS_CONFIG, model.hidden_size) if sharded else Zero()
        return Job.of(model, settings.values, kernels="unsloth", loss="unsloth", zero=shared)

    if settings.plan:  # from what is on this machine; builds nothing
        tokenizer = hub.local_tokenizer(MODEL_NAME, MODEL_REVISION)
        cached = tokenised.find(prepare, TRAIN_FILES, tokenizer, **prepared)
        meant_for = "cpu" if settings.tiny else "RTX 3060"
        return forecast.show(job(MODEL_NAME), MODEL_NAME, settings, meant_for, TRAIN_FILES, HELD_OUT, BAD_ROWS, tokenizer, cached)

    run_name = RUN_NAME or settings.default_run_name
    resume.check(run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI)  # a wrong name, path or key is said now
    ds_config = None  # one process needs no ZeRO, unless it goes on from what several wrote
    before = resume.peek(OUTPUT_DIR, run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI)
    resume.require_fixed(before, settings.values)
    if launch.is_distributed() or (before and before["sharded"]):
        ds_config = ds_json()
    if settings.prefetch:
        log.say(f"{MODEL_NAME} is in {hub.prefetch(MODEL_NAME, MODEL_REVISION, UNGATED_COPY)}")
        return {}
    log.say_once(settings.show())
    chat_rows.require(TRAIN_FILES)
    model_name = hub.find(MODEL_NAME, MODEL_REVISION, UNGATED_COPY)
    initial = hub.find(INITIAL_MODEL, constant="INITIAL_MODEL") if INITIAL_MODEL else None
    base_gib = hub.weights_gib(model_name, MODEL_REVISION)
    expected = None if settings.no_plan else forecast.require(job, model_name, settings)  # stops a run that cannot fit, with the fix
    data = tokenised.once(prepare, TRAIN_FILES, hub.tokenizer_directory(model_name, MODEL_REVISION), **prepared)
    log.say_once(tokenised.describe(data.statistics))
    forecast.announce(expected, MODEL_NAME, data)
    launch.prepare_process()
    launch.on_all_gpus(settings)  # several GPUs: starts one rank on each and ends here; otherwise goes on
    if ds_config and not launch.is_distributed():
        zero.in_one_process()

    import unsloth  # noqa: F401, I001 - the first heavy import, before trl, transformers and peft: it patches them
    import torch
    from trl import SFTConfig, SFTTrainer

    from common import batches, checkpoints, merging, model_card, models, report, tracking, watching

    models.quiet()
    models.require_bf16()
    models.require_gpu(settings.tiny)
    if initial:
        models.require_initial(initial, model_name, LORA_R, LORA_ALPHA, TARGET_MODULES)
    on_gpu = torch.cuda.is_available()
    train, validation = data.train(), data.validation()
    args = SFTConfig(  # before the model: DeepSpeed is read while loading
        output_dir=OUTPUT_DIR,
        num_train_epochs=NUM_TRAIN_EPOCHS,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=PER_DEVICE_TRAIN_BATCH_SIZE,
        per_device_eval_batch_size=PER_DEVICE_EVAL_BATCH_SIZE,
        gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type=LR_SCHEDULER_TYPE,
        warmup_steps=WARMUP_RATIO,  # below 1 it is a share
        optim=OPTIM,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=True,
        gradient_checkpointing=GRADIENT_CHECKPOINTING != "none",
        max_length=MAX_SEQ_LENGTH,
        packing=PACKING and on_gpu,
        eval_packing=False,
        dataset_num_proc=1,  # packed rows are the same whatever the machine's cores
        dataset_kwargs={"skip_prepare_dataset": not (PACKING and on_gpu)},  # rows are tokenised and fit already
        loss_type="nll",  # Unsloth computes it in chunks; TRL's own default is another path, slower here
        eval_strategy="steps" if validation else "no",
        eval_steps=EVAL_STEPS,
        save_steps=SAVE_STEPS,
        load_best_model_at_end=LOAD_BEST_MODEL_AT_END and validation is not None,
        metric_for_best_model="eval_loss" if validation else None,
        logging_steps=LOGGING_STEPS,
        logging_nan_inf_filter=False,  # the default hides NaN
        include_num_input_tokens_seen="non_padding",
        report_to=REPORT_TO or "none",
        deepspeed=ds_config,
        seed=SEED,
        data_seed=SEED,
        disable_tqdm=True,  # watching has the one bar
    )
    run, checkpoint = launch.rank_0_decides(lambda: resume.open_run(OUTPUT_DIR, run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI))
    args.output_dir = str(run.path)
    if RESUME_FROM_CHECKPOINT and not checkpoint:
        log.say(f"nothing to resume: no whole checkpoint of a run named {run_name} is in {OUTPUT_DIR}/; this run starts afresh")
    if checkpoint:
        sharded = ds_config is not None
        for sentence in resume.changed_constants(checkpoint, settings.values, data.key, args.world_size, sharded, args.packing):
            log.warn(sentence)
    with memory.advice(**settings.values):
        model, tokenizer = models.load(initial or model_name, MAX_SEQ_LENGTH, LOAD_IN_4BIT, MODEL_REVISION, GRADIENT_CHECKPOINTING)
    model = models.add_lora(model, LORA_R, LORA_ALPHA, LORA_DROPOUT, TARGET_MODULES, GRADIENT_CHECKPOINTING, SEED, MODEL_REVISION)
    before, notes = models.fingerprint(model), watching.not_covered(args.packing)
    launch.rank_0_decides(lambda: watching.begin(run, checkpoint, settings, model, model_name, data, REPORT_TO, notes))
    trainer = SFTTrainer(model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    models.train_in_fp32(model)  # after the trainer, which turns a 4-bit model's adapter to bf16
    watching.attach(trainer, run, EARLY_STOPPING_PATIENCE, constants=settings.values)
    micro_batch = resume.micro_batch(checkpoint, PER_DEVICE_TRAIN_BATCH_SIZE * args.world_size)
    kept = checkpoints.Checkpoints(trainer, run, settings.values, data.key, micro_batch, SAVE_TOTAL_LIMIT, CHECKPOINT_URI, KEEP_LOCAL)
    if args.packing:
        batches.shuffle(trainer, len(trainer.train_dataset), SEED)
    else:
        batches.group_by_length(trainer, train["length"], micro_batch, SEED)
    steps = watching.announce(trainer, run, data.statistics, WARMUP_RATIO)
    with kept.secured():  # whatever happens from here on, what is committed gets to the store
        with run.recording(log.warnings, active=log.is_rank_0()):
            with memory.advice(**settings.values):
                kept.train(checkpoint, steps)  # resumes, commits, uploads, heeds signals
            figures = watching.figures(trainer, data.statistics)  # refuses a NaN loss
            if log.is_rank_0():  # under ZeRO-2 every rank holds the whole adapter
                models.save_adapter(trainer.accelerator.unwrap_model(trainer.model), tokenizer, run.final_model, before)
                run_directory.write_json(run.final_model / "constants.json", settings.values)
                log.say(f"adapter written to {run.final_model}")
                run.update(**figures)
            launch.wait_for_all()
        if log.is_rank_0():
            model_card.write(run.final_model, run)
            if MERGE:  # in a process of its own; what is saved above stays whatever happens there
                figures["merge"] = merging.merge_apart(run.final_model, run.merged_model, run.held_out_file(), base_gib)
                run.update(**figures)
                model_card.write(run.merged_model, run)
                log.say(f"merged in 16 bit: {run.merged_model}, logits within {figures['merge']['relative_rms']:.1%} of the adapter's")
            log.say(f"report: {report.write(run)}; judge every checkpoint: bash eval/eval_all_checkpoints.sh {run.path}")
            tracking.finish(REPORT_TO)
            kept.finish([run.final_model, run.merged_model] if MERGE else [run.final_model])  # waits for the uploads
    log.close()
    return {**figures, "run": str(run.path), "final_model": str(run.final_model), "merged_model": str(run.merged_model) if MERGE else None}


if __name__ == "__main__":
    launch.command(main)
