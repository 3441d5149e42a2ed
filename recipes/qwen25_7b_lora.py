"""LoRA of Qwen2.5 7B or 14B on your own conversations, sized to the GPU that it finds: 4 bit on 12 to 24 GB, 16 bit above.

    python prepare/chat_files.py --files data/my_data.csv       your rows to data/chat/{train,valid,test}.jsonl
    python recipes/qwen25_7b_lora.py                            one GPU of 12 GB or more; all GPUs where there are several
    python recipes/qwen25_7b_lora.py --tiny                     the same code on a CPU, in about a minute
    python recipes/qwen25_7b_lora.py --plan --gpus A40          memory, time and cost beforehand, hours of 1,000 to 100,000 rows
    python recipes/qwen25_7b_lora.py --config recipes/qwen25_7b_lora.yaml --learning-rate 3e-4 --num-epochs 5
    python recipes/qwen25_7b_lora.py --model-name Qwen/Qwen2.5-14B-Instruct
    python recipes/qwen25_7b_lora.py --output-dir outputs/mine --resume-from-checkpoint outputs/mine/checkpoint-100

Every constant below is a flag (LEARNING_RATE is --learning-rate); --help lists them. Afterwards:
bash eval/eval_all_checkpoints.sh judges every checkpoint and writes report.html.
"""

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from common import chat_rows, constants, forecast, hub, intervals, launch, log, mixing, positions, resume, sizing, tokenised, versions, zero
from common.constants import Share
from common.job import Job, Zero

# Model
MODEL_NAME: str = "Qwen/Qwen2.5-7B-Instruct"  # or Qwen/Qwen2.5-14B-Instruct: the rows of GPU_PRESETS fit both
MODEL_REVISION: str | None = None  # branch, tag or commit; None takes the newest
LOAD_IN_4BIT: bool | None = None  # use_qlora. True: NF4, 5.7 GB of weights instead of 15.2; False: 16 bit. None: GPU_PRESETS
MAX_SEQ_LENGTH: PositiveInt | None = None  # tokens; longer rows lose their oldest turns, never the answer. None: GPU_PRESETS

# Data
TRAIN_FILES: dict[str, NonNegativeFloat] = {"data/chat/train.jsonl": 1.0}  # weight 0.5 halves, 2.0 doubles
VALIDATION_FILE: str | None = "data/chat/valid.jsonl"  # picks the best checkpoint
TEST_FILE: str | None = "data/chat/test.jsonl"  # is only reported, by eval/
HELD_OUT: Share = 0.10  # of TRAIN_FILES, half for each, where both are None, as they are beside another --train-file; 0 holds nothing out
SPLIT_BY: str = "id"  # then rows of one source question stay on one side: "id" takes cv_12_3 for an answer to cv_12, else a field's name
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted and written to skipped_rows.jsonl
PACKING: bool = False  # True, on a GPU: several rows in one of MAX_SEQ_LENGTH, fewer and larger steps; for 10,000 rows and more

# Adapter
LORA_R: PositiveInt | None = None  # lora_rank; 16 trains 40 million of 7.6 billion parameters. None: GPU_PRESETS
LORA_ALPHA: PositiveInt | None = None  # the update is scaled by LORA_ALPHA / LORA_R; None is twice LORA_R
LORA_DROPOUT: Share = 0.0  # above 0 Unsloth's fast kernels are not used
TARGET_MODULES: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",  # all linear layers
]  # fmt: skip

# Optimisation
NUM_TRAIN_EPOCHS: PositiveFloat = 3.0  # num_epochs
MAX_STEPS: int = -1  # above 0 it decides instead of the epochs
PER_DEVICE_TRAIN_BATCH_SIZE: PositiveInt | None = None  # rows. None: GPU_PRESETS; with the other one given, so that a step has 16
GRADIENT_ACCUMULATION_STEPS: PositiveInt | None = None  # likewise
AUTO_BATCH: bool = True  # where memory runs out: a smaller micro-batch, as many rows a step; on one GPU
PER_DEVICE_EVAL_BATCH_SIZE: PositiveInt = 1  # changes no figure
LEARNING_RATE: PositiveFloat = 2e-4  # LoRA takes ten times what full fine-tuning does
LR_SCHEDULER_TYPE: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"  # down to 0 at the last step
WARMUP_RATIO: Share = 0.03  # of all steps
OPTIM: Literal["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_fused"] = "adamw_8bit"  # 2 bytes a parameter
WEIGHT_DECAY: NonNegativeFloat = 0.01
MAX_GRAD_NORM: NonNegativeFloat = 0.3  # 0 turns clipping off
BF16: bool = True  # what is computed in; GPUs of Ampere (RTX 30, A100) and newer
FP16: bool = False  # for older GPUs, in place of BF16; its loss is scaled
GRADIENT_CHECKPOINTING: Literal["unsloth", "true", "none"] | None = None  # "unsloth" also moves activations to the host. None: GPU_PRESETS
SEED: NonNegativeInt = 42  # of the adapter's start, the split, the weighting and the order of rows
DS_CONFIG: str = "ds_configs/qwen25_7b_lora.json"  # ZeRO-2, read only when several ranks were started

# Saving
OUTPUT_DIR: str | None = None  # of this run alone; None is outputs/qwen25_7b_lora, and with -2, -3, … where that is taken
SAVE_STRATEGY: Literal["steps", "epoch"] = "steps"
SAVE_STEPS: PositiveInt | None = None  # None is 100, or a quarter of a short run; "epoch" needs None
SAVE_TOTAL_LIMIT: PositiveInt = 3  # on this disk, 0.2 GB each at rank 16; the best one is kept as well
CHECKPOINT_URI: str | None = None  # gs://bucket/runs, s3://… or file:///…: every checkpoint is uploaded beside the training, and verified
KEEP_LOCAL: bool = True  # False removes from this disk what is verified in the store, but for the newest and the best checkpoint
EVAL_STRATEGY: Literal["no", "steps", "epoch"] = "steps"  # evaluation_strategy
EVAL_STEPS: PositiveInt | None = None  # steps between held-out losses; None is 100, or a quarter of a short run
LOAD_BEST_MODEL_AT_END: bool = True  # final_model is the saved step with the lowest held-out loss; False takes the last
RESUME_FROM_CHECKPOINT: str | None = None  # a checkpoint-N directory, gs://…/run, or "auto": the newest of this run
MERGE: bool = True  # also write merged_model/ in 16 bit: 15.2 GB of 7B, 29.5 of 14B

# Logging
LOGGING_STEPS: PositiveInt = 10
REPORT_TO: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]  # or both, or []; without a login W&B writes offline

GPU_PRESETS = {  # what None above becomes; behind each row the GiB of 7B and of 14B that --plan computes for it
    "GPU": ("LOAD_IN_4BIT", "LORA_R", *sizing.BATCH, "MAX_SEQ_LENGTH", "GRADIENT_CHECKPOINTING"),
    "RTX 3060": (True, 16, 1, 16, 2048, "unsloth"),  # 6.8 and 11.2 of 12.0
    "L4": (True, 16, 2, 8, 2048, "true"),  # 7.8 and 13.3 of 22.5
    "RTX 4090": (True, 16, 2, 8, 2048, "true"),  # 7.8 and 13.3 of 24.0
    "A40": (False, 32, 4, 4, 2048, "true"),  # 18.4 and 34.6 of 45.0
    "A100-40GB": (False, 64, 2, 8, 4096, "true"),  # 19.2 and 35.9 of 40.0; 8 x 2 without checkpointing, a common advice: 126.7 and 218.6
    "A100-80GB": (False, 64, 1, 16, 4096, "none"),  # 30.3 and 54.4 of 80.0; likewise
    "H100": (False, 64, 1, 16, 4096, "none"),  # 30.3 and 54.4 of 79.6
    "H200": (False, 64, 4, 4, 4096, "none"),  # 71.5 and 124.7 of 140.4
}

ALIASES = {  # other names that keys of a config file and flags may have
    "NUM_EPOCHS": "NUM_TRAIN_EPOCHS",
    "EVALUATION_STRATEGY": "EVAL_STRATEGY",
    "USE_QLORA": "LOAD_IN_4BIT",
    "LORA_RANK": "LORA_R",
    "TRAIN_FILE": "TRAIN_FILES",
}

TINY = {
    "MODEL_NAME": "tiny-qwen2",  # 0.9 million parameters, built here in half a minute, once
    "TRAIN_FILES": {"samples/cross_validated.jsonl": 1.0, "samples/arxiv.jsonl": 1.0},
    "VALIDATION_FILE": None,
    "TEST_FILE": None,
    "SPLIT_BY": "family",  # held-out rows come from question templates never trained on
    "HELD_OUT": 0.2,
    "LOAD_IN_4BIT": True,
    "MAX_SEQ_LENGTH": 512,
    "LORA_R": 16,
    "PER_DEVICE_TRAIN_BATCH_SIZE": 8,
    "GRADIENT_ACCUMULATION_STEPS": 1,
    "PER_DEVICE_EVAL_BATCH_SIZE": 33,
    "NUM_TRAIN_EPOCHS": 1.5,
    "LEARNING_RATE": 1e-2,  # small models take large steps
    "MAX_GRAD_NORM": 1.0,
    "GRADIENT_CHECKPOINTING": "none",
    "LOGGING_STEPS": 5,
}


def main(**overrides):
    """Train, save, report; the constants of this file are its keywords. Returns the run's figures and paths."""
    settings = constants.resolve(globals(), overrides)  # from here on the capitals hold the resolved values
    versions.check()
    sizing.require_precision(BF16, FP16, settings)
    settings.beside_others(globals(), "TRAIN_FILES", VALIDATION_FILE=None, TEST_FILE=None, SPLIT_BY="id")  # the file's are of its own

    place = Path(OUTPUT_DIR or f"outputs/{settings.default_run_name}").expanduser()
    where = (place.parent, place.name, RESUME_FROM_CHECKPOINT, CHECKPOINT_URI, bool(OUTPUT_DIR))
    before = None
    if not settings.plan:
        resume.check(*where[1:4], directory=place if OUTPUT_DIR else None)  # a wrong name, path or key is said now
        before = resume.peek(*where)
    sized = sizing.decide(settings, globals(), GPU_PRESETS, "RTX 4090", before)
    settings.decide(globals(), "twice LORA_R", LORA_ALPHA=2 * LORA_R)
    resume.require_fixed(before, settings.values)

    def prepare(directory):  # runs once, in a process of its own, before any rank starts; later runs find the cache
        rows, report = chat_rows.read(TRAIN_FILES, bad_rows=BAD_ROWS, split_by="id" if files else SPLIT_BY)
        parts = mixing.sides(rows, report, VALIDATION_FILE, TEST_FILE, HELD_OUT, SEED, BAD_ROWS)
        parts["train"] = mixing.weigh(parts["train"], TRAIN_FILES, seed=SEED)
        tokenised.encode(directory, parts, report, model_name, MODEL_REVISION, MAX_SEQ_LENGTH, BAD_ROWS, TRAIN_FILES)

    files = [file for file in (VALIDATION_FILE, TEST_FILE) if file]
    names = ("TRAIN_FILES", "VALIDATION_FILE", "TEST_FILE", "HELD_OUT", "SPLIT_BY", "SEED", "BAD_ROWS", "MAX_SEQ_LENGTH")
    prepared = {name: settings.values[name] for name in names}
    held_out = EVAL_STRATEGY != "no" and bool(VALIDATION_FILE or (not files and HELD_OUT))
    for sentence in intervals.require(SAVE_STRATEGY, SAVE_STEPS, EVAL_STRATEGY, EVAL_STEPS, LOAD_BEST_MODEL_AT_END and held_out):
        log.warn(sentence)

    def ds_json():
        return zero.check(DS_CONFIG, most=2, gradient_accumulation_steps=GRADIENT_ACCUMULATION_STEPS, gradient_clipping=MAX_GRAD_NORM,
                          train_micro_batch_size_per_gpu=PER_DEVICE_TRAIN_BATCH_SIZE, bf16__enabled=BF16, fp16__enabled=FP16)  # fmt: skip

    def job(name, sharded=True):  # what decides memory and time; the constants of this file are in it by their names
        model = hub.known_dimensions(name, MODEL_REVISION)
        shared = zero.facts(ds_json(), DS_CONFIG, model.hidden_size) if sharded else Zero()
        return Job.of(model, settings.values, kernels="unsloth", loss="unsloth", zero=shared, save_steps=SAVE_STEPS or intervals.EVERY,
                      eval_steps=(EVAL_STEPS or intervals.EVERY) if held_out else None)  # fmt: skip

    if settings.plan:  # from what is on this machine; builds nothing
        tokenizer = hub.local_tokenizer(MODEL_NAME, MODEL_REVISION)
        cached = tokenised.find(prepare, [*TRAIN_FILES, *files], tokenizer, **prepared)
        if sized and not settings.json:
            log.say(f"sized by  {sized}")
        own, share = "cpu" if settings.tiny else "RTX 4090", 0.0 if files else HELD_OUT
        return forecast.show(job(MODEL_NAME), MODEL_NAME, settings, own, TRAIN_FILES, share, BAD_ROWS, tokenizer, cached, VALIDATION_FILE,
                             needs_bf16=BF16)  # fmt: skip

    ds_config = None  # one process needs no ZeRO, unless it goes on from what several wrote
    if launch.is_distributed() or (before and before["sharded"]):
        ds_config = ds_json()
    if settings.prefetch:
        log.say(f"{MODEL_NAME} is in {hub.prefetch(MODEL_NAME, MODEL_REVISION)}")
        return {}
    log.say_once(settings.show())
    if sized:
        log.say_once(f"sized by {sized}")
    chat_rows.require(TRAIN_FILES)
    for constant, file in (("VALIDATION_FILE", VALIDATION_FILE), ("TEST_FILE", TEST_FILE)):
        chat_rows.require([file] if file else [], constant)
    model_name = hub.find(MODEL_NAME, MODEL_REVISION)
    directory = hub.tokenizer_directory(model_name, MODEL_REVISION)
    rope_scaling, scaled = positions.require(directory, MAX_SEQ_LENGTH, MODEL_NAME)  # refuses rows longer than the model's positions
    base_gib = hub.weights_gib(model_name, MODEL_REVISION)
    expected = None if settings.no_plan else forecast.require(job, model_name, settings, BF16)  # stops what cannot fit, with the fix
    data = tokenised.once(prepare, [*TRAIN_FILES, *files], directory, **prepared)
    log.say_once(tokenised.describe(data.statistics))
    forecast.announce(expected, MODEL_NAME, data)
    launch.prepare_process()
    launch.on_all_gpus(settings)  # several GPUs: starts one rank on each and ends here; otherwise goes on
    if ds_config and not launch.is_distributed():
        zero.in_one_process()

    import unsloth  # noqa: F401, I001 - the first heavy import, before trl, transformers and peft: it patches them
    import torch
    from trl import SFTConfig

    from common import batches, checkpoints, held_out_loss, memory, merging, micro_batch, model_card, models
    from common import report, run_directory, serving, tracking, watching

    models.quiet()
    models.require_gpu(settings.tiny)
    models.require_bf16() if BF16 else models.require_fp16()
    on_gpu = torch.cuda.is_available()
    train, validation = data.train(), data.validation() if held_out else None
    args = SFTConfig(  # before the model: DeepSpeed is read while loading
        output_dir=str(place),
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
        bf16=BF16,
        fp16=FP16,
        gradient_checkpointing=GRADIENT_CHECKPOINTING != "none",
        max_length=MAX_SEQ_LENGTH,
        packing=PACKING and on_gpu,
        eval_packing=False,
        padding_free=False,  # rows have like lengths; Unsloth would decide by itself
        dataset_num_proc=1,  # packed rows are the same whatever the machine's cores
        dataset_kwargs={"skip_prepare_dataset": not (PACKING and on_gpu)},  # rows are tokenised and fit already
        loss_type="nll",  # Unsloth computes it in chunks; TRL's own default is another path, slower here
        eval_strategy="steps" if validation else "no",
        eval_steps=1,  # this and the next: `intervals.place`
        save_steps=1,
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
    run, checkpoint = launch.rank_0_decides(lambda: resume.open_run(*where))
    args.output_dir = str(run.path)
    if RESUME_FROM_CHECKPOINT and not checkpoint:
        log.say(f"nothing to resume: no whole checkpoint is in {place}/; this run starts afresh")
    if scaled:
        log.warn(scaled)
    if checkpoint:
        sharded = ds_config is not None
        for sentence in resume.changed_constants(checkpoint, settings.values, data.key, args.world_size, sharded, args.packing):
            log.warn(sentence)
    with memory.advice(**settings.values):
        options = (MODEL_REVISION, GRADIENT_CHECKPOINTING, False, rope_scaling, torch.bfloat16 if BF16 else torch.float16)
        model, tokenizer = models.load(model_name, MAX_SEQ_LENGTH, LOAD_IN_4BIT, *options)
    model = models.add_lora(model, LORA_R, LORA_ALPHA, LORA_DROPOUT, TARGET_MODULES, GRADIENT_CHECKPOINTING, SEED, MODEL_REVISION)
    untrained, notes = models.fingerprint(model), watching.not_covered(args.packing)
    launch.rank_0_decides(lambda: watching.begin(run, checkpoint, settings, model, model_name, data, REPORT_TO, notes))
    trainer = held_out_loss.HeldOutLoss(model=model, args=args, train_dataset=train, eval_dataset=validation, processing_class=tokenizer)
    models.train_in_fp32(model)  # after the trainer, which turns a 4-bit model's adapter to bf16
    watching.attach(trainer, run, constants=settings.values)
    rows = resume.micro_batch(checkpoint, PER_DEVICE_TRAIN_BATCH_SIZE * args.world_size)
    kept = checkpoints.Checkpoints(trainer, run, settings.values, data.key, rows, SAVE_TOTAL_LIMIT, CHECKPOINT_URI, KEEP_LOCAL)
    if args.packing:
        batches.shuffle(trainer, len(trainer.train_dataset), SEED)
    else:
        batches.group_by_length(trainer, train["length"], rows, SEED)
    for sentence in intervals.place(trainer, SAVE_STRATEGY, SAVE_STEPS, EVAL_STRATEGY, EVAL_STEPS):
        log.say(sentence)
    steps = watching.announce(trainer, run, data.statistics, WARMUP_RATIO)
    with kept.secured():  # whatever happens from here on, what is committed gets to the store
        with run.recording(log.warnings, active=log.is_rank_0()):
            micro_batch.train(kept, checkpoint, steps, AUTO_BATCH)  # resumes, commits, uploads, heeds signals, shrinks
            figures = watching.figures(trainer, data.statistics)  # refuses a NaN loss
            if log.is_rank_0():  # under ZeRO-2 every rank holds the whole adapter
                models.save_adapter(trainer.accelerator.unwrap_model(trainer.model), tokenizer, run.final_model, untrained)
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
            unmerged = {} if MERGE else {"base": MODEL_NAME, "rank": LORA_R, "revision": MODEL_REVISION}
            for line in serving.lines(run.merged_model if MERGE else run.final_model, run.path.name, MAX_SEQ_LENGTH, **unmerged):
                log.say(line)
            tracking.finish(REPORT_TO)
            kept.finish([run.final_model, run.merged_model] if MERGE else [run.final_model])  # waits for the uploads
    log.close()
    return {**figures, "run": str(run.path), "final_model": str(run.final_model), "merged_model": str(run.merged_model) if MERGE else None}


if __name__ == "__main__":
    launch.command(main)
