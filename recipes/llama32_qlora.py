"""QLoRA of Llama 3.2 3B on questions about experimentation, statistics and A/B testing.

    python recipes/llama32_qlora.py                          one GPU of 6 GB or more; all GPUs where there are several
    python recipes/llama32_qlora.py --tiny                   the same code on a CPU, in about a minute
    python recipes/llama32_qlora.py --learning-rate 1e-4 --num-train-epochs 5
    python recipes/llama32_qlora.py --config my_run.yaml     constants from YAML or JSON
    python recipes/llama32_qlora.py --resume-from-checkpoint auto
    deepspeed --num_gpus=2 recipes/llama32_qlora.py          the same under ZeRO-2, started by hand

Every constant below is a flag (LEARNING_RATE is --learning-rate); --help lists them. Afterwards:
bash eval/eval_all_checkpoints.sh judges every checkpoint and writes report.html.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common import chat_rows, constants, hardware, hub, launch, log, memory, mixing, refusal, run_directory, tokenised, versions, zero

# Model
MODEL_NAME: str = "meta-llama/Llama-3.2-3B-Instruct"  # gated: needs HF_TOKEN; the ungated copy is the next line
UNGATED_COPY: str | None = "unsloth/Llama-3.2-3B-Instruct"  # named when the hub refuses MODEL_NAME
MODEL_REVISION: str | None = None  # branch, tag or commit; None takes the newest
INITIAL_MODEL: str | None = None  # final_model/ of another run to go on from; None starts from MODEL_NAME
LOAD_IN_4BIT: bool = True  # NF4, double quantisation, bf16 compute: 2.2 GB of weights instead of 6.4; False is plain LoRA
MAX_SEQ_LENGTH: PositiveInt = 2048  # tokens; longer rows lose their oldest turns, then the middle of the document, never the answer

# Data
TRAIN_FILES: dict[str, NonNegativeFloat] = {"data/cross_validated.jsonl": 1.0, "data/arxiv.jsonl": 1.0}  # weight 0.5 halves, 2.0 doubles
HELD_OUT: NonNegativeFloat = 0.10  # of the rows, before weighting; half picks the best checkpoint, half is only reported; 0 turns it off
SPLIT_BY: str = "id"  # rows of one source question stay on one side: "id" reads it from name_question_answer, else a field's name
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted and written to skipped_rows.jsonl
PACKING: bool = True  # several rows in one of MAX_SEQ_LENGTH, kept apart by FlashAttention; on a CPU rows are grouped by length instead

# Adapter
LORA_R: PositiveInt = 16  # rank: 24 million trainable parameters of 3.2 billion
LORA_ALPHA: PositiveInt = 32  # the update is scaled by LORA_ALPHA / LORA_R = 2
LORA_DROPOUT: NonNegativeFloat = 0.0  # the original's 0.05 leaves Unsloth's fused LoRA kernels and regularises little in 3 epochs
TARGET_MODULES: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linear layers

# Optimisation
NUM_TRAIN_EPOCHS: PositiveFloat = 3.0
MAX_STEPS: int = -1  # above 0 it decides instead of the epochs
PER_DEVICE_TRAIN_BATCH_SIZE: PositiveInt = 2  # 2 x 4 x 1 GPU = 8 rows a step; packed rows hold several conversations each
GRADIENT_ACCUMULATION_STEPS: PositiveInt = 4
LEARNING_RATE: PositiveFloat = 2e-4  # LoRA takes ten times what full fine-tuning does
LR_SCHEDULER_TYPE: str = "cosine"  # down to 0 at the last step
WARMUP_RATIO: NonNegativeFloat = 0.03  # of all steps
OPTIM: str = "paged_adamw_8bit"  # 2 bytes of state a trainable parameter, paged to the host under pressure; fused AdamW on a CPU
WEIGHT_DECAY: NonNegativeFloat = 0.01
MAX_GRAD_NORM: NonNegativeFloat = 1.0  # 0 turns clipping off
GRADIENT_CHECKPOINTING: Literal["unsloth", "true", "none"] = "unsloth"  # "unsloth" also moves activations to the host; "none" is faster
SEED: NonNegativeInt = 42  # of the adapter's start, the split, the weighting and the order of rows
DS_CONFIG: str = "ds_configs/llama32_qlora.json"  # ZeRO-2, read only when several ranks were started

# Saving
OUTPUT_DIR: str = "outputs"
RUN_NAME: str | None = None  # None is llama32_qlora; a name that is taken gets -2, -3, …
SAVE_STEPS: PositiveInt = 500  # a multiple of EVAL_STEPS, so that every checkpoint has a held-out loss
SAVE_TOTAL_LIMIT: PositiveInt = 3  # 0.15 GB each; the best one is kept as well
EVAL_STEPS: PositiveInt = 100  # optimiser steps between held-out losses
EARLY_STOPPING_PATIENCE: PositiveInt | None = None  # evaluations without a better held-out loss until it stops; None never stops
LOAD_BEST_MODEL_AT_END: bool = True  # final_model is the checkpoint with the lowest held-out loss; False takes the last
RESUME_FROM_CHECKPOINT: str | None = None  # a checkpoint-N directory, or "auto": the newest of this RUN_NAME
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
        raise refusal.Refusal(f"SAVE_STEPS = {SAVE_STEPS} is no multiple of EVAL_STEPS = {EVAL_STEPS}; a checkpoint without its held-out "
                              "loss cannot be the best: change one, or set LOAD_BEST_MODEL_AT_END = False")  # fmt: skip
    ds_config = None  # one process needs no ZeRO
    if launch.is_distributed():
        ds_config = zero.check(DS_CONFIG, gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS, gradient_clipping=MAX_GRAD_NORM,
                               train_micro_batch_size_per_gpu=PER_DEVICE_TRAIN_BATCH_SIZE, bf16__enabled=True)  # fmt: skip
    if settings.prefetch:
        log.say(f"{MODEL_NAME} is in {hub.prefetch(MODEL_NAME, MODEL_REVISION, UNGATED_COPY)}")
        return {}
    log.say(settings.show())
    if RESUME_FROM_CHECKPOINT not in (None, "auto"):
        run_directory.require_checkpoint(RESUME_FROM_CHECKPOINT)  # a wrong path is named now, not when the model has loaded
    chat_rows.require(TRAIN_FILES)
    model_name = hub.find(MODEL_NAME, MODEL_REVISION, UNGATED_COPY)
    if INITIAL_MODEL:
        hub.find(INITIAL_MODEL)
    memory.require_gpu(MODEL_NAME, hub.weights_gib(model_name, MODEL_REVISION), LOAD_IN_4BIT)

    def prepare(directory):  # runs once, in a process of its own, before any rank starts; later runs find the cache
        rows, report = chat_rows.read(TRAIN_FILES, bad_rows=BAD_ROWS, split_by=SPLIT_BY)
        train, validation, test = mixing.split(rows, HELD_OUT, seed=SEED)
        parts = {"train": mixing.weigh(train, TRAIN_FILES, seed=SEED), "validation": validation, "test": test}
        tokenised.encode(directory, parts, report, model_name, MODEL_REVISION, MAX_SEQ_LENGTH, BAD_ROWS, TRAIN_FILES)

    data = tokenised.once(prepare, TRAIN_FILES, model_name, weights=TRAIN_FILES, held_out=HELD_OUT, split_by=SPLIT_BY, seed=SEED,
                          bad_rows=BAD_ROWS, max_length=MAX_SEQ_LENGTH, revision=MODEL_REVISION)  # fmt: skip
    log.say(tokenised.describe(data.statistics))
    hardware.share_cores()
    launch.on_all_gpus(settings)  # several GPUs: starts one rank on each and ends here; otherwise goes on

    import unsloth  # noqa: F401, I001 - the first heavy import, before trl, transformers and peft: it patches them
    import torch
    from trl import SFTConfig, SFTTrainer

    from common import batches, merging, model_card, models, report, watching

    log.quiet()
    on_gpu = torch.cuda.is_available()
    train, validation = data.train(), data.validation()
    args = SFTConfig(  # before the model: DeepSpeed is read while loading
        output_dir=OUTPUT_DIR,
        num_train_epochs=NUM_TRAIN_EPOCHS,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=PER_DEVICE_TRAIN_BATCH_SIZE,
        per_device_eval_batch_size=PER_DEVICE_TRAIN_BATCH_SIZE,
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
        dataset_kwargs={"skip_prepare_dataset": not (PACKING and on_gpu)},  # rows are tokenised and fit already
        loss_type="nll",
        eval_strategy="steps" if validation else "no",
        eval_steps=EVAL_STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=SAVE_TOTAL_LIMIT,
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
    model, tokenizer = models.load(INITIAL_MODEL or model_name, MAX_SEQ_LENGTH, LOAD_IN_4BIT, MODEL_REVISION, GRADIENT_CHECKPOINTING)
    model = models.add_lora(model, LORA_R, LORA_ALPHA, LORA_DROPOUT, TARGET_MODULES, GRADIENT_CHECKPOINTING, SEED)
    before = models.fingerprint(model)

    run, checkpoint = launch.rank_0_decides(
        lambda: run_directory.open_run(OUTPUT_DIR, RUN_NAME or settings.default_run_name, RESUME_FROM_CHECKPOINT)
    )
    args.output_dir = str(run.path)
    watching.begin(run, settings, model, model_name, data, REPORT_TO)
    trainer = SFTTrainer(model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    models.train_in_fp32(model)  # after the trainer, which turns a 4-bit model's adapter to bf16
    watching.attach(trainer, run, settings.values, EARLY_STOPPING_PATIENCE)
    if not args.packing:
        batches.group_by_length(trainer, train["length"], PER_DEVICE_TRAIN_BATCH_SIZE * args.world_size, SEED)
    steps = watching.announce(trainer, data.statistics, WARMUP_RATIO)
    with run.recording(log.warnings, active=log.is_rank_0()):
        with memory.advice(**settings.values):
            watching.train(trainer, checkpoint, steps)
        figures = watching.figures(trainer, run)  # refuses a NaN loss
        if log.is_rank_0():  # under ZeRO-2 every rank holds the whole adapter
            models.save_adapter(trainer.accelerator.unwrap_model(trainer.model), tokenizer, run.final_model, before)
            run_directory.write_json(run.final_model / "constants.json", settings.values)
            log.say(f"adapter written to {run.final_model}")
            if MERGE:
                figures["merge"] = merging.merge(run.final_model, run.merged_model, run.held_out_messages())
                log.say(f"merged in 16 bit into {run.merged_model}: logits within {figures['merge']['relative_rms']:.1%} of the adapter's")
            run.update(**figures)
            model_card.write(run.final_model, run)
        launch.wait_for_all()
    if log.is_rank_0():
        log.say(f"report: {report.write(run)}; judge every checkpoint: bash eval/eval_all_checkpoints.sh {run.path}")
    log.close()
    return {**figures, "run": str(run.path), "final_model": str(run.final_model), "merged_model": str(run.merged_model) if MERGE else None}


if __name__ == "__main__":
    refusal.guard(main)
