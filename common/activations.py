"""Bytes of activations on one GPU: what a training step keeps for its backward pass, and what it needs for a moment.

Nothing here is fitted. Each function counts, operation by operation, the tensors that PyTorch's autograd or Unsloth's kernels save:
2 bytes a feature in bf16, 4 in fp32. `tokens` are those of one micro-batch on one GPU, padding included: batch size x length.
Full fine-tuning under Unsloth runs transformers' modules (compiled, which can only lower the figure): counted as "torch".
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Training:
    """How the layers are run and what of them is trained: decides which tensors autograd keeps."""

    kernels: str = "torch"  # "torch": transformers' modules; "unsloth": its fused kernels, with an adapter only
    lora_r: int = 0  # 0: the matrices themselves are trained
    target_modules: tuple = ()  # q_proj ... down_proj that carry an adapter
    dropout: float = 0.0  # of the adapter, or, in GPT-2, of the residual stream
    autocast: bool = True  # adapter in fp32 under bf16 autocast, as the Trainer's bf16 runs it; False: adapter in bf16
    mask_bytes: float = 1  # of one feature in a dropout's mask on a GPU; on a CPU masks are as wide as what they multiply
    eager_length: int = 0  # row length where attention is "eager" and keeps length x length scores; 0: flash-like SDPA

    full = property(lambda self: not self.lora_r)
    fused = property(lambda self: self.kernels == "unsloth" and self.lora_r > 0)


def _norm(width, training, rows=1):
    """RMSNorm. transformers: fp32 copy of the input, 1/rms in fp32, and, where its weight is trained, the normalised bf16.
    Unsloth: the input as it is and 1/rms."""
    return 4 * rows + (2 * width if training.fused else 4 * width + 2 * width * training.full)


def _inputs(width, names, training):
    """What linear layers fed by one tensor of `width` keep of it. A trained matrix keeps its input, one for all; a frozen one
    nothing. An adapter keeps what went into A and into B; under autocast PEFT casts the input for each adapter anew, with
    dropout each has its own copy and mask. Unsloth's kernels keep the input once, and the masks."""
    adapters = sum(name in training.target_modules for name in names) if training.lora_r else 0
    masks = adapters * training.mask_bytes * width if training.dropout else 0
    if training.full:
        return 2 * width
    if training.fused:
        return (2 * width + masks) if adapters else 0
    copies = adapters if training.autocast or training.dropout else min(adapters, 1)
    return 2 * width * copies + masks + 2 * training.lora_r * adapters


def _attention(model, training):
    """q, k, v after rotary, the output and its logsumexp; rotary itself keeps only its table. Qwen3's norms over heads come before."""
    q, k, heads, kv_heads = model.query_size, model.key_value_size, model.num_attention_heads, model.num_key_value_heads
    kept = 2 * (q + 2 * k) + 2 * q + 4 * heads
    if model.qk_norm:
        kept += _norm(q, training, heads) + _norm(k, training, kv_heads)
    output_is_input = training.full or training.fused or (not training.autocast and not training.dropout)  # o_proj keeps the tensor that attention keeps
    projected = _inputs(q, ("o_proj",), training) - (2 * q if output_is_input and ("o_proj" in training.target_modules or training.full) else 0)
    if training.eager_length:  # softmax in fp32 and its bf16 copy; keys and values repeated for each query head
        kept += heads * (6 * training.eager_length - 4) + (4 * (q - k) if q != k else 0)
    return kept + projected


def _mlp(model, training):
    """SwiGLU: gate, silu(gate), up, and their product where the down projection keeps it; Unsloth computes the last two again.
    GELU as transformers' gelu_new writes it: x, x/2, tanh, 1 + tanh."""
    wide = model.intermediate_size
    inner = 2 * 2 * wide if training.fused else (3 if model.gated else 4) * 2 * wide
    down = training.dropout and "down_proj" in training.target_modules and training.mask_bytes * wide if training.fused else _inputs(wide, ("down_proj",), training)
    return inner + down


def _mlp_input(model, training):
    return _inputs(model.hidden_size, ("gate_proj", "up_proj"), training)


def layer_bytes_per_token(model, training=Training()):  # noqa: B008
    """What one decoder layer keeps for its backward pass, in bytes a token, its own input included where it is kept."""
    hidden = model.hidden_size
    if model.family == "gpt2":  # LayerNorm keeps its input and its mean and deviation; dropout after attention and after the MLP
        norms = 2 * (2 * hidden + 8) + (2 * training.mask_bytes * hidden if training.dropout and training.full else 0)
    else:
        norms = 2 * _norm(hidden, training)
    return norms + _inputs(hidden, ("q_proj", "k_proj", "v_proj"), training) + _attention(model, training) + _mlp_input(model, training) + _mlp(model, training)


def kept_bytes(model, tokens, gradient_checkpointing, training=Training()):  # noqa: B008
    """On the GPU at the end of the forward pass, without logits: the layers' tensors, rotary's table, the last norm and its output.

    gradient_checkpointing: "none" keeps every layer's tensors; "true" each layer's input in bf16; "unsloth" moves these to host
    memory but for the last layer's, beside two buffers of one input through which they come back.
    """
    hidden, layers = model.hidden_size, model.num_hidden_layers
    layer = layer_bytes_per_token(model, training) if gradient_checkpointing == "none" else 2 * hidden
    count = min(layers, 3) if gradient_checkpointing == "unsloth" else layers
    last_norm = 2 * hidden + 8 if model.family == "gpt2" else _norm(hidden, training)
    rotary = 0 if model.learned_positions else 4 * model.head_dim
    return tokens * (count * layer + rotary + last_norm + 2 * hidden)


def host_bytes(model, tokens, gradient_checkpointing):
    """Pinned host memory for the layer inputs that "unsloth" checkpointing moves there."""
    return 2 * model.hidden_size * tokens * (model.num_hidden_layers - 1) if gradient_checkpointing == "unsloth" else 0


def working_bytes(model, tokens, gradient_checkpointing, training=Training(), tiled_mlp=False):  # noqa: B008
    """Beside what is kept, at the peak of one layer's backward pass: its own tensors where they are computed again, and gradients.

    The peak lies in the MLP, at the product of gate and up: gradients of the product and of both factors live at once, the
    kept product does not any more. Unsloth writes gradients over the kept tensors and needs one more. With `tiled_mlp` the MLP runs
    in tiles of H tokens, each computed again; between tiles only its input, output and their gradients live.
    """
    hidden, wide = model.hidden_size, model.intermediate_size
    stream = 2 * hidden  # the gradient of the layer's output, which is also that of the residual
    gradients = 2 * wide if training.fused else 6 * wide - 2 * wide
    weight = 2 * hidden * wide * training.full  # the gradient of one matrix, before it is added to the others
    layer = layer_bytes_per_token(model, training)
    mlp = _mlp(model, training)
    checkpointed = gradient_checkpointing != "none"
    if tiled_mlp:
        mlp_all = mlp + _mlp_input(model, training)
        tile = min(tokens, hidden)
        return tokens * ((layer - mlp_all) * checkpointed + 4 * stream) + tile * (mlp_all + gradients + stream) + weight
    return tokens * (layer * checkpointed + stream * (1 + checkpointed)) + max(tokens * gradients, tokens * 2 * wide + weight)


def loss_bytes(tokens, vocab_size, hidden_size, loss, free_bytes=None, trains_head=False):
    """Logits, loss and their gradients at their peak. `trains_head`: the output layer (or the tied embeddings) has a gradient.

    "whole" (transformers): log-softmax, its gradient and the gradient before it, all fp32: 12 bytes a logit.
    "chunked" (TRL's chunked_nll): the same for 256 tokens at a time, and the hidden states sorted.
    "unsloth": rows of logits in a buffer of at most 2 GiB or half of `free_bytes`, fp32, and the gradient of the hidden states, twice.
    """
    head = 2 * vocab_size * hidden_size * trains_head
    states = 2 * hidden_size * tokens
    if loss == "whole":
        return max(12 * vocab_size * tokens, 2 * vocab_size * tokens + states + head)
    if loss == "chunked":
        return 16 * vocab_size * min(tokens, 256) + 4 * states + 2 * head
    rows = unsloth_rows(tokens, vocab_size, hidden_size, free_bytes)
    return 2 * states + 2 * head + rows * (4 * vocab_size + 4 * hidden_size)


def unsloth_rows(tokens, vocab_size, hidden_size, free_bytes=None):
    """Tokens in one chunk of Unsloth's fused loss: tokens x H / V, at least 512 and at most 4096, powers of two, within its budget."""
    budget = min(2 * GIB, free_bytes / 2) if free_bytes else 2 * GIB

    def power_below(x):
        return 1 << max(int(x).bit_length() - 1, 0)

    least = min(max(power_below(512 * 151936 / vocab_size), 512), 4096)
    rows = min(max(power_below(tokens * hidden_size / vocab_size), least), 4096)
    return max(1, min(rows, max(int(budget // (4 * vocab_size)), 2), tokens))


def peak(model, tokens, gradient_checkpointing, loss, training=Training(), tiled_mlp=False, free_bytes=None, trains_head=None):  # noqa: B008
    """{"activations kept", "one layer at work", "logits and loss"} in bytes, and "total", of which the last two never meet: the loss
    is at its peak when the backward pass begins, a layer after the logits are gone. total = kept + the larger of the two."""
    kept = kept_bytes(model, tokens, gradient_checkpointing, training)
    work = working_bytes(model, tokens, gradient_checkpointing, training, tiled_mlp)
    head = training.full if trains_head is None else trains_head
    logits = loss_bytes(tokens, model.vocab_size, model.hidden_size, loss, free_bytes, head)
    return {"activations kept": kept, "one layer at work": work, "logits and loss": logits, "total": kept + max(work, logits)}
