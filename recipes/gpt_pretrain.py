"""A GPT of 125 million to 1.3 billion parameters, pretrained from scratch on shards of tokens.

    python prepare/pretrain_tokens.py --sources data/text --train-tokenizer 50257    text, JSONL or parquet -> data/tokens/
    python recipes/gpt_pretrain.py                           on all GPUs of this machine; eight H100 are what it is meant for
    python recipes/gpt_pretrain.py --tiny                    the same code on a CPU in two minutes, on Python's own standard library
    python recipes/gpt_pretrain.py --max-files 25            a test run on one GPU
    python recipes/gpt_pretrain.py --plan --tokens 22e9      memory, time and cost beforehand
    python recipes/gpt_pretrain.py --resume-from-checkpoint auto
    deepspeed --num_gpus=8 recipes/gpt_pretrain.py           the ranks started by hand

Every constant below is a flag (MODEL_NAME is --model-name); --help lists them. The end is a model that plain transformers load
and llama32_qlora.py fine-tunes. Afterwards: bash eval/eval_all_checkpoints.sh judges every checkpoint and writes report.html.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common import batches, constants, dimensions, forecast, hardware, hub, launch, log, memory, resume, token_data, versions, zero
from common.constants import Share
from common.job import Job

# Model
MODEL_NAME: Literal["gpt-125M", "gpt-350M", "gpt-760M", "gpt-1.2B"] = "gpt-1.2B"  # 125, 356, 760, 1,316 million parameters
NUM_HIDDEN_LAYERS: PositiveInt | None = None  # None in these three is what MODEL_NAME has: 24 layers, width 2048, 16 heads
HIDDEN_SIZE: PositiveInt | None = None
NUM_ATTENTION_HEADS: PositiveInt | None = None
MAX_SEQ_LENGTH: PositiveInt = 2048  # tokens of a row, and positions the model learns
DROPOUT: Share = 0.1  # 0 where each token is seen once and data are plenty
ATTENTION: Literal["flash", "sdpa"] = "sdpa"  # "flash": FlashAttention or an error; "sdpa": PyTorch's choice, flash where it can
GRADIENT_CHECKPOINTING: Literal["true", "none"] = "none"  # "true": layers are computed again, a third slower, a fraction of the memory
TORCH_COMPILE: bool | None = None  # None: on a GPU, where fused kernels pay within minutes

# Data
TRAIN_FILES: list[str] = ["data/tokens"]  # of prepare/pretrain_tokens.py, nanoGPT, llm.c, datatrove or .npz: files, directories, globs
TOKENIZER: str | None = None  # a directory or hub name, openai-community/gpt2; None: tokenizer/ beside the shards
MAX_FILES: PositiveInt | None = None  # so many training files, for a test run; None takes all
VALIDATION_FILES: NonNegativeInt = 1  # held out, drawn by SEED; files with "val" in their names are held out in their place
EVAL_TOKENS: PositiveInt = 10_000_000  # of the held-out files, judged every EVAL_STEPS

# Optimisation
NUM_TRAIN_EPOCHS: PositiveFloat = 1.0  # every token of every file once
MAX_STEPS: int = -1  # above 0 it decides instead of the epochs
TRAIN_BATCH_SIZE: PositiveInt = 128  # rows a step over all GPUs: 128 x 2048 = 262,144 tokens
PER_DEVICE_TRAIN_BATCH_SIZE: PositiveInt = 8  # rows at once on one GPU
GRADIENT_ACCUMULATION_STEPS: PositiveInt | None = None  # None: as many as make TRAIN_BATCH_SIZE; 2 on eight GPUs, 16 on one
PER_DEVICE_EVAL_BATCH_SIZE: PositiveInt = 8  # changes no figure
LEARNING_RATE: PositiveFloat = 6e-4
MIN_LR_RATE: Share = 0.1  # of LEARNING_RATE, where the cosine ends with the last step
WARMUP_STEPS: NonNegativeInt = 2000
WEIGHT_DECAY: NonNegativeFloat = 0.1  # of matrices and embeddings; biases and norms have none
ADAM_BETA1: Share = 0.9
ADAM_BETA2: Share = 0.95
MAX_GRAD_NORM: NonNegativeFloat = 1.0  # 0 turns clipping off
PRECISION: Literal["bf16", "fp16"] = "bf16"  # "fp16" scales its loss dynamically, for GPUs older than Ampere; masters are fp32
SEED: NonNegativeInt = 42  # of the weights, dropout, the order of files and of rows in them
DS_CONFIG: str = "ds_configs/gpt_pretrain.json"  # ZeRO-2, on one GPU too

# Saving
OUTPUT_DIR: str = "outputs"
RUN_NAME: str | None = None  # None is gpt_pretrain; a name that is taken gets -2, -3, …
CHECKPOINT_EVERY_FILES: PositiveInt | None = 5  # whenever five more files are trained; None leaves it to SAVE_STEPS
SAVE_STEPS: PositiveInt | None = 1000  # and every so many optimiser steps, for few and large files; None leaves it to files
SAVE_TOTAL_LIMIT: PositiveInt = 3  # on this disk, 21 GB each for 1.3 billion parameters
CHECKPOINT_URI: str | None = None  # gs://bucket/Checkpoints, s3://… or file:///…: every checkpoint is uploaded, and verified
KEEP_LOCAL: bool = True  # False removes from this disk what is verified in the store, but for the newest checkpoint
RESUME_FROM_CHECKPOINT: str | None = None  # a checkpoint-N directory, gs://…/run, or "auto": the newest of RUN_NAME

# Logging
EVAL_STEPS: PositiveInt = 500  # optimiser steps between losses on the held-out files
LOGGING_STEPS: PositiveInt = 10
REPORT_TO: list[Literal["tensorboard", "wandb"]] = ["tensorboard", "wandb"]  # [] for none; without a login W&B writes offline
SAMPLES: list[str] = ["", "The history of", "Scientists have found that"]  # beginnings that the trained model goes on from; "" is none

TINY = {
    "NUM_HIDDEN_LAYERS": 2,
    "HIDDEN_SIZE": 128,
    "NUM_ATTENTION_HEADS": 4,
    "MAX_SEQ_LENGTH": 128,
    "DROPOUT": 0.0,
    "TRAIN_FILES": ["python-library"],  # the sources of the Python that runs this, tokenised here once
    "EVAL_TOKENS": 50_000,
    "MAX_STEPS": 1200,  # a quarter of an epoch
    "TRAIN_BATCH_SIZE": 16,
    "PER_DEVICE_TRAIN_BATCH_SIZE": 8,
    "PER_DEVICE_EVAL_BATCH_SIZE": 64,
    "LEARNING_RATE": 6e-3,  # small models take large steps
    "WARMUP_STEPS": 50,
    "CHECKPOINT_EVERY_FILES": 2,
    "SAVE_STEPS": None,
    "EVAL_STEPS": 200,
    "SAMPLES": ["", "import ", "class ", "    def __init__(self"],
}


def main(**overrides):
    """Train, save, report; the constants of this file are its keywords. Returns the run's figures and paths."""
    settings = constants.resolve(globals(), overrides)  # from here on the capitals hold the resolved values
    versions.check()
    ranks, bf16 = launch.ranks(settings), PRECISION == "bf16"
    accumulation = GRADIENT_ACCUMULATION_STEPS or max(1, TRAIN_BATCH_SIZE // (PER_DEVICE_TRAIN_BATCH_SIZE * ranks))
    settings.values["GRADIENT_ACCUMULATION_STEPS"] = accumulation  # as it is from here on
    model_name = f"{MODEL_NAME}, changed" if NUM_HIDDEN_LAYERS or HIDDEN_SIZE or NUM_ATTENTION_HEADS else MODEL_NAME

    def sizes(vocab_size=None):
        return dimensions.gpt(MODEL_NAME, NUM_HIDDEN_LAYERS, NUM_ATTENTION_HEADS, HIDDEN_SIZE, vocab_size, MAX_SEQ_LENGTH)

    def ds_json():
        return zero.check(
            DS_CONFIG, most=2, gradient_accumulation_steps=accumulation, gradient_clipping=MAX_GRAD_NORM, train_batch_size=TRAIN_BATCH_SIZE,
            train_micro_batch_size_per_gpu=PER_DEVICE_TRAIN_BATCH_SIZE, bf16__enabled=bf16, fp16__enabled=not bf16,
        )  # fmt: skip

    def job(vocab_size=None):  # what decides memory and time; the constants of this file are in it by their names
        shared = zero.facts(ds_json(), DS_CONFIG, sizes().hidden_size, alone=True)
        return Job.of(sizes(vocab_size), settings.values, loss="gpt", pretraining=True, packing=True, dropout=DROPOUT, zero=shared,
                      save_steps=SAVE_STEPS or 500, eval_steps=EVAL_STEPS if VALIDATION_FILES else None)  # fmt: skip

    wanted = {"tokenizer": TOKENIZER, "context": MAX_SEQ_LENGTH, "validation_files": VALIDATION_FILES, "max_files": MAX_FILES,
              "eval_tokens": EVAL_TOKENS, "seed": SEED}  # fmt: skip
    job()  # heads that do not divide the width, and a ZeRO JSON that contradicts the constants, are said now
    if settings.plan:  # from what is on this machine; builds nothing
        found = token_data.Forecast(TRAIN_FILES, **wanted)
        meant_for = "cpu" if settings.tiny else "8xH100"
        return forecast.show_work(job(found.vocab_size), model_name, settings, meant_for, found.workload, needs_bf16=bf16)

    batches.require_product(TRAIN_BATCH_SIZE, PER_DEVICE_TRAIN_BATCH_SIZE, ranks, accumulation)
    run_name = RUN_NAME or settings.default_run_name
    resume.check(run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI)  # a wrong name, path or key is said now
    resume.require_fixed(resume.peek(OUTPUT_DIR, run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI), settings.values)
    log.say_once(settings.show())
    wanted["tokenizer"] = TOKENIZER and hub.find_tokenizer(TOKENIZER)
    data = token_data.read(TRAIN_FILES, **wanted)  # every file is read once, and remembered; in the ranks that takes a second
    data.require_a_step(TRAIN_BATCH_SIZE)
    log.say_once(data.describe())
    if not settings.no_plan:  # stops a run that cannot fit, with the fix
        expected = forecast.require(lambda *_: job(data.vocab_size), model_name, settings, needs_bf16=bf16)
        forecast.announce_work(expected, model_name, data.workload)
    launch.prepare_process()
    launch.on_all_gpus(settings)  # several GPUs: starts one rank on each and ends here; otherwise goes on
    if not launch.is_distributed():
        zero.in_one_process()  # the same engine for one

    import torch
    from transformers import AutoTokenizer, TrainingArguments, set_seed

    from common import checkpoints, gpt, model_card, models, pretraining, report, tracking, watching

    models.quiet()
    on_gpu = torch.cuda.is_available()
    models.require_gpu(settings.tiny)
    if bf16:
        models.require_bf16()
    else:
        models.require_fp16()
    size = sizes(data.vocab_size)
    shape = gpt.Shape(data.vocab_size, MAX_SEQ_LENGTH, size.hidden_size, size.num_hidden_layers, size.num_attention_heads, DROPOUT,
                      ATTENTION, GRADIENT_CHECKPOINTING == "true")  # fmt: skip
    gpt.require_attention(shape, torch.bfloat16 if bf16 else torch.float16)
    if not on_gpu:
        hardware.keep_freed_memory()  # a third faster
    args = TrainingArguments(
        output_dir=OUTPUT_DIR,
        num_train_epochs=NUM_TRAIN_EPOCHS,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=PER_DEVICE_TRAIN_BATCH_SIZE,
        per_device_eval_batch_size=PER_DEVICE_EVAL_BATCH_SIZE,
        gradient_accumulation_steps=accumulation,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": MIN_LR_RATE},
        warmup_steps=WARMUP_STEPS,
        optim="adamw_torch_fused",
        weight_decay=WEIGHT_DECAY,
        adam_beta1=ADAM_BETA1,
        adam_beta2=ADAM_BETA2,
        max_grad_norm=MAX_GRAD_NORM,
        use_cpu=not on_gpu,  # bf16 there too
        bf16=bf16,
        fp16=not bf16,
        eval_strategy="steps" if data.validation else "no",
        eval_steps=EVAL_STEPS,
        save_strategy="steps" if SAVE_STEPS else "no",  # and after files
        save_steps=SAVE_STEPS or 500,
        logging_steps=LOGGING_STEPS,
        logging_nan_inf_filter=False,  # the default hides NaN
        remove_unused_columns=False,
        report_to=REPORT_TO or "none",
        deepspeed=ds_json(),
        seed=SEED,
        data_seed=SEED,
        disable_tqdm=True,  # watching has the one bar
    )
    run, checkpoint = launch.rank_0_decides(lambda: resume.open_run(OUTPUT_DIR, run_name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI))
    args.output_dir = str(run.path)
    if RESUME_FROM_CHECKPOINT and not checkpoint:
        log.say(f"nothing to resume: no whole checkpoint of a run named {run_name} is in {OUTPUT_DIR}/; this run starts afresh")
    if checkpoint:
        for sentence in resume.changed_constants(checkpoint, settings.values, data.key, args.world_size, sharded=True, packing=False):
            log.warn(sentence)
    set_seed(SEED)
    with memory.advice(**settings.values, PRETRAINING=True):
        model = gpt.GPT(shape)
    if on_gpu if TORCH_COMPILE is None else TORCH_COMPILE:
        for layer in model.h:  # each alike: one is compiled for all
            layer.compile()
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer) if data.tokenizer else None
    notes = pretraining.not_covered()
    launch.rank_0_decides(
        lambda: watching.begin(run, checkpoint, settings, model, model_name, data, REPORT_TO, notes, kind="pretraining")
    )
    trainer = pretraining.Pretraining(
        model=model, args=args, train_dataset=data.train, eval_dataset=data.validation, processing_class=tokenizer,
        end_of_text=data.end_of_text, bytes_of_tokens=data.bytes_of_tokens(), rows_per_step=TRAIN_BATCH_SIZE,
    )  # fmt: skip
    set_seed(SEED + args.process_index)  # of dropout: another mask on every rank
    files = pretraining.Files(data.train, TRAIN_BATCH_SIZE, SEED, CHECKPOINT_EVERY_FILES)
    trainer.add_callback(files)
    watching.attach(trainer, run, more=pretraining.meter(files, size, args.world_size), larger="LEARNING_RATE",
                    constants=settings.values | {"PRETRAINING": True})  # fmt: skip
    kept = checkpoints.Checkpoints(trainer, run, settings.values, data.key, PER_DEVICE_TRAIN_BATCH_SIZE * args.world_size,
                                   SAVE_TOTAL_LIMIT, CHECKPOINT_URI, KEEP_LOCAL)  # fmt: skip
    steps = pretraining.announce(trainer, files, data)
    with kept.secured():  # whatever happens from here on, what is committed gets to the store
        with run.recording(log.warnings, active=log.is_rank_0()):
            with memory.advice(**settings.values, PRETRAINING=True):
                kept.train(checkpoint, steps)  # resumes, commits, uploads, heeds signals
            figures = watching.figures(trainer)  # refuses a NaN loss
            trainer.export(run.final_model)
            figures |= launch.rank_0_decides(lambda: pretraining.finish(trainer, run, data, settings.values, SAMPLES, SEED))
            if log.is_rank_0():
                run.update(**figures)
        if log.is_rank_0():
            model_card.write(run.final_model, run)
            log.say(f"report: {report.write(run)}; judge every checkpoint: bash eval/eval_all_checkpoints.sh {run.path}")
            tracking.finish(REPORT_TO)
            kept.finish([run.final_model])  # waits for the uploads
    log.close()
    return {**figures, "run": str(run.path), "final_model": str(run.final_model)}


if __name__ == "__main__":
    launch.command(main)
