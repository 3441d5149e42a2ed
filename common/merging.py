"""Merging an adapter into its base in 16 bit, and proving that the result says the same.

The 4-bit weights an adapter was trained on are never merged into: the base is loaded again in bf16. A recipe does this in
a process of its own (`merge_apart`): Unsloth has changed the model classes of the training process, and holds its memory.

    python -m common.merging outputs/RUN/final_model outputs/RUN/merged_model outputs/RUN/validation.jsonl
"""

import gc
import itertools
import json
import sys
from pathlib import Path

from common import chat_text, child_process, hardware, log
from common.refusal import Refusal, guard

TOLERANCE = 0.05  # of the logits' spread; bf16 rounding of the merged weights stays well below
ROWS, TOKENS = 4, 256  # what the comparison reads


def merge_apart(adapter, merged, held_out, base_gib=None):
    """`merge` in a fresh process, on the GPU where twice the base is free there, else on the CPU; its figures.

    held_out: JSONL with messages, None for a greeting in their place. base_gib: size of the base's 16-bit weights, None where it
    is unknown. Raises `Refusal`.
    """
    if base_gib:
        hardware.require_disk(Path(merged).parent, base_gib * 2**30 / 1e9, "the merged model in 16 bit")
    free = max((gpu.free_gib for gpu in hardware.gpus()), default=0)
    device = "cuda" if base_gib and free > 2 * base_gib + 2 else "cpu"
    log.say(f"merging into the 16-bit base, and comparing logits, on the {'GPU' if device == 'cuda' else 'CPU'}")
    return child_process.run_module("common.merging", adapter, merged, held_out or "", device)


def merge(adapter, merged, prompts, device="cpu"):
    """Write base + `adapter` to `merged` (16-bit safetensors, tokenizer) and compare logits on `prompts`.

    prompts: lists of messages. The written directory is loaded again for the comparison, so a broken save shows too.
    Returns {"relative_rms", "top1_agreement", "tolerance"}: root mean square of the logits' difference over their
    standard deviation, and how often the most likely token agrees. Raises `Refusal` where they differ; the
    directory then stays as `<merged>.refused`.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter, merged = Path(adapter), Path(merged)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(adapter)

    def load(name, revision=None):
        return AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=torch.bfloat16, use_safetensors=True).to(device).eval()

    base = load(config["base_model_name_or_path"], config.get("revision"))
    if getattr(base.config, "quantization_config", None):
        raise Refusal(
            f"{config['base_model_name_or_path']}, the base of {adapter}, is quantised; merging into it gives a model that says something "
            "else. Train from the 16-bit weights (LOAD_IN_4BIT quantises them while loading), or set MERGE = False"
        )
    model = PeftModel.from_pretrained(base, adapter).eval()
    expected = _logits(model, tokenizer, prompts)
    merged_model = model.merge_and_unload(safe_merge=True)  # safe: refuses NaN
    working = merged.with_name(f"{merged.name}.unverified")
    merged_model.save_pretrained(working, safe_serialization=True)
    tokenizer.save_pretrained(working)
    del base, model, merged_model
    gc.collect()
    found = _logits(load(working), tokenizer, prompts)
    relative, agreement = difference(expected, found)
    figures = {"relative_rms": relative, "top1_agreement": agreement, "tolerance": TOLERANCE}
    if not relative <= TOLERANCE:
        refused = merged.with_name(f"{merged.name}.refused")
        _replace(working, refused)
        raise Refusal(
            f"the merged model's logits differ from the adapter's by {relative:.1%} of their spread (at most {TOLERANCE:.0%}), so it would "
            f"not say the same; the adapter in {adapter.name}/ is whole, the merged files are kept as {refused.name}/"
        )
    _replace(working, merged)
    return figures


def difference(expected, found):
    """(root mean square of the logits' difference over the spread of the expected ones, share of equal most likely tokens).

    Both are lists of float32 [tokens, vocabulary].
    """
    import torch

    pairs = list(zip(expected, found, strict=True))
    apart = torch.cat([(a - b).flatten() for a, b in pairs]).square().mean().sqrt() / torch.cat([a.flatten() for a in expected]).std()
    return apart.item(), torch.cat([(a.argmax(-1) == b.argmax(-1)).flatten() for a, b in pairs]).float().mean().item()


def _replace(source, target):
    import shutil

    if target.exists():
        shutil.rmtree(target)
    source.rename(target)


def _logits(model, tokenizer, prompts):
    import torch

    with torch.inference_mode():
        return [
            model(**tokenizer(chat_text.render(tokenizer, messages), add_special_tokens=False, truncation=True, max_length=TOKENS,
                              return_tensors="pt").to(model.device)).logits[0].float().cpu()
            for messages in prompts[:ROWS]
        ]  # fmt: skip


def main():
    adapter, merged, held_out, *device = sys.argv[1:]
    hardware.prepare_torch()
    prompts = [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello, what can I do for you?"}]]
    if held_out:
        with open(held_out, encoding="utf-8") as rows:
            prompts = [json.loads(line)["messages"] for line in itertools.islice(rows, ROWS)]
    print(json.dumps(merge(adapter, merged, prompts, *device)))


if __name__ == "__main__":
    guard(main)
