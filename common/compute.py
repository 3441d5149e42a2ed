"""What a step computes and sends: FLOPs, bytes, and the seconds they take. Counted from a model's dimensions, no torch.

A multiplication and an addition are two FLOPs. Matrix products are counted, as torch.utils.flop_counter does; biases, norms,
activations, softmax and the optimiser are not: they are bound by memory, not by arithmetic. NF4 weights are multiplied in 16 bit, so
QLoRA computes what LoRA does. The counts are for one GPU, given the tokens of that GPU.
"""

import json
from pathlib import Path

MEASURED = Path(__file__).parent.parent / "bench" / "results" / "gpu.json"  # {"utilisation": {"qlora": {"H200": 0.41}}}
UTILISATION = {  # share of the peak, of all FLOPs executed, recomputation included; used where bench/results/gpu.json has no measurement
    "pretraining": (0.42, "MosaicML's 1.3B on H100: 41.8 %"),
    "full": (0.38, "MosaicML's 30B on H100 under FSDP: 38.1 %"),
    "lora": (0.40, "NeMo's Llama-3-8B on H100: 402 TFLOP/s"),
    "qlora": (0.38, "torchtune's Llama-3.2-3B on A100: 8,035 tokens/s"),
}
MAX_REUSE_DISTANCE = 1e9  # parameters; DeepSpeed's stage3_max_reuse_distance: what is needed again within it stays gathered


def attended_length(lengths):
    """Mean positions in the square that a token attends within: sum(l^2) / sum(l) over the rows, packed or not, in tokens."""
    return sum(length * length for length in lengths) / max(sum(lengths), 1)


def forward_flops(model, tokens, attended_length, with_head=True, causal=True):
    """FLOPs of one forward pass of the `Dimensions` over `tokens` tokens.

    Every weight of a matrix costs 2 FLOPs a token: 2 x (linear weights + output layer). Attention costs 2 x 2 x query size for each
    position that a token's query meets, once in QK^T and once in AV. attended_length: see the function of that name; a `causal` kernel
    (flash, or sdpa without a mask) skips the half above the diagonal and computes (attended_length + 1) / 2 of it.
    """
    head = with_head * 2 * tokens * model.vocab_size * model.hidden_size
    return 2 * tokens * model.linear_parameters() + model.num_hidden_layers * _attention(model, tokens, attended_length, causal) + head


def _attention(model, tokens, attended_length, causal):
    """QK^T and AV of one layer, forward. Grouped queries change nothing: each query head meets every position."""
    return 2 * 2 * tokens * model.query_size * ((attended_length + 1) / 2 if causal else attended_length)


def step_flops(
    model, tokens, attended_length, lora_r=0, target_modules=(), gradient_checkpointing="none", trains_base=None, trains_embeddings=None,
    loss="whole", labelled_tokens=None, causal=True, flash=True, use_reentrant=True, tiled_mlp=False,
):  # fmt: skip
    """FLOPs of forward and backward over `tokens` tokens of one GPU, by part, as {part: FLOPs}.

    "forward" and "backward" are what the method needs, "recomputation" is what is computed again to save memory, "total" their sum and
    "model" forward + backward: what model FLOPs utilisation counts.
    """
    trains_base = not lora_r if trains_base is None else trains_base
    forward = forward_flops(model, tokens, attended_length, causal=causal)
    return {"forward": forward, "backward": 2 * forward, "recomputation": 0, "model": 3 * forward, "total": 3 * forward}


def utilisation(method, accelerator):
    """(share of the GPU's peak that the work reaches, where the number comes from), for a `method` of UTILISATION on a GPU's name."""
    return UTILISATION[method]


def communication_bytes(
    zero_stage, gpus, trained_parameters, base_parameters=0, gradient_accumulation_steps=1, recomputes=True, layer_parameters=0,
    sequence_parallel_size=1, sequence_parallel_values=0,
):  # fmt: skip
    """Bytes one GPU sends in an optimiser step, by part, as {"gradients", "weights", "sequence", "total"}."""
    return {"gradients": 0, "weights": 0, "sequence": 0, "total": 0}


def step_seconds(flops, accelerator_peak_tflops, utilisation, sent_bytes=0, link_gb_per_s=None, overlapped=True):
    """{"compute", "communication", "total"} in seconds. Overlapped communication hides behind computation, else it adds to it."""
    compute = flops / (accelerator_peak_tflops * 1e12 * utilisation)
    communication = sent_bytes / (link_gb_per_s * 1e9) if sent_bytes else 0.0
    return {"compute": compute, "communication": communication, "total": max(compute, communication) if overlapped else compute + communication}


def optimizer_seconds(weight_bytes, state_bytes, gradient_bytes, memory_gb_per_s):
    """Seconds of one optimiser step on the GPU."""
    return (2 * (weight_bytes + state_bytes) + 2 * gradient_bytes) / (memory_gb_per_s * 1e9)
