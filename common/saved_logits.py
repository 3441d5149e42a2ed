"""Whether a saved model says what the trained one says: logits of plain transformers, in a process of its own, beside the live ones.

    python -m common.saved_logits DIRECTORY EXPECTED.npz
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from common import child_process, hardware, launch, merging
from common.refusal import Refusal, guard

TOLERANCE = 0.05  # of the logits' spread; what one bf16 kernel rounds differently from another stays well below in a few layers
AGREEMENT = 0.9  # of the most likely tokens; what suffices where many layers of rounding add up to more than that


def compare(model, directory, rows, device):
    """{"relative_rms", "top1_agreement", "tolerance"} of the logits that the model saved in `directory` gives for `rows` beside the live
    model's; all ranks must call it. None where the host's memory is too small to load it once more.

    rows: lists of token ids. Raises `Refusal` where they say different things.
    """
    import numpy as np
    import torch

    live, training = {}, model.training
    model.eval()
    with torch.no_grad():
        for number, ids in enumerate(rows):
            logits = model(input_ids=torch.tensor([ids], device=device)).logits[0]
            live |= {f"ids_{number}": np.array(ids), f"logits_{number}": logits.float().cpu().numpy()}
    model.train(training)
    return launch.rank_0_decides(lambda: _compare_apart(directory, live))


def _compare_apart(directory, live):
    import numpy as np

    size = sum(file.stat().st_size for file in Path(directory).glob("model*.safetensors")) / 2**30
    if 1.2 * size > hardware.free_memory_gib():
        return None
    with tempfile.TemporaryDirectory() as place:
        expected = Path(place) / "expected.npz"
        np.savez(expected, **live)
        threads = ("OMP_NUM_THREADS",)  # launchers set it to one for each of many ranks
        return child_process.run_module("common.saved_logits", directory, expected, without=threads, CUDA_VISIBLE_DEVICES="")


def main():
    """Load the model of argv[1] with plain transformers and compare its logits with those in argv[2]; prints the figures as JSON."""
    hardware.prepare_torch()
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    directory, expected = sys.argv[1:]
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", use_safetensors=True, output_loading_info=True)
    if report["missing_keys"]:
        raise Refusal(f"{directory} lacks {len(report['missing_keys'])} tensors of its config, the first {min(report['missing_keys'])}")
    wanted, found = [], []
    with np.load(expected, allow_pickle=False) as live, torch.inference_mode():
        for number in itertools.takewhile(lambda n: f"ids_{n}" in live, itertools.count()):
            wanted.append(torch.from_numpy(live[f"logits_{number}"]))
            found.append(model(input_ids=torch.from_numpy(live[f"ids_{number}"])[None]).logits[0].float())
    relative, agreement = merging.difference(wanted, found)
    if not (relative <= TOLERANCE or agreement >= AGREEMENT and relative <= 4 * TOLERANCE):
        raise Refusal(f"the logits of {directory} differ from the trained model's by {relative:.1%} of their spread (at most "
                      f"{TOLERANCE:.0%}) and agree on {agreement:.0%} of the most likely tokens, so it would not say the same")  # fmt: skip
    print(json.dumps({"relative_rms": relative, "top1_agreement": agreement, "tolerance": TOLERANCE}))


if __name__ == "__main__":
    guard(main)
