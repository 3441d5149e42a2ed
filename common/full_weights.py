"""All weights of a model, whole or divided among ranks by ZeRO-3: loaded, watched while they begin to move, saved in shards, read back.

No rank ever holds the model a second time: tensors are gathered one by one, and of the shards that are written at once each rank has one.
"""

import json
import os
from contextlib import nullcontext
from pathlib import Path

from common import hardware, launch
from common.log import say
from common.refusal import Refusal

SHARD_BYTES = 5_000_000_000  # of a weight file, as on the hub
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(name, dtype, max_seq_length, revision=None, gradient_checkpointing="true"):
    """The model of a directory or hub name with every parameter trainable; under ZeRO-3 each rank holds its part from the start.

    To be called after `import unsloth`, with the TrainingArguments made: transformers divides what it loads as their ZeRO JSON says.
    On a GPU Unsloth loads it. Its CPU loader sets a device map, which ZeRO-3 refuses, so there plain transformers do.
    """
    import torch
    from pydantic import ValidationError
    from transformers import AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():  # else it takes every rank for the only one, where torch's group is there but not its own
        import deepspeed

        deepspeed.init_distributed(dist_init_required=False, verbose=False)
    try:
        if torch.cuda.is_available():
            from unsloth import FastLanguageModel

            model, _ = FastLanguageModel.from_pretrained(
                model_name=name, max_seq_length=max_seq_length, dtype=dtype, load_in_4bit=False, full_finetuning=True, revision=revision,
                use_gradient_checkpointing=gradient_checkpointing == "true", trust_remote_code=False, use_exact_model_name=True,
            )  # fmt: skip
        else:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, revision=revision, use_safetensors=True)
    except ValidationError as error:  # DeepSpeed's, whose config is first read here
        wrong = error.errors()[0]
        raise Refusal(f"DS_CONFIG: DeepSpeed does not take {'.'.join(map(str, wrong['loc']))} = {wrong['input']!r} ({wrong['msg']}); "
                      "its documentation lists what it takes") from None  # fmt: skip
    except OSError as error:
        raise Refusal(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from None
    keep_positions_in_fp32(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise Refusal(f"{len(frozen)} tensors of {name} are frozen, {frozen[0]} the first; full fine-tuning trains every parameter")
    world = _rank_and_world()[1]
    if world > 1:
        whole = sum(torch.Size(shape_of(parameter)).numel() * parameter.element_size() for parameter in model.parameters())
        say(f"weights: {hardware.size(held_bytes(model) / 1e9)} of {hardware.size(whole / 1e9)} on this one of {world} ranks")
    return model


def keep_positions_in_fp32(model):
    """Compute again, in fp32, the frequencies of rotary embeddings: ZeRO-3's loading turned them to the 16 bit of the weights.

    In bf16 they are off by up to 0.4 %, at position 2,000 by whole turns: a model trained so would be another one wherever it is loaded.
    """
    import torch

    for module in model.modules():
        found = module._buffers.get("inv_freq")
        if found is not None and found.dtype != torch.float32:
            for name, buffer in type(module)(config=module.config).named_buffers():
                setattr(module, name, buffer.to(found.device))


def gathered(parameter):
    """A context in which every rank sees `parameter` whole."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def shape_of(parameter):
    """Its shape when whole."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def held_bytes(model):
    """Bytes of weights that this rank holds while nothing is gathered."""
    parts = (getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters())
    return sum(part.numel() * part.element_size() for part in parts)


def tensors(model):
    """{name: tensor} as a state dict has them, each once: of tied ones the first, whose name is the one that transformers save."""
    found, seen = {}, set()
    parameters, buffers = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_buffers())
    for name in model.state_dict():
        tensor = parameters.get(name, buffers.get(name))
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


# Moving


class Unmoved(Refusal):
    """Tensors that training leaves as they were loaded."""


def checksums(model):
    """{name: checksum} of what the optimiser trains of this rank's part: the fp32 master weights where there are some.

    Sums of the bits as whole numbers: any change of a weight shows. Under ZeRO-3 without any exchange; below it the ranks gather.
    """
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

    found = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            trained = safe_get_local_fp32_param(parameter)
        elif hasattr(parameter, "_hp_mapping"):
            trained = safe_get_full_fp32_param(parameter)
        else:
            trained = parameter.detach()
        if trained.dtype != torch.float32:
            raise Unmoved(f"{name} is trained in {trained.dtype}, in which updates as small as these round away; "
                          "train under DeepSpeed, which keeps fp32 master weights, or set BF16 = False")  # fmt: skip
        found[name] = trained.contiguous().view(torch.int32).sum(dtype=torch.int64).item()
    return found


def require_moved(model, before, step):
    """The number of tensors; `Unmoved` in every rank where one is still as in `before` (`checksums`) on all of them."""
    now = checksums(model)
    parts = launch.gather({name for name in now if now[name] == before[name]})
    still = sorted(set.intersection(*parts))
    if still:
        raise Unmoved(f"{len(still)} of {len(now)} tensors have not moved after {step} steps, {still[0]} the first; no gradient reaches "
                      "them, or LEARNING_RATE is too small for them: what follows would be no full fine-tuning")  # fmt: skip
    return len(now)


# Saving


def save(model, directory, dtype=None, shard_bytes=SHARD_BYTES):
    """Write config and weights of `model` to `directory`, as transformers' `save_pretrained` lays them out; all ranks must call it.

    dtype: of the saved floating-point tensors, None as they are. Files of at most `shard_bytes`, or of one larger tensor; the ranks write
    one each at a time, into a directory that all of them see. Raises in every rank `Refusal` for a tensor that is empty or not as long as
    the model says, and OSError where one cannot write; whether tensors are finite is for who commits them.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    directory, rank, world = Path(directory), *_rank_and_world()
    directory.mkdir(parents=True, exist_ok=True)
    found = tensors(model)
    saved_as = {name: dtype if dtype and t.is_floating_point() else t.dtype for name, t in found.items()}
    sizes = {name: torch.Size(shape_of(t)).numel() * saved_as[name].itemsize for name, t in found.items()}
    shards, total = _shards(sizes, shard_bytes), sum(sizes.values())
    names = [SINGLE] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for at in range(0, len(shards), world):
        mine = {}
        for owner, shard in enumerate(shards[at : at + world]):
            for name in shard:
                with gathered(found[name]):
                    whole = found[name].detach()
                    if whole.shape != shape_of(found[name]) or not whole.numel():
                        raise Refusal(f"{name} has the shape {tuple(whole.shape)} where the model has {shape_of(found[name])}; "
                                      f"it was not gathered, and {directory} is not whole")  # fmt: skip
                    if owner == rank:
                        mine[name] = whole.to("cpu", saved_as[name], copy=True).contiguous()
        problem = None
        if mine:
            try:
                save_file(mine, directory / names[at + rank], metadata={"format": "pt"})
                (directory / names[at + rank]).chmod(0o666 & ~_umask())  # safetensors lets nobody else read its files
            except (OSError, SafetensorError) as error:
                problem = f"{directory / names[at + rank]} cannot be written: {error}"
        if problems := [said for said in launch.gather(problem) if said]:  # else the others would wait for this one's tensors
            raise OSError(problems[0])
    if rank == 0:
        if len(shards) > 1:
            where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
            (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        config = json.loads(model.config.to_json_string(use_diff=True))
        config |= {"dtype": str(dtype or model.dtype).removeprefix("torch."), "use_cache": True, "architectures": [_class_name(model)]}
        (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
    launch.wait_for_all()


def check(model, directory):
    """Refuse a saved model with missing, foreign, empty or differently shaped tensors; reads the headers of its files alone."""
    from safetensors import SafetensorError, safe_open

    wanted, found = {name: shape_of(tensor) for name, tensor in tensors(model).items()}, {}
    for file in sorted(Path(directory).glob("model*.safetensors")):
        try:
            with safe_open(file, framework="pt") as content:
                found |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise Refusal(f"{file} cannot be read ({error}); it was cut short") from None
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise Refusal(f"{directory} is not the model that was trained: {len(wrong)} tensors differ, the first {name}, which has the shape "
                      f"{found.get(name, 'of none')} there and {wanted.get(name, 'of none')} in the model")  # fmt: skip
    return len(found)


def read(model, directory):
    """Put the saved weights of `directory` into `model`, each rank its part; all ranks must call it. Raises what `check` does."""
    import torch
    from safetensors import safe_open

    check(model, directory)
    found = tensors(model)
    for file in sorted(Path(directory).glob("model*.safetensors")):
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 - no mapping
                with torch.no_grad(), _written(found[name]):
                    if not hasattr(found[name], "ds_id") or _rank_and_world()[0] == 0:
                        found[name].copy_(content.get_tensor(name))


def _written(parameter):
    """A context in which rank 0 sets `parameter` for all ranks."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def _shards(sizes, limit):
    """Names in their order, cut into lists of at most `limit` bytes together. sizes: {name: bytes}."""
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _rank_and_world():
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def _class_name(model):
    """transformers' own: Unsloth compiles classes that carry the same name."""
    return (model.config.architectures or [type(model).__name__])[0]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
