"""Loading and saving: the seam to Unsloth. Import this after `import unsloth`."""

import hashlib
import logging
import os
import sys
import warnings
from pathlib import Path

from common import hardware
from common.refusal import Refusal
from common.run_directory import read_json

CHECKPOINTING = {"unsloth": "unsloth", "true": True, "none": False}  # the recipe's word -> Unsloth's argument
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|vision_pad|>", "<|fim_pad|>", "<pad>", "<unk>")


def quiet():
    """Silence DeepSpeed's notices, torch's announcements of what it will rename, and loading bars where no terminal shows them."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)  # that DeepSpeed's accumulation counts, as it should
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message="OMP_NUM_THREADS", module="accelerate")
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def load(name, max_seq_length, load_in_4bit, revision=None, gradient_checkpointing="unsloth", tiled_mlp=False, rope_scaling=None,
         dtype=None):  # fmt: skip
    """(model, tokenizer) through Unsloth. `name` may be an adapter directory: its base is loaded and the adapter goes on.

    4 bit is NF4 with double quantisation. tiled_mlp: the MLP some thousand tokens at a time, on a GPU alone. rope_scaling: what
    `positions.require` found. dtype: of 16-bit weights and of what is computed; none is bf16. Never pass a device map: ranks and ZeRO
    place the weights.
    """
    import torch
    from unsloth import FastLanguageModel

    scaling = {"rope_scaling": dict(rope_scaling)} if rope_scaling else {}
    try:
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=name, max_seq_length=max_seq_length, dtype=dtype or torch.bfloat16, load_in_4bit=load_in_4bit, full_finetuning=False,
            revision=revision, use_gradient_checkpointing=CHECKPOINTING[gradient_checkpointing], trust_remote_code=False,
            use_exact_model_name=True,  # else Unsloth takes a pre-quantised copy, into which nothing can be merged in 16 bit
            unsloth_tiled_mlp=tiled_mlp, **scaling,
        )  # fmt: skip
        if tiled_mlp and torch.cuda.is_available() and os.environ.get("WORLD_SIZE") == "1":  # ZeRO; for more ranks Unsloth does it
            from unsloth.models._tiled_mlp_ddp import patch_tiled_mlp_for_ddp

            patch_tiled_mlp_for_ddp()
    except OSError as error:
        raise Refusal(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from None
    set_pad_token(tokenizer, model)
    return model, tokenizer


def set_pad_token(tokenizer, model):
    """Give the tokenizer a padding token of its own: with pad = eos, code that masks padding also masks the end of the answer."""
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        known = tokenizer.get_vocab()
        free = next((t for t in PAD_CANDIDATES if t in known and t != tokenizer.eos_token), None)
        if free is not None:
            tokenizer.pad_token = free
    model.config.pad_token_id = tokenizer.pad_token_id


def require_initial(directory, base, r, lora_alpha, target_modules):
    """Refuse an adapter to go on from that was trained on another base or has another shape than the constants say."""
    found = read_json(Path(directory) / "adapter_config.json")
    if found is None:
        return  # a full model
    pairs = {
        "its base": (found["base_model_name_or_path"], str(base)),
        "LORA_R": (found["r"], r),
        "LORA_ALPHA": (found["lora_alpha"], lora_alpha),
        "TARGET_MODULES": (sorted(found["target_modules"]), sorted(target_modules)),
    }
    for name, (has, wanted) in pairs.items():
        if has != wanted:
            raise Refusal(f"INITIAL_MODEL {directory}: {name} is {has}, this run says {wanted}; make them equal, or start from MODEL_NAME")


def require_gpu(tiny=False):
    """Refuse to train on the CPU what was sized and planned for GPUs that nvidia-smi shows and torch cannot use. tiny: never."""
    import torch

    found = [] if tiny else hardware.gpus()
    if found and not torch.cuda.is_available():
        raise Refusal(f"nvidia-smi shows {found[0].name}, and torch {torch.__version__} cannot use it (torch.cuda.is_available() is "
                      "False): its build does not fit the driver; make install finds the one that does (README, GPU machines)")  # fmt: skip


def require_bf16():
    """Refuse a GPU without bf16 (older than Ampere): the recipes' settings are for bf16."""
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise Refusal(f"{name} has no bf16, in which this recipe trains; take an Ampere GPU or newer (RTX 30, A100, L4, H100)")


def require_fp16():
    """Refuse fp16 on a CPU, where no loss is scaled."""
    import torch

    if not torch.cuda.is_available():
        raise Refusal("fp16 is asked for, which is for GPUs older than bf16, and there is no GPU here that torch can use; ask for bf16")


def add_lora(model, r, lora_alpha, lora_dropout, target_modules, gradient_checkpointing="unsloth", seed=42, revision=None):
    """The model with a fresh LoRA adapter on `target_modules`; a model that already has one is returned as it is.

    revision: of the base, written into the adapter's config so that merging and judging load the same base.
    """
    from peft import PeftModel
    from unsloth import FastLanguageModel

    if isinstance(model, PeftModel):
        return model
    model = FastLanguageModel.get_peft_model(
        model, r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=list(target_modules), bias="none",
        use_gradient_checkpointing=CHECKPOINTING[gradient_checkpointing], random_state=seed,
    )  # fmt: skip
    model.peft_config["default"].revision = revision
    return model


def train_in_fp32(model):
    """Hold what is trained in fp32, as after a resume; TRL turns the adapter of a 4-bit model to bf16, where small updates round away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def reset_offloading():
    """Bring Unsloth's offloading of activations back to its beginning: it counts layers and buffers, which a step that broke off left
    halfway. After a training that ended well Unsloth does it itself. Nothing to do on a CPU."""
    if offloading := sys.modules.get("unsloth_zoo.gradient_checkpointing"):
        offloading.reset_unsloth_gradient_checkpointing_buffers()


def count_parameters(model):
    """(all, trainable); a 4-bit tensor counts the numbers it holds, two to a byte."""
    total = trainable = 0
    for parameter in model.parameters():
        packed = type(parameter).__name__ == "Params4bit" and parameter.quant_state is not None
        count = parameter.quant_state.shape.numel() if packed else getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3: of all ranks
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def fingerprint(model):
    """{name: digest} of every trainable tensor (as fp32: ZeRO changes the dtype), to see afterwards what training changed."""
    return {
        name: hashlib.sha256(p.detach().float().cpu().numpy().tobytes()).hexdigest()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def save_adapter(model, tokenizer, directory, before):
    """Write adapter and tokenizer to `directory`, after looking at every tensor.

    before: `fingerprint` of the model before training. LoRA's B matrices start at zero and must have moved; no tensor
    may be empty or hold NaN. Raises `Refusal`: an adapter that learned nothing is not passed on.
    """
    from peft import get_peft_model_state_dict

    still = [name for name, digest in fingerprint(model).items() if "lora_B" in name and before.get(name) == digest]
    if still:
        raise Refusal(
            f"{len(still)} adapter tensors are unchanged by training, {still[0]} the first; "
            "raise LEARNING_RATE or the number of steps (the first step of a warmup has learning rate 0)"
        )
    state = get_peft_model_state_dict(model)
    model.save_pretrained(directory, state_dict=state, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    for file in Path(directory).glob("*.safetensors"):
        file.chmod((Path(directory) / "adapter_config.json").stat().st_mode)  # safetensors lets nobody else read its files
    check_adapter(directory, len(state))


def check_adapter(directory, tensors=None):
    """Refuse an adapter on disk with missing, empty, all-zero B or non-finite tensors."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(directory) / "adapter_model.safetensors"
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{file} cannot be read ({error}); it is missing or was cut short") from None
    if not state or (tensors is not None and len(state) != tensors):
        raise Refusal(f"{file} holds {len(state)} tensors where the model has {tensors or 'some'}; the adapter was not saved whole")
    for name, tensor in state.items():
        if tensor.numel() == 0:
            raise Refusal(f"{file}: {name} is empty; the adapter was gathered from one rank only")
        if not torch.isfinite(tensor).all():
            raise Refusal(f"{file}: {name} holds NaN or infinite numbers; take an earlier checkpoint and a lower LEARNING_RATE")
        if "lora_B" in name and not tensor.any():
            raise Refusal(f"{file}: {name} is all zero, as before training; nothing was learned")


def is_finite(directory):
    """False where a saved tensor of `directory` holds NaN or infinity."""
    return all(map(is_finite_file, Path(directory).glob("*.safetensors")))


def is_finite_file(file):
    """False where a tensor of a safetensors file holds NaN or infinity."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return all(torch.isfinite(tensors.get_tensor(name)).all() for name in tensors.keys())  # noqa: SIM118 - no mapping
