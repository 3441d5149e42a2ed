"""A training run as far as it decides memory, time and money: its model, its constants, its GPUs. No data, no torch."""

from dataclasses import dataclass, field, fields, replace

from common import model_states
from common.dimensions import Dimensions


@dataclass(frozen=True)
class Zero:
    """What the ZeRO JSON decides; sizes of buckets in parameters. Stage 0 is no DeepSpeed."""

    stage: int = 0
    alone: bool = False  # True where one GPU runs under DeepSpeed too
    offload_optimizer: bool = False
    offload_param: bool = False
    overlap_comm: bool = False
    reduce_bucket_size: float = 5e8
    prefetch_bucket_size: float = 5e7
    max_live_parameters: float = 1e9
    max_reuse_distance: float = 1e9
    param_persistence_threshold: float = 1e5


@dataclass(frozen=True, kw_only=True)
class Job:
    """Fields that are constants of the recipes have their names, in lower case."""

    model: Dimensions
    max_seq_length: int  # tokens of a row
    long_documents: str = "shorten"  # what becomes of longer rows; "drop": they are left out
    per_device_train_batch_size: int = 1  # rows
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: str = "none"  # "true": each layer is computed again; "unsloth": and its input kept in host memory
    optim: str = "adamw_torch_fused"
    lora_r: int = 0  # 0: everything is trained
    lora_alpha: int = 0
    target_modules: tuple = ()
    load_in_4bit: bool = False
    dropout: float = 0.0
    packing: bool = False  # rows end to end, no padding; attention within a row's own part
    loss: str = "whole"  # "chunked", "unsloth", "gpt": logits never exist all at once
    kernels: str = "torch"  # "unsloth": its fused kernels, which keep less
    tiled_mlp: bool = False
    pretraining: bool = False  # a GPT from scratch: no base model, no conversations
    train_batch_size: int | None = None  # rows a step on any number of GPUs; gradient accumulation follows from it
    zero: Zero = field(default_factory=Zero)
    gpus: int = 1
    sequence_parallel_size: int = 1  # GPUs that share one row
    num_train_epochs: float = 1.0
    max_steps: int = -1  # above 0 it decides instead of the epochs
    save_total_limit: int = 3
    load_best_model_at_end: bool = True  # the best checkpoint is kept besides
    merge: bool = False  # also a merged model in 16 bit
    downloaded: bool = False  # the model comes from the hub
    save_steps: int = 500
    keep_local: bool = True
    eval_steps: int | None = None  # steps between evaluations
    per_device_eval_batch_size: int = 1
    seed: int = 0

    @classmethod
    def of(cls, model, constants, **more):
        """A job from a recipe's {CONSTANT: value}, of which those that are fields are taken, and from `more` fields."""
        names = {f.name for f in fields(cls)}
        found = {name.lower(): value for name, value in constants.items() if name.lower() in names}
        if "target_modules" in found:
            found["target_modules"] = model.named(found["target_modules"])
        if not constants.get("HELD_OUT", True):  # nothing to evaluate on
            found["eval_steps"] = None
        return cls(**{"model": model, "dropout": constants.get("LORA_DROPOUT", 0.0)} | found | more)

    def constants(self):
        """{CONSTANT: value} of this job, for `memory.ladders`; of a full fine-tuning without those of an adapter."""
        of_adapters = () if self.lora_r else ("lora_r", "lora_alpha", "load_in_4bit")
        return {f.name.upper(): getattr(self, f.name) for f in fields(self) if f.name not in of_adapters}

    def divides(self, count):
        """Whether so many GPUs make up TRAIN_BATCH_SIZE with their micro-batches, where it is given."""
        return not self.train_batch_size or self.train_batch_size % (self.per_device_train_batch_size * count) == 0

    def on(self, count, cpu=False):
        """This job on so many GPUs. On a CPU Unsloth has no kernels, no 8-bit optimiser, no packing and nowhere to offload to."""
        if self.train_batch_size:
            together = self.per_device_train_batch_size * count
            self = replace(self, gradient_accumulation_steps=max(1, self.train_batch_size // together))
        if cpu:
            checkpointing = "none" if self.gradient_checkpointing == "none" else "true"
            loss = "gpt" if self.pretraining else "chunked"
            return replace(self, gpus=count, kernels="torch", loss=loss, tiled_mlp=False, optim="adamw_torch_fused",
                           packing=self.packing and self.pretraining, gradient_checkpointing=checkpointing)  # fmt: skip
        return replace(self, gpus=count)

    def changed(self, change):
        """This job with {CONSTANT: value} changed."""
        changed = replace(self, **{name.lower(): value for name, value in change.items()})
        return changed.on(self.gpus) if self.train_batch_size else changed

    @property
    def zero_stage(self):
        return self.zero.stage if self.gpus > 1 or self.zero.alone else 0

    @property
    def method(self):
        """ "qlora", "lora", "pretraining" or "full"."""
        if self.lora_r:
            return "qlora" if self.load_in_4bit else "lora"
        return "pretraining" if self.pretraining else "full"

    @property
    def micro_batch_tokens(self):
        """Tokens that one GPU has at work at once."""
        return self.per_device_train_batch_size * self.max_seq_length // self.sequence_parallel_size

    @property
    def eval_batch_tokens(self):
        """Tokens that one GPU has at work at once in an evaluation."""
        return self.per_device_eval_batch_size * self.max_seq_length if self.eval_steps else 0

    @property
    def rows_per_step(self):
        """Rows of an optimiser step over all GPUs."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.gpus // self.sequence_parallel_size

    @property
    def trained_parameters(self):
        return model_states.trained_parameters(self.model, self.lora_r, self.target_modules)
