"""LoRA of Qwen3-4B-Instruct on whole legal cases of up to 262,144 tokens: it reads the document and learns the summary alone.

    python prepare/legal_summaries.py --train data/lexsumm/train.jsonl    LexSumm, BillSum, Multi-LexSum or GovReport: writes the data
    python recipes/qwen3_4b_longctx.py                       starts itself on all GPUs of this machine; four H100 are what it is meant for
    python recipes/qwen3_4b_longctx.py --tiny                the same code on a CPU, in two minutes
    python recipes/qwen3_4b_longctx.py --plan                memory, time and cost beforehand
    deepspeed --num_gpus=4 recipes/qwen3_4b_longctx.py       the same under ZeRO-2, started by hand
    accelerate launch --num_processes=4 recipes/qwen3_4b_longctx.py
    python recipes/qwen3_4b_longctx.py --resume-from-checkpoint auto

What makes the length fit: the inputs of the 36 layers wait in host memory for their backward pass, the MLP is computed in tiles of 2,560
tokens, the loss from the summary's tokens alone; nothing is ever length x length or length x vocabulary. By --plan each H100 needs
39.5 of its 79.6 GiB, the machine 303 GiB of memory for the inputs of four GPUs, and a row of full length 4.8 minutes.

Every constant below is a flag (LEARNING_RATE is --learning-rate); --help lists them. Afterwards:
bash eval/eval_all_checkpoints.sh generates summaries with every checkpoint and writes report.html.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common import chat_rows, constants, forecast, hub, intervals, launch, log, memory, mixing, positions, resume, tokenised, versions, zero
from common.constants import Share
from common.job import Job, Zero

# Model
MODEL_NAME: str = "Qwen/Qwen3-4B-Instruct-2507"  # its own positions reach 262,144; longer rows need scaling in its config.json
MODEL_REVISION: str | None = None  # branch, tag or commit; None takes the newest
MAX_SEQ_LENGTH: PositiveInt = 262_144  # tokens of a row: document, prompt and summary

# Data
TRAIN_FILES: dict[str, NonNegativeFloat] = {"data/legal_summaries/train.jsonl": 1.0}  # weight 0.5 halves, 2.0 doubles
VALIDATION_FILE: str | None = "data/legal_summaries/valid.jsonl"  # judged every EVAL_STEPS; None judges nothing
TEST_FILE: str | None = "data/legal_summaries/test.jsonl"  # for eval/ alone, which generates its summaries
LONG_DOCUMENTS: Literal["shorten", "drop"] = "shorten"  # the middle of the document goes, at ends of sentences, never prompt or summary
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted and written to skipped_rows.jsonl

# Adapter
LORA_R: PositiveInt = 64  # rank: 132 million trainable parameters of 4 billion
LORA_ALPHA: PositiveInt = 64  # the update is scaled by LORA_ALPHA / LORA_R = 1
LORA_DROPOUT: Share = 0.0  # anything else leaves Unsloth's kernels, and keeps masks of the whole length
TARGET_MODULES: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # all linear layers
]  # fmt: skip

# Optimisation
NUM_TRAIN_EPOCHS: PositiveFloat = 1.0
MAX_STEPS: int = -1  # above 0 it decides instead of the epochs
PER_DEVICE_TRAIN_BATCH_SIZE: PositiveInt = 1  # 1 x 8 x 4 GPUs = 32 rows a step; two at once would be padded to the longer one
GRADIENT_ACCUMULATION_STEPS: PositiveInt = 8
LEARNING_RATE: PositiveFloat = 1e-4
LR_SCHEDULER_TYPE: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"  # down to 0 at the last step
WARMUP_STEPS: NonNegativeInt | None = None  # None: a tenth of the steps, at most 100
OPTIM: Literal["adamw_torch_fused", "adamw_8bit"] = "adamw_torch_fused"  # 8 bytes a parameter, 1.1 GB, divided among the GPUs by ZeRO-2
WEIGHT_DECAY: NonNegativeFloat = 0.01
MAX_GRAD_NORM: NonNegativeFloat = 1.0  # 0 turns clipping off
GRADIENT_CHECKPOINTING: Literal["unsloth", "true", "none"] = "unsloth"  # "true": on the GPU, 43 GiB more at full length
TILED_MLP: bool = True  # False takes 3.9 GiB more at full length and computes the MLP twice in place of three times. GPUs alone
SEED: NonNegativeInt = 42  # of the adapter's start, the weighting and the order of rows
DATALOADER_NUM_WORKERS: NonNegativeInt = 4  # processes a GPU that make batches; they take 50 MB of /dev/shm, which containers are short of
DS_CONFIG: str = "ds_configs/qwen3_4b_longctx.json"  # ZeRO-2, for several ranks. Buckets of 5e7: 100 MB each; see the README

# Saving
OUTPUT_DIR: str = "outputs"
RUN_NAME: str | None = None  # None is qwen3_4b_longctx; a name that is taken gets -2, -3, …
SAVE_STEPS: PositiveInt = 200  # fitted to the steps there are, and said, as EVAL_STEPS is
SAVE_TOTAL_LIMIT: PositiveInt = 3  # on this disk, 2.9 GB each, 1.6 of one GPU
CHECKPOINT_URI: str | None = None  # gs://bucket/runs, s3://… or file:///…: every checkpoint is uploaded beside the training, and verified
KEEP_LOCAL: bool = True  # False removes from this disk what is verified in the store, but for the newest checkpoint
EVAL_STEPS: PositiveInt = 200  # optimiser steps between losses on VALIDATION_FILE; nothing is generated while training
RESUME_FROM_CHECKPOINT: str | None = None  # a checkpoint-N directory, gs://…/run, or "auto": the newest of RUN_NAME
MERGE: bool = True  # also write merged_model/ in 16 bit: 8 GB

# Logging
LOGGING_STEPS: PositiveInt = 10
REPORT_TO: list[Literal["tensorboard", "wandb"]] = ["tensorboard", "wandb"]  # [] for none; without a login W&B writes offline

TINY = {
    "MODEL_NAME": "tiny-qwen3",  # 0.5 million parameters that find facts in 300 tokens and in no more; built here once, in a minute
    "TRAIN_FILES": {"samples/legal_summaries/train.jsonl": 1.0},
    "VALIDATION_FILE": "samples/legal_summaries/valid.jsonl",
    "TEST_FILE": "samples/legal_summaries/test.jsonl",
    "MAX_SEQ_LENGTH": 4096,
    "GRADIENT_ACCUMULATION_STEPS": 2,
    "LEARNING_RATE": 4e-3,  # small models take large steps
    "GRADIENT_CHECKPOINTING": "none",
    "DATALOADER_NUM_WORKERS": 0,
    "SAVE_STEPS": 20,
    "EVAL_STEPS": 20,
}


def main(**overrides):
    """Train, save, report; the constants of this file are its keywords. Returns the run's figures and paths."""
    settings = constants.resolve(globals(), overrides)  # from here on the capitals hold the resolved values
    versions.check()
    if MAX_STEPS > 0:
        intervals.fit(MAX_STEPS, WARMUP_STEPS, None, SAVE_STEPS)  # a warmup that would not end is said now

    def prepare(directory):  # runs once, in a process of its own, before any rank starts; later runs find the cache
        rows, report = chat_rows.read(TRAIN_FILES, bad_rows=BAD_ROWS)
        seen = mixing.seen_as("training", rows, by="document")
        held_out = {name: mixing.held_out_rows(name, file, seen, report, BAD_ROWS, by="document") if file else []
                    for name, file in (("validation", VALIDATION_FILE), ("test", TEST_FILE))}  # fmt: skip
        parts = {"train": mixing.weigh(rows, TRAIN_FILES, seed=SEED), **held_out}
        tokenised.encode(directory, parts, report, model_name, MODEL_REVISION, MAX_SEQ_LENGTH, BAD_ROWS, TRAIN_FILES,
                         long_documents=LONG_DOCUMENTS)  # fmt: skip

    files = [*TRAIN_FILES, *(file for file in (VALIDATION_FILE, TEST_FILE) if file)]
    names = ("TRAIN_FILES", "VALIDATION_FILE", "TEST_FILE", "SEED", "BAD_ROWS", "MAX_SEQ_LENGTH", "LONG_DOCUMENTS")
    prepared = {name: settings.values[name] for name in names}

    def ds_json():
        return zero.check(DS_CONFIG, most=2, gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS, gradient_clipping=MAX_GRAD_NORM,
                          train_micro_batch_size_per_gpu=PER_DEVICE_TRAIN_BATCH_SIZE, bf16__enabled=True)  # fmt: skip

    def job(name, sharded=True):  # what decides memory and time; the constants of this file are in it by their names
        model = hub.known_dimensions(name, MODEL_REVISION)
        shared = zero.facts(ds_json(), DS_CONFIG, model.hidden_size) if sharded else Zero()
        return Job.of(model, settings.values, kernels="unsloth", loss="unsloth", zero=shared, load_best_model_at_end=False,
                      eval_steps=EVAL_STEPS if VALIDATION_FILE else None)  # fmt: skip

    if settings.plan:  # from what is on this machine; builds nothing
        tokenizer = hub.local_tokenizer(MODEL_NAME, MODEL_REVISION)
        cached = tokenised.find(prepare, files, tokenizer, **prepared)
        own, planned = "cpu" if settings.tiny else "4xH100", job(MODEL_NAME)
        positions.require_length(positions.of(tokenizer, planned.model), MAX_SEQ_LENGTH, MODEL_NAME)
        return forecast.show(planned, MODEL_NAME, settings, own, TRAIN_FILES, 0.0, BAD_ROWS, tokenizer, cached, VALIDATION_FILE)

    run_name = RUN_NAME or settings.default_run_name
    resume.check(run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI)  # a wrong name, path or key is said now
    ds_config = None  # one process needs no ZeRO, unless it goes on from what several wrote
    before = resume.peek(OUTPUT_DIR, run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI)
    resume.require_fixed(before, settings.values)
    if launch.is_distributed() or (before and before["sharded"]):
        ds_config = ds_json()
    if settings.prefetch:
        log.say(f"{MODEL_NAME} is in {hub.prefetch(MODEL_NAME, MODEL_REVISION)}")
        return {}
    log.say_once(settings.show())
    chat_rows.require(TRAIN_FILES)
    for constant, file in (("VALIDATION_FILE", VALIDATION_FILE), ("TEST_FILE", TEST_FILE)):
        chat_rows.require([file] if file else [], constant)
    model_name = hub.find(MODEL_NAME, MODEL_REVISION)
    directory = hub.tokenizer_directory(model_name, MODEL_REVISION)
    rope_scaling, scaled = positions.require(directory, MAX_SEQ_LENGTH, MODEL_NAME)  # refuses rows longer than the model's positions
    base_gib = hub.weights_gib(model_name, MODEL_REVISION)
    expected = None if settings.no_plan else forecast.require(job, model_name, settings)  # stops a run that cannot fit, with the fix
    data = tokenised.once(prepare, files, directory, **prepared)  # once for all ranks
    log.say_once(tokenised.describe(data.statistics))
    forecast.announce(expected, MODEL_NAME, data)
    rows_per_step = PER_DEVICE_TRAIN_BATCH_SIZE * GRADIENT_ACCUMULATION_STEPS * launch.ranks(settings)
    there_are = intervals.steps(data.statistics["splits"]["train"]["rows"], rows_per_step, NUM_TRAIN_EPOCHS, MAX_STEPS)
    fitted, said = intervals.fit(there_are, WARMUP_STEPS, EVAL_STEPS if VALIDATION_FILE else None, SAVE_STEPS)
    for sentence in said:
        log.say_once(sentence)
    launch.prepare_process()
    launch.on_all_gpus(settings)  # several GPUs: starts one rank on each and ends here; otherwise goes on
    if ds_config and not launch.is_distributed():
        zero.in_one_process()

    import unsloth  # noqa: F401, I001 - the first heavy import, before trl, transformers and peft: it patches them
    from trl import SFTConfig

    from common import batches, checkpoints, held_out_loss, merging, model_card, models, report, run_directory, tracking, watching

    models.quiet()
    models.require_bf16()
    models.require_gpu(settings.tiny)
    train, validation = data.train(), data.validation()
    args = SFTConfig(  # before the model: DeepSpeed is read while loading
        output_dir=OUTPUT_DIR,
        num_train_epochs=NUM_TRAIN_EPOCHS,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=PER_DEVICE_TRAIN_BATCH_SIZE,
        per_device_eval_batch_size=1,  # two rows of different lengths would need a mask of length x length
        gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type=LR_SCHEDULER_TYPE,
        warmup_steps=fitted["warmup_steps"],
        optim=OPTIM,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=True,
        bf16_full_eval=True,  # weights are bf16 all the same while it trains; judged under autocast, as in a step
        gradient_checkpointing=GRADIENT_CHECKPOINTING != "none",
        max_length=MAX_SEQ_LENGTH,
        packing=False,  # a document fills its row
        dataset_kwargs={"skip_prepare_dataset": True},  # rows are tokenised and fit already
        loss_type="nll",  # Unsloth computes it in chunks of labelled tokens; TRL's own default is another path
        eval_strategy="steps" if validation else "no",
        eval_steps=fitted["eval_steps"] or EVAL_STEPS,
        save_steps=fitted["save_steps"],
        load_best_model_at_end=False,
        logging_steps=LOGGING_STEPS,
        logging_nan_inf_filter=False,  # the default hides NaN
        include_num_input_tokens_seen="non_padding",
        dataloader_num_workers=DATALOADER_NUM_WORKERS,
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
    if scaled:
        log.warn(scaled)
    if checkpoint:
        for sentence in resume.changed_constants(checkpoint, settings.values, data.key, args.world_size, ds_config is not None, False):
            log.warn(sentence)
    with memory.advice(**settings.values):
        model, tokenizer = models.load(model_name, MAX_SEQ_LENGTH, False, MODEL_REVISION, GRADIENT_CHECKPOINTING, TILED_MLP, rope_scaling)
    model = models.add_lora(model, LORA_R, LORA_ALPHA, LORA_DROPOUT, TARGET_MODULES, GRADIENT_CHECKPOINTING, SEED, MODEL_REVISION)
    before, notes = models.fingerprint(model), watching.not_covered(packing=False, tiled_mlp=TILED_MLP)
    launch.rank_0_decides(lambda: watching.begin(run, checkpoint, settings, model, model_name, data, REPORT_TO, notes))
    trainer = held_out_loss.HeldOutLoss(model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    models.train_in_fp32(model)  # whatever the loader made of it
    watching.attach(trainer, run, constants=settings.values)
    micro_batch = resume.micro_batch(checkpoint, PER_DEVICE_TRAIN_BATCH_SIZE * args.world_size)
    kept = checkpoints.Checkpoints(trainer, run, settings.values, data.key, micro_batch, SAVE_TOTAL_LIMIT, CHECKPOINT_URI, KEEP_LOCAL)
    batches.require_shared_memory(train["length"], DATALOADER_NUM_WORKERS, args.world_size)
    batches.group_by_length(trainer, train["length"], micro_batch, SEED)  # ranks have rows of like length, or all wait for the longest
    steps = watching.announce(trainer, run, data.statistics, fitted["warmup_steps"])
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
