"""A rank of a model that ZeRO-3 divides: what it holds, how far its memory grows while it loads, what it saves. Prints one line of JSON.

    python tests/common/divided_model.py MODEL_DIRECTORY SAVED_DIRECTORY

It is loaded twice: what DeepSpeed takes for itself is there before memory is looked at.
"""

import ctypes
import json
import sys
import threading
import time
from pathlib import Path

from common import launch, zero

MMAP_THRESHOLD = -3  # glibc's malloc.h: what is larger goes back to the system when it is freed
ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
model_directory, saved = sys.argv[1:]
launch.prepare_process()
import unsloth  # noqa: F401, I001, E402 - in the recipe's order
import torch  # noqa: E402
from trl import SFTConfig  # noqa: E402

from common import full_weights, models  # noqa: E402
from common.refusal import Refusal  # noqa: E402


def anonymous():
    """Bytes of memory that no file stands behind."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


models.quiet()
args = SFTConfig(output_dir=saved, deepspeed=zero.check("ds_configs/mtg_full_32b.json"), bf16=True, report_to="none")
first = full_weights.load(model_directory, torch.bfloat16, 128)  # kept
peak = before = anonymous()


def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)


threading.Thread(target=watch, daemon=True).start()
model = full_weights.load(model_directory, torch.bfloat16, 128)
grown = peak - before
full_weights.save(model, saved, shard_bytes=300_000)
names = full_weights.check(model, saved)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.ds_tensor.zero_()
full_weights.read(model, saved)
total = 0.0
for parameter in model.parameters():
    with full_weights.gathered(parameter):
        total += parameter.double().abs().sum().item()
refused = ""
try:
    full_weights.gathered, plainly = lambda parameter: full_weights.nullcontext(), full_weights.gathered
    full_weights.save(model, f"{saved}-refused")
except Refusal as refusal:
    refused = str(refusal)
finally:
    full_weights.gathered = plainly
positions = [str(buffer.dtype) for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
found = {"held": full_weights.held_bytes(model), "grown": grown, "names": names, "sum": total, "refused": refused, "positions": positions}
for said in launch.gather(found):
    if args.process_index == 0:
        print("FOUND", json.dumps(said))
launch.wait_for_all()
