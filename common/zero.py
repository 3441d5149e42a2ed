"""DeepSpeed's ZeRO: its JSON against the constants, and its checkpoints for another number of ranks."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from common import hardware, manifest
from common.job import Zero
from common.refusal import Refusal
from common.run_directory import read_json


def check(path, **constants):
    """The JSON in `path` when it contradicts no constant; `Refusal` naming both values when it does. "auto" is the constants' to decide.

    constants: {JSON key, nested with __: value}, for example gradient_clipping=1.0, bf16__enabled=True.
    """
    config = read_json(path)
    if config is None:
        raise Refusal(f"DS_CONFIG names {path}, which does not exist; ds_configs/ holds one JSON for each sharded recipe")
    for key, wanted in constants.items():
        found = config
        for part in key.split("__"):
            found = found.get(part, "auto") if isinstance(found, dict) else "auto"
        if found not in ("auto", wanted):
            name = key.replace("__", ".")
            raise Refusal(f'{path} says {name} = {found!r}, the constants say {wanted!r}; write "auto" there, or change the constant')
    return config


def facts(path, hidden_size, alone=False):
    """The `job.Zero` of a JSON: its stage, offloading and buckets, DeepSpeed's defaults where it is silent.

    "auto" is what transformers makes of it (integrations/deepspeed.py): buckets of hidden_size², a prefetch of nine tenths of that, and
    tensors of ten times hidden_size kept whole.
    alone: one GPU runs under DeepSpeed too.
    """
    found = (read_json(path) or {}).get("zero_optimization", {})

    def number(key, default, auto):
        value = found.get(key, default)
        return auto if value == "auto" else value

    def offloads(key):
        return (found.get(key) or {}).get("device", "none") != "none"

    stage, square = found.get("stage", 0), hidden_size**2
    return Zero(
        stage, alone, offloads("offload_optimizer"), offloads("offload_param"), found.get("overlap_comm", stage == 3),
        number("reduce_bucket_size", 5e8, square),
        number("stage3_prefetch_bucket_size", 5e7, 0.9 * square), number("stage3_max_live_parameters", 1e9, 1e9),
        number("stage3_max_reuse_distance", 1e9, 1e9), number("stage3_param_persistence_threshold", 1e5, 10 * hidden_size),
    )  # fmt: skip


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
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    done = subprocess.run([str(part) for part in command], env=alone, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"regrouping {checkpoint} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Path(copy)


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # some network disks have no links
        shutil.copy2(source, target)
