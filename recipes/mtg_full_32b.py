"""Full fine-tuning of TinyR1-32B, all 32.8 billion parameters, on knowledge of Magic: The Gathering: BF16, ZeRO-3, no offloading.

    python prepare/mtg_cards.py --cards oracle-cards.json    Scryfall's or MTGJSON's cards -> data/mtg_cards/{train,valid,test}.jsonl
    python recipes/mtg_full_32b.py                           starts itself on all GPUs of this machine; eight H200 are what it is meant for
    python recipes/mtg_full_32b.py --tiny                    the same code on a CPU, in two minutes
    deepspeed --num_gpus=2 recipes/mtg_full_32b.py --tiny    and divided among two processes
    python recipes/mtg_full_32b.py --plan                    memory, time and cost beforehand
    deepspeed --hostfile=hosts recipes/mtg_full_32b.py       several machines with one disk
    sbatch recipes/mtg_full_32b.sbatch                       Slurm
    python recipes/mtg_full_32b.py --resume-from-checkpoint auto

On eight H200 each GPU needs 76.6 of its 140.4 GiB: weights 7.6, gradients 7.6, fp32 masters and two moments 45.8, activations 2.5,
logits and loss 3.4, ZeRO's buffers 8.1; the rest is CUDA's context and fragmentation. At 40 % MFU they train 15,472 tokens a second:
1.41 B tokens x 3 epochs in 76 hours; --plan, which is more careful, says 85. A checkpoint takes 459 GB; three are kept while a fourth
is written: 1.8 TB of disk.

Every constant below is a flag (LEARNING_RATE is --learning-rate); --help lists them. Afterwards:
bash eval/eval_all_checkpoints.sh judges every checkpoint and writes report.html.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common import chat_rows, constants, forecast, hub, launch, log, memory, mixing, resume, tokenised, versions, zero
from common.job import Job, Zero
from common.refusal import Refusal

# Model
MODEL_NAME: str = "qihoo360/TinyR1-32B"  # or final_model/ of another run: first cards, then drafts
MODEL_REVISION: str | None = None  # branch, tag or commit; None takes the newest
MAX_SEQ_LENGTH: PositiveInt = 2048  # tokens; longer rows lose their oldest turns, then the middle of the document, never the answer

# Data
TRAIN_FILES: dict[str, NonNegativeFloat] = {"splits_full/train.jsonl": 1.0}  # weight 0.5 halves, 2.0 doubles
VALIDATION_FILE: str | None = "splits_full/valid.jsonl"  # judged every EVAL_STEPS; None judges nothing
TEST_FILE: str | None = "splits_full/test.jsonl"  # judged once, at the end
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted and written to skipped_rows.jsonl
PACKING: bool = True  # rows of MAX_SEQ_LENGTH full of conversations, kept apart by the attention kernel; False: 64 conversations a step

# Optimisation
NUM_TRAIN_EPOCHS: PositiveFloat = 3.0
MAX_STEPS: int = -1  # above 0 it decides instead of the epochs
PER_DEVICE_TRAIN_BATCH_SIZE: PositiveInt = 2  # 2 x 4 x 8 GPUs = 64 rows a step: 131,072 tokens when packed
GRADIENT_ACCUMULATION_STEPS: PositiveInt = 4
PER_DEVICE_EVAL_BATCH_SIZE: PositiveInt = 2  # changes no figure
LEARNING_RATE: PositiveFloat = 2e-5
LR_SCHEDULER_TYPE: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"  # down to 0 at the last step
WARMUP_STEPS: NonNegativeInt = 100
OPTIM: Literal["adamw_torch_fused", "adamw_torch"] = "adamw_torch_fused"  # on fp32 master weights, which are DeepSpeed's
WEIGHT_DECAY: NonNegativeFloat = 0.01
MAX_GRAD_NORM: NonNegativeFloat = 1.0  # 0 turns clipping off
GRADIENT_CHECKPOINTING: Literal["true", "none"] = "true"  # layers are computed again: a third slower, a fraction of the memory
BF16: bool = True  # False trains in fp32 throughout, on a CPU alone: on a GPU Unsloth's trainer turns to bf16 by itself
SEED: NonNegativeInt = 42  # of the weighting and the order of rows
USE_DEEPSPEED: bool = True  # False: every GPU holds the model, its masters and moments whole
DS_CONFIG: str = "ds_configs/mtg_full_32b.json"  # ZeRO-3, on one GPU too

# Saving
OUTPUT_DIR: str = "outputs"
RUN_NAME: str | None = None  # None is mtg_full_32b; a name that is taken gets -2, -3, …
SAVE_STEPS: PositiveInt = 500
SAVE_TOTAL_LIMIT: PositiveInt = 3  # on this disk, 459 GB each
CHECKPOINT_URI: str | None = None  # gs://bucket/runs, s3://… or file:///…: every checkpoint is uploaded beside the training, and verified
KEEP_LOCAL: bool = True  # False removes from this disk what is verified in the store, but for the newest checkpoint
EVAL_STEPS: PositiveInt = 500  # optimiser steps between losses on VALIDATION_FILE, about five minutes each on eight H200
RESUME_FROM_CHECKPOINT: str | None = None  # a checkpoint-N directory, gs://…/run, or "auto": the newest of RUN_NAME

# Logging
LOGGING_STEPS: PositiveInt = 10
REPORT_TO: list[Literal["tensorboard", "wandb"]] = ["tensorboard", "wandb"]  # [] for none; without a login W&B writes offline
WANDB_ENTITY: str | None = None  # None: your own
WANDB_PROJECT: str | None = "mtg-draft-training"
WANDB_RUN_NAME: str | None = None  # None: the run directory's

TINY = {
    "MODEL_NAME": "tiny-r1",  # 0.8 million parameters, built here in half a minute, once
    "TRAIN_FILES": {"samples/mtg_facts/train.jsonl": 1.0},
    "VALIDATION_FILE": "samples/mtg_facts/valid.jsonl",  # the same facts, asked in words never trained on
    "TEST_FILE": "samples/mtg_facts/test.jsonl",
    "MAX_SEQ_LENGTH": 256,
    "NUM_TRAIN_EPOCHS": 10.0,
    "PER_DEVICE_TRAIN_BATCH_SIZE": 32,
    "GRADIENT_ACCUMULATION_STEPS": 1,
    "PER_DEVICE_EVAL_BATCH_SIZE": 64,
    "LEARNING_RATE": 2e-3,  # small models take large steps
    "WARMUP_STEPS": 10,
    "GRADIENT_CHECKPOINTING": "none",
    "SAVE_STEPS": 100,
    "EVAL_STEPS": 50,
}


def main(**overrides):
    """Train, save, report; the constants of this file are its keywords. Returns the run's figures and paths."""
    settings = constants.resolve(globals(), overrides)  # from here on the capitals hold the resolved values
    versions.check()

    def prepare(directory):  # runs once, in a process of its own, before any rank starts; later runs find the cache
        rows, report = chat_rows.read(TRAIN_FILES, bad_rows=BAD_ROWS)
        seen = mixing.seen_as("training", rows)
        validation = mixing.held_out_rows("validation", VALIDATION_FILE, seen, report, BAD_ROWS) if VALIDATION_FILE else []
        test = mixing.held_out_rows("test", TEST_FILE, seen, report, BAD_ROWS) if TEST_FILE else []
        parts = {"train": mixing.weigh(rows, TRAIN_FILES, seed=SEED), "validation": validation, "test": test}
        tokenised.encode(directory, parts, report, model_name, MODEL_REVISION, MAX_SEQ_LENGTH, BAD_ROWS, TRAIN_FILES, keep=tuple(parts))

    files = [*TRAIN_FILES, *(file for file in (VALIDATION_FILE, TEST_FILE) if file)]
    prepared = {n: settings.values[n] for n in ("TRAIN_FILES", "VALIDATION_FILE", "TEST_FILE", "SEED", "BAD_ROWS", "MAX_SEQ_LENGTH")}

    ds_config = None
    if USE_DEEPSPEED:
        rows = PER_DEVICE_TRAIN_BATCH_SIZE * GRADIENT_ACCUMULATION_STEPS * launch.ranks(settings)
        ds_config = zero.check(
            DS_CONFIG, gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS, gradient_clipping=MAX_GRAD_NORM, bf16__enabled=BF16,
            fp16__enabled=False, train_micro_batch_size_per_gpu=PER_DEVICE_TRAIN_BATCH_SIZE,
            train_batch_size="auto" if settings.plan else rows,
        )  # fmt: skip

    def job(name, *_):  # what decides memory and time; the constants of this file are in it by their names
        model = hub.known_dimensions(name, MODEL_REVISION)
        shared = zero.facts(ds_config, DS_CONFIG, model.hidden_size, alone=True) if USE_DEEPSPEED else Zero()
        return Job.of(model, settings.values, kernels="unsloth", loss="unsloth", zero=shared, load_best_model_at_end=False,
                      eval_steps=EVAL_STEPS if VALIDATION_FILE else None)  # fmt: skip

    if settings.plan:  # from what is on this machine; builds nothing
        tokenizer = hub.local_tokenizer(MODEL_NAME, MODEL_REVISION)
        cached = tokenised.find(prepare, files, tokenizer, **prepared)
        own = "cpu" if settings.tiny else "8xH200"
        return forecast.show(job(MODEL_NAME), MODEL_NAME, settings, own, TRAIN_FILES, 0.0, BAD_ROWS, tokenizer, cached, VALIDATION_FILE)

    run_name = RUN_NAME or settings.default_run_name
    resume.check(run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI)  # a wrong name, path or key is said now
    resume.require_fixed(resume.peek(OUTPUT_DIR, run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI), settings.values)
    if settings.prefetch:
        log.say(f"{MODEL_NAME} is in {hub.prefetch(MODEL_NAME, MODEL_REVISION)}")
        return {}
    log.say_once(settings.show())
    chat_rows.require(TRAIN_FILES)
    for constant, file in (("VALIDATION_FILE", VALIDATION_FILE), ("TEST_FILE", TEST_FILE)):
        chat_rows.require([file] if file else [], constant)
    model_name = hub.find(MODEL_NAME, MODEL_REVISION)
    expected = None if settings.no_plan else forecast.require(job, model_name, settings)  # stops a run that cannot fit, with the fix
    data = tokenised.once(prepare, files, hub.tokenizer_directory(model_name, MODEL_REVISION), **prepared)
    log.say_once(tokenised.describe(data.statistics))
    forecast.announce(expected, MODEL_NAME, data)
    launch.prepare_process()
    launch.on_all_gpus(settings)  # several GPUs: starts one rank on each and ends here; otherwise goes on
    if USE_DEEPSPEED and not launch.is_distributed():
        zero.in_one_process()  # the same engine for one

    import unsloth  # noqa: F401, I001 - the first heavy import, before trl, transformers and peft: it patches them
    import torch
    from trl import SFTConfig

    from common import batches, chat_text, checkpoints, full_training, full_weights, model_card, models, report, tracking, watching

    models.quiet()
    on_gpu, dtype = torch.cuda.is_available(), torch.bfloat16 if BF16 else torch.float32
    models.require_gpu(settings.tiny)
    if BF16:
        models.require_bf16()
    elif on_gpu:
        raise Refusal("BF16 is False, and on a GPU Unsloth's trainer would turn to bf16 by itself; set BF16 = True")
    train, validation, test = data.train(), data.validation(), data.test()
    args = SFTConfig(  # before the model: under ZeRO-3 it is divided among the ranks while it loads
        output_dir=OUTPUT_DIR,
        num_train_epochs=NUM_TRAIN_EPOCHS,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=PER_DEVICE_TRAIN_BATCH_SIZE,
        per_device_eval_batch_size=PER_DEVICE_EVAL_BATCH_SIZE,
        gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type=LR_SCHEDULER_TYPE,
        warmup_steps=WARMUP_STEPS,
        optim=OPTIM,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=BF16,
        gradient_checkpointing=GRADIENT_CHECKPOINTING == "true",
        gradient_checkpointing_kwargs={"use_reentrant": True},  # the other kind fails under ZeRO-3
        max_length=MAX_SEQ_LENGTH,
        packing=PACKING and on_gpu,
        eval_packing=False,
        dataset_num_proc=1,  # packed rows are the same whatever the machine's cores
        dataset_kwargs={"skip_prepare_dataset": not (PACKING and on_gpu)},  # rows are tokenised and fit already
        loss_type="nll",  # Unsloth computes it in chunks; TRL's own default is another path
        eval_strategy="steps" if validation else "no",
        eval_steps=EVAL_STEPS,
        save_steps=SAVE_STEPS,
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
    args.output_dir, args.eval_on_start = str(run.path), validation is not None and checkpoint is None  # what it knows before
    if RESUME_FROM_CHECKPOINT and not checkpoint:
        log.say(f"nothing to resume: no whole checkpoint of a run named {run_name} is in {OUTPUT_DIR}/; this run starts afresh")
    if checkpoint:
        for sentence in resume.changed_constants(checkpoint, settings.values, data.key, args.world_size, USE_DEEPSPEED, args.packing):
            log.warn(sentence)
    with memory.advice(**settings.values):
        loaded_as = dtype if USE_DEEPSPEED else torch.float32  # DeepSpeed has masters; without it the weights are their own
        model = full_weights.load(model_name, loaded_as, MAX_SEQ_LENGTH, MODEL_REVISION, GRADIENT_CHECKPOINTING)
    tokenizer = chat_text.load_tokenizer(model_name, MODEL_REVISION)  # with a template that keeps the reasoning of answers
    models.set_pad_token(tokenizer, model)
    notes, wandb = full_training.not_covered(args.packing), {"entity": WANDB_ENTITY, "project": WANDB_PROJECT, "run_name": WANDB_RUN_NAME}
    launch.rank_0_decides(lambda: watching.begin(run, checkpoint, settings, model, model_name, data, REPORT_TO, notes, wandb))
    trainer = full_training.FullFineTuning(model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    trainer.add_callback(full_training.Beginning(trainer, run))
    watching.attach(trainer, run, larger="LEARNING_RATE", constants=settings.values)
    micro_batch = resume.micro_batch(checkpoint, PER_DEVICE_TRAIN_BATCH_SIZE * args.world_size)
    kept = checkpoints.Checkpoints(trainer, run, settings.values, data.key, micro_batch, SAVE_TOTAL_LIMIT, CHECKPOINT_URI, KEEP_LOCAL)
    if args.packing:
        batches.shuffle(trainer, len(trainer.train_dataset), SEED)
    else:
        batches.group_by_length(trainer, train["length"], micro_batch, SEED)
    steps = watching.announce(trainer, run, data.statistics, WARMUP_STEPS)
    with kept.secured():  # whatever happens from here on, what is committed gets to the store
        with run.recording(log.warnings, active=log.is_rank_0()):
            with memory.advice(**settings.values):
                kept.train(checkpoint, steps)  # resumes, commits, uploads, heeds signals
            figures = watching.figures(trainer, data.statistics)  # refuses a NaN loss
            figures |= full_training.finish(trainer, run, test or validation or train, dtype, settings.values)
            figures |= full_training.test(trainer, test)
            if log.is_rank_0():
                run.update(**figures)
            launch.wait_for_all()
        if log.is_rank_0():
            model_card.write(run.final_model, run)
            log.say(f"report: {report.write(run)}; judge every checkpoint: bash eval/eval_all_checkpoints.sh {run.path}")
            tracking.finish(REPORT_TO)
            kept.finish([run.final_model])  # waits for the uploads
    log.close()
    return {**figures, "run": str(run.path), "final_model": str(run.final_model)}


if __name__ == "__main__":
    launch.command(main)
