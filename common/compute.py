"""What a step computes and sends: FLOPs, bytes, and the seconds they take. Counted from a model's dimensions, without torch.

A multiplication and an addition are two FLOPs. Matrix products are counted, as torch.utils.flop_counter does; biases, norms,
activations, softmax and the optimiser are not: memory bounds them, not arithmetic. NF4 weights are multiplied in 16 bit, so QLoRA
computes what LoRA does. Everything is of one GPU: give the tokens that one GPU computes.
"""

import json
from math import log
from pathlib import Path

from common.dimensions import ATTENTION, MLP
from common.refusal import Refusal

MEASURED = Path(__file__).resolve().parent.parent / "bench" / "results" / "gpu.json"  # {"utilisation": {"qlora": {"H200": 0.41}}}
# Published runs: {kind of work: {GPU: (whose, {hidden_size: share of the peak that all executed FLOPs reached})}}. H100 stands for other
# GPUs. Narrow layers fill a GPU less, so between two widths the share lies between theirs; beyond them it is the nearest one's.
DENSE = {  # pretraining and full fine-tuning
    "H100": ("MosaicML's GPTs on 8 and 16 H100", {1536: 0.35, 2048: 0.40, 4096: 0.46, 7168: 0.46}),
    "A100": ("MosaicML's GPTs on 8 A100", {768: 0.40, 1024: 0.47, 1536: 0.53, 2048: 0.56, 4096: 0.62, 7168: 0.66}),
}
UTILISATION = {
    "pretraining": DENSE,
    "full": DENSE,
    "lora": {
        "H100": ("NeMo AutoModel's LoRA of Llama 3 8B on one H100", {4096: 0.44}),
        "A100": ("torchtune's LoRA of Llama 3.2 3B on one A100", {3072: 0.51}),
    },
    "qlora": {
        "H100": ("NeMo AutoModel's LoRA on one H100, less the 2 % that QLoRA costs torchtune", {4096: 0.43}),
        "A100": ("torchtune's QLoRA of Llama 3.2 3B on one A100", {3072: 0.50}),
    },
}
# FlashAttention-2 reaches 335 TFLOP/s on an H100, forward and backward, causal (its paper, section 4.1); newer kernels are faster.
FLASH_SHARE = {"H100": 0.34, "H200": 0.34, "GH200": 0.34, "B200": 0.34}  # of the peak; elsewhere what the rest reaches


def forward_flops(model, tokens, attended_length, with_head=True, causal=True):
    """FLOPs of one forward pass of the `Dimensions` over `tokens` tokens.

    Each weight of a matrix costs 2 FLOPs a token, the output layer's too. Attention costs 2 x 2 x query size for each position that a
    query meets: once in QK^T, once in AV. `attended_length`: tokens of the row, averaged over tokens. A `causal` kernel (flash, or
    sdpa without a mask) leaves out what lies above the diagonal and computes (attended_length + 1) / 2 positions; others compute all.
    """
    layers = 2 * tokens * model.linear_parameters() + model.num_hidden_layers * _attention(model, tokens, attended_length, causal)
    return layers + with_head * _head(model, tokens)


def palm_flops_per_token(model, length):
    """FLOPs a token that published model FLOPs utilisation counts (PaLM, appendix B): 6 N + 12 x layers x query size x `length`.

    N: parameters without positions. Attention counts whole, though a causal kernel computes half of it, and recomputation does not.
    """
    weights = model.parameters() - model.learned_positions * model.max_position_embeddings * model.hidden_size
    return 6 * weights + 12 * model.num_hidden_layers * model.query_size * length


def tokens_per_second(model, length, utilisation, peak_tflops, gpus):
    """What `gpus` GPUs of that peak train at a published model FLOPs utilisation, such as 0.4, in rows of `length` tokens."""
    return utilisation * peak_tflops * 1e12 * gpus / palm_flops_per_token(model, length)


def evaluation_flops(model, tokens, attended_length):
    """FLOPs of a forward pass over `tokens` tokens: {"total", "attention"}. An adapter's own are left out: about a hundredth."""
    attention = model.num_hidden_layers * _attention(model, tokens, attended_length, causal=True)
    return {"total": forward_flops(model, tokens, attended_length), "attention": attention}


def step_flops(
    model, tokens, attended_length, lora_r=0, target_modules=(), gradient_checkpointing="none", trains_base=None, trains_embeddings=None,
    loss="whole", labelled_tokens=None, causal=True, flash=True, use_reentrant=True, tiled_mlp=False,
):  # fmt: skip
    """FLOPs of forward and backward over `tokens` tokens: {"forward", "backward", "recomputation", "total", "model", "attention"}.

    "model" is forward + backward, what model FLOPs utilisation counts; "recomputation" is computed again only to save memory;
    "attention" is the part of the total that attention's kernels compute.
    lora_r, target_modules: an adapter A [r, in], B [out, r] on each named matrix, the base frozen; lora_r 0 trains everything.
    trains_base, trains_embeddings (with the output layer): say otherwise. gradient_checkpointing "true", "unsloth": each layer is
    computed once more, without its last product where `use_reentrant` is False, because PyTorch stops there.
    loss "whole", "unsloth": logits of all tokens, once (Unsloth's fused loss takes the gradient in the forward pass); "chunked"
    (TRL's): of the `labelled_tokens` alone, twice. flash: its backward computes QK^T again, 2.5 times the forward's attention, and plain
    products 2 times. tiled_mlp (Unsloth's, ALST's): each MLP is computed once more in its backward.
    """
    trains_base = not lora_r if trains_base is None else trains_base
    trains_embeddings = trains_base if trains_embeddings is None else trains_embeddings
    layers, checkpoints = model.num_hidden_layers, gradient_checkpointing != "none"
    attention = _attention(model, tokens, attended_length, causal)
    head = _head(model, tokens if loss != "chunked" or labelled_tokens is None else labelled_tokens)
    ranks = dict.fromkeys(target_modules, lora_r) if lora_r else {}
    products = {
        name: 2 * tokens * (rows * columns + ranks.get(name, 0) * (rows + columns)) for name, (rows, columns) in model.matrices().items()
    }
    layer = sum(products.values()) + attention

    # Nothing before the first layer is trained by LoRA, but with checkpointing PEFT and Unsloth make its inputs need gradients.
    first = trains_base or trains_embeddings or checkpoints
    backward = _layer_backward(model, tokens, attention, ranks, trains_base, first, flash)
    backward += (layers - 1) * _layer_backward(model, tokens, attention, ranks, trains_base, True, flash) + head * (1 + trains_embeddings)

    again = checkpoints * layer
    if checkpoints and not use_reentrant:
        again -= 2 * tokens * model.hidden_size * (ranks.get("down_proj") or model.intermediate_size)
    if tiled_mlp:
        again += sum(products[name] for name in MLP if name in products)
    forward, recomputation = layers * layer + head, layers * again + (head if loss == "chunked" else 0)
    return {"forward": forward, "backward": backward, "recomputation": recomputation, "total": forward + backward + recomputation,
            "model": forward + backward, "attention": layers * attention * (1 + (2.5 if flash else 2) + checkpoints)}  # fmt: skip


def _head(model, tokens):
    return 2 * tokens * model.vocab_size * model.hidden_size


def _attention(model, tokens, attended_length, causal):
    """QK^T and AV of one layer. Grouping changes nothing: every query head meets every position."""
    return 2 * 2 * tokens * model.query_size * ((attended_length + 1) / 2 if causal else attended_length)


def _layer_backward(model, tokens, attention, ranks, trains_base, input_gradients, flash):
    """FLOPs of the gradients in one layer. A product is differentiated by its input only where the input, or what made it, is trained."""
    shapes = model.matrices()

    def matrix(name, needed):
        rows, columns = shapes[name]
        base, adapter = rows * columns * (needed + trains_base), 0
        if r := ranks.get(name):  # by B and by Ax, by A and by x
            adapter = r * (2 * rows + (1 + needed) * columns)
        return 2 * tokens * (base + adapter)

    def trained(*names):
        return trains_base or any(name in ranks for name in names)

    query, key, value = (input_gradients or trained(name) for name in ATTENTION[:3])
    attended = query or key or value
    middle = input_gradients or attended or trained("o_proj")  # the residual stream after attention
    wide = middle or trained("gate_proj", "up_proj")
    needed = dict.fromkeys(ATTENTION[:3], input_gradients) | {"o_proj": attended, "gate_proj": middle, "up_proj": middle, "down_proj": wide}
    # Half of `attention` is one product. Backward has dQ, dK, dV and that of the scores; the flash kernel makes all and QK^T once more.
    kernels = 5 * attended if flash else query + key + value + (query or key)
    return kernels * attention / 2 + sum(matrix(name, needed[name]) for name in shapes)


def utilisation(method, accelerator, hidden_size):
    """(share of the peak that a step's FLOPs reach, where the number comes from).

    method: "pretraining", "full", "lora" or "qlora"; accelerator: a name such as "H200". Measured on that GPU where
    bench/results/gpu.json says so, else published runs, on that GPU or on an H100. Raises `Refusal` for a file that cannot be read or
    says no such share.
    """
    try:
        measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
        found = measured.get("utilisation", {}).get(method, {}).get(accelerator)
        if found is not None and not 0 < found <= 1:
            raise ValueError(f"{found!r} is no share between 0 and 1")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        form = '{"utilisation": {"qlora": {"H200": 0.41}}}'
        raise Refusal(f"{MEASURED} is not of the form {form}: {error}; mend or remove it") from None
    if found:
        return found, f"measured on {accelerator}, bench/results/gpu.json"
    published = UTILISATION[method]
    whose, shares = next((found for name, found in published.items() if accelerator.startswith(name)), published["H100"])
    widths = sorted(shares)
    below = max((width for width in widths if width <= hidden_size), default=widths[0])
    above = min((width for width in widths if width >= hidden_size), default=widths[-1])
    between = log(hidden_size / below) / log(above / below) if above > below else 0
    return shares[below] + between * (shares[above] - shares[below]), whose


def computing_seconds(flops, peak_tflops, utilisation, accelerator):
    """Seconds for the FLOPs of `step_flops` at a share of the GPU's peak, of which attention reaches what FlashAttention-2 does at most."""
    attention = min(utilisation, FLASH_SHARE.get(accelerator.split("-")[0], utilisation))
    return ((flops["total"] - flops["attention"]) / utilisation + flops["attention"] / attention) / (peak_tflops * 1e12)


def communication_bytes(
    zero_stage, gpus, trained_parameters, base_parameters=0, gradient_accumulation_steps=1, recomputes=True, layer_parameters=0,
    max_reuse_distance=1e9, bytes_per_value=2,
):  # fmt: skip
    """Bytes that one GPU sends in an optimiser step: {"gradients", "weights", "total"}.

    A ring of N GPUs sends (N-1)/N of the values to gather or to reduce-scatter them, and twice that to all-reduce them (ZeRO paper,
    section 7). Stage 0: gradients all-reduced once a step. Stages 1, 2: DeepSpeed 0.19.8 all-reduces them too, in buckets of which each
    rank keeps its part (use_multi_rank_bucket_allreduce), where the paper reduce-scatters: once a step in stage 1, in each micro-batch in
    stage 2; the updated weights are gathered. Stage 3, in each micro-batch: all weights, frozen `base_parameters` too, are gathered for
    forward and for backward, and gradients reduce-scattered. Weights that the trace of modules needs again within `max_reuse_distance`
    parameters (stage3_max_reuse_distance) stay: the last layers until their backward, and each layer from its recomputation to its
    backward, if one of `layer_parameters` is not larger than half of that.
    """
    ring, steps = (gpus - 1) / gpus * bytes_per_value, gradient_accumulation_steps
    gradients, weights = {0: 2, 1: 2, 2: 2 * steps, 3: steps}[zero_stage] * ring * trained_parameters, 0
    if zero_stage == 3:
        parameters = trained_parameters + base_parameters
        stay = min(parameters, max_reuse_distance / (3 if recomputes else 2))  # until backward, what follows is walked twice or thrice
        gathers = 3 if recomputes and 2 * layer_parameters > max_reuse_distance else 2
        weights = steps * ring * (gathers * parameters - stay)
    elif zero_stage:
        weights = ring * trained_parameters
    return {"gradients": gradients, "weights": weights, "total": gradients + weights}


def sequence_parallel_bytes(model, tokens, sequence_parallel_size, recomputes=True, bytes_per_value=2):
    """Bytes one GPU sends for Ulysses sequence parallelism over the `tokens` that it holds itself (DeepSpeed's ulysses_sp.py).

    Each layer exchanges queries, keys, values and the attention's output all to all, sending (P-1)/P of them, in the forward pass, in the
    backward pass and in recomputation. Where there are fewer key heads than GPUs, keys and values are repeated to one head a GPU.
    """
    kv_heads = max(model.num_key_value_heads, sequence_parallel_size)
    values = 2 * (model.num_attention_heads + kv_heads) * model.head_dim
    passes = 3 if recomputes else 2
    share = (sequence_parallel_size - 1) / sequence_parallel_size
    return passes * model.num_hidden_layers * tokens * values * share * bytes_per_value


def step_seconds(computing, sent_bytes=0, link_gb_per_s=None, overlapped=True):
    """Seconds of a step that computes for `computing` seconds while one GPU sends so many bytes.

    `overlapped` communication hides behind computation and the longer of both counts; else they add up. A share of the peak that was
    measured on several GPUs holds their communication already.
    """
    sending = sent_bytes / (link_gb_per_s * 1e9) if sent_bytes else 0.0
    return max(computing, sending) if overlapped else computing + sending


def optimizer_seconds(weight_bytes, state_bytes, gradient_bytes, memory_gb_per_s):
    """Seconds of one optimiser step, which memory bounds: weights and states are read and written, gradients read for norm and update.

    Bytes are what this GPU updates (its share under ZeRO), masters among the states. At the memory's peak, so a lower bound.
    """
    return (2 * (weight_bytes + state_bytes) + 2 * gradient_bytes) / (memory_gb_per_s * 1e9)


def offloaded_optimizer_seconds(parameters, parameters_per_gpu, pcie_gb_per_s=25, host_memory_gb_per_s=100):
    """Seconds of AdamW on the host: gradients come and weights go over PCIe in 16 bit, while `parameters` of all GPUs share its memory.

    The host reads weight, gradient and two moments in fp32 and writes three of them and a 16-bit copy: 30 bytes a parameter. Nothing
    overlaps and memory runs at the bandwidth given: right within a factor of about two.
    """
    return 2 * 2 * parameters_per_gpu / (pcie_gb_per_s * 1e9) + 30 * parameters / (host_memory_gb_per_s * 1e9)
