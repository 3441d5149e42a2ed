"""DeepSpeed's ZeRO: its JSON against the constants, and its checkpoints for another number of ranks."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common import child_process, hardware, json_object, manifest
from common.job import Zero
from common.refusal import Refusal

FIX = "ds_configs/ holds one JSON for each sharded recipe"


class _Offload(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    device: Literal["none", "cpu", "nvme"] = "none"


def _size(default, least=0):
    return Field(default, ge=least, multiple_of=1, description=f'a whole number from {least}, without quotes, or "auto"')


class _ZeroOptimization(BaseModel):
    """What of "zero_optimization" decides memory; descriptions say what is wanted, defaults are DeepSpeed's."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    stage: int = Field(0, ge=0, le=3, description="0, 1, 2 or 3")
    offload_optimizer: _Offload | None = Field(None, description='an object whose device is "none", "cpu" or "nvme"')
    offload_param: _Offload | None = Field(None, description='an object whose device is "none", "cpu" or "nvme"')
    cpu_offload: bool | None = Field(None, description="true or false (better: offload_optimizer)")  # the name of old
    cpu_offload_param: bool | None = Field(None, description="true or false (better: offload_param)")
    overlap_comm: bool | None = Field(None, description="true or false")  # None: decided by the stage
    reduce_bucket_size: float = _size(5e8, least=1)
    stage3_prefetch_bucket_size: float = _size(5e7)
    stage3_max_live_parameters: float = _size(1e9)
    stage3_max_reuse_distance: float = _size(1e9)
    stage3_param_persistence_threshold: float = _size(1e5)


def check(path, most=3, **constants):
    """The JSON in `path` when it contradicts no constant; `Refusal` naming both values when it does. "auto" is the constants' to decide.

    constants: {JSON key, nested with __: value}, for example gradient_clipping=1.0, bf16__enabled=True. most: as of `facts`, whose
    `Refusal`s are raised here too.
    """
    if not os.path.exists(path):
        raise Refusal(f"DS_CONFIG names {path}, which does not exist; {FIX}")
    config = json_object.read(path, FIX)
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise Refusal(f'{path} has its own "{key}", which would take the place of the recipe\'s constants; leave it out there')
    for key, wanted in constants.items():
        *above, last = key.split("__")
        section = config
        for n, part in enumerate(above):
            section = _section(section, part, ".".join(above[: n + 1]), path)
        found = section.get(last, "auto")
        if found not in ("auto", wanted):
            name = key.replace("__", ".")
            raise Refusal(f'{path} says {name} = {found!r}, the constants say {wanted!r}; write "auto" there, or change the constant')
    facts(config, path, hidden_size=1, most=most)
    return config


def facts(config, path, hidden_size, alone=False, most=3):
    """The `job.Zero` of what `check` returned of a `path`: its stage, offloading and buckets, DeepSpeed's defaults where it is silent.

    "auto" is what transformers makes of it (integrations/deepspeed.py): buckets of hidden_size², a prefetch of nine tenths of that, and
    tensors of ten times hidden_size kept whole; any other "auto" DeepSpeed drops, and takes its default.
    alone: one GPU runs under DeepSpeed too; most: the highest stage that the recipe can save. Raises `Refusal` for a higher one, and for a
    value that DeepSpeed would not take.
    """
    asked, square = _section(config, "zero_optimization", "zero_optimization", path), hidden_size**2
    automatic = {
        "reduce_bucket_size": square,
        "stage3_prefetch_bucket_size": int(0.9 * square),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    given = {key: automatic.get(key) if value == "auto" else value for key, value in asked.items() if value != "auto" or key in automatic}
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(given.get(key), dict):
            given[key] = {name: value for name, value in given[key].items() if value != "auto"}
    try:
        found = _ZeroOptimization.model_validate(given)
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        wanted = _ZeroOptimization.model_fields[key].description
        raise Refusal(f"{path} says zero_optimization.{key} = {json.dumps(given[key])[:100]}; it must be {wanted}") from None
    if found.stage > most:
        raise Refusal(f"{path} says zero_optimization.stage = {found.stage}; this recipe saves the weights that every rank has whole, "
                      f"up to stage {most}: write that there")  # fmt: skip
    return Zero(
        found.stage, alone, _offloads(found.offload_optimizer, found.cpu_offload), _offloads(found.offload_param, found.cpu_offload_param),
        found.stage == 3 if found.overlap_comm is None else found.overlap_comm, found.reduce_bucket_size,
        found.stage3_prefetch_bucket_size, found.stage3_max_live_parameters, found.stage3_max_reuse_distance,
        found.stage3_param_persistence_threshold,
    )  # fmt: skip


def _offloads(section, of_old):
    return bool(of_old) or (section is not None and section.device != "none")


def _section(config, key, name, path):
    """An object inside the JSON, an empty one where it is absent."""
    found = config.get(key, {})
    if not isinstance(found, dict):
        raise Refusal(f"{path} says {name} = {json.dumps(found)[:100]}; it must be an object {{...}}, or be left out")
    return found


def in_one_process():
    """Make this process the only rank of a process group, so that it can go on from what several ranks wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def regroup(checkpoint, world_size):
    """A copy of the ZeRO checkpoint that any number of ranks can load, through DeepSpeed's universal format; `checkpoint` stays as it is.

    Returns the copy's path; it takes the checkpoint's disk once more and is to be removed after loading. Raises `Refusal` for
    an optimiser whose state is quantised in blocks of one rank's part, and where the disk is too full.
    """
    found = manifest.read(checkpoint)
    if found["optimizer"].startswith("bitsandbytes"):
        raise Refusal(
            f"{checkpoint} was written by {found['world_size']} rank(s) with {found['optimizer']}, whose quantised state cannot be divided "
            f"among {world_size}; resume on as many GPUs as before, or train with OPTIM = \"adamw_torch_fused\" from the start"
        )
    copy = checkpoint.with_name(f".regrouped-{checkpoint.name}")
    shutil.rmtree(copy, ignore_errors=True)
    needed, what = sum(file["size"] for file in found["files"].values()) / 1e9, f"regrouping {checkpoint} for {world_size} rank(s)"
    hardware.require_disk(checkpoint, needed, what)
    shutil.copytree(checkpoint, copy, copy_function=_link)
    (states,) = copy.glob("global_step*")
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", states, "--output_folder", f"{states}_universal"),
        *("--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"),
    ]
    alone = {k: v for k, v in os.environ.items() if k not in child_process.OF_RANKS}
    done = subprocess.run([str(part) for part in command], env=alone, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"regrouping {checkpoint} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Path(copy)


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # some network disks have no links
        shutil.copy2(source, target)
