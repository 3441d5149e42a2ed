"""Bytes of activations on one GPU: what a training step keeps for its backward pass, and what it needs for a moment.

Nothing here is fitted. Each function counts, operation by operation, the tensors that PyTorch's autograd or Unsloth's kernels save:
2 bytes a feature in bf16, 4 in fp32. `tokens` are those of one micro-batch on one GPU, padding included: batch size x length.
Full fine-tuning under Unsloth runs transformers' modules (compiled, which keeps less): counted as "torch".
"""

from dataclasses import dataclass, replace

from common.dimensions import MLP
from common.hardware import GIB

MIB = 2**20
OFFLOADED_ABOVE = 2 * MIB  # Unsloth leaves a smaller layer input on the GPU


@dataclass(frozen=True)
class Training:
    """How the layers are run and what of them is trained: decides which tensors autograd keeps."""

    kernels: str = "torch"  # "torch": transformers' modules; "unsloth": its fused kernels, with an adapter only; "liger": Liger's
    lora_r: int = 0  # 0: the matrices themselves are trained
    target_modules: tuple = ()  # q_proj ... down_proj that carry an adapter
    dropout: float = 0.0  # of the adapter, or, in GPT-2, of the residual stream
    autocast: bool = True  # adapter in fp32 under bf16 autocast, as the Trainer's bf16 runs it; False: adapter in bf16
    tiled_mlp: bool = False  # Unsloth's: the MLP in tiles, each computed again for its backward pass
    cpu: bool = False  # as PyTorch's CPU operations do it, where a test counts: masks as wide as tensors, attention without fp32 sums
    eager_length: int = 0  # row length where attention is "eager" and keeps length x length scores; 0: flash-like SDPA

    full = property(lambda self: not self.lora_r)
    copies_inputs = property(lambda self: self.autocast or self.dropout > 0)  # PEFT's adapters, each for itself
    mask_bytes = property(lambda self: (4 if self.lora_r and self.autocast else 2) if self.cpu and self.kernels == "torch" else 1)
    fused = property(lambda self: self.kernels == "unsloth" and self.lora_r > 0)
    liger = property(lambda self: self.kernels == "liger")  # its norms and SwiGLU, which keep their inputs and write gradients over them
    lean_norms = property(lambda self: self.fused or self.liger)


def _norm(width, training, rows=1):
    """RMSNorm. transformers: fp32 copy of the input, 1/rms in fp32, and, where its weight is trained, the normalised bf16.
    Unsloth: the input as it is and 1/rms."""
    return 4 * rows + (2 * width if training.lean_norms else 4 * width + 2 * width * training.full)


def _adapters(names, training):
    return sum(name in training.target_modules for name in names) if training.lora_r else 0


def _inputs(width, names, training):
    """What linear layers fed by one tensor of `width` keep of it. A trained matrix keeps its input, one for all; a frozen one
    nothing. An adapter keeps what went into A and into B; under autocast PEFT casts the input for each adapter anew, with
    dropout each has its own copy and mask. Unsloth's kernels keep the input once, and the masks."""
    adapters = _adapters(names, training)
    masks = adapters * training.mask_bytes * width * (training.dropout > 0)
    if training.full or (training.fused and adapters == len(names)):
        return 2 * width + masks
    copies = adapters if training.copies_inputs else min(adapters, 1)
    return 2 * width * copies + masks + 2 * training.lora_r * adapters


def _attention(model, training):
    """q, k, v after rotary, the output and its logsumexp; rotary itself keeps only its table. Qwen3's norms over heads come before.
    o_proj's input is the output: counted once where both keep the same tensor."""
    q, k, heads, kv_heads = model.query_size, model.key_value_size, model.num_attention_heads, model.num_key_value_heads
    kept = 2 * (q + 2 * k) + 2 * q + 4 * heads + _inputs(q, ("o_proj",), training)
    if training.full or (_adapters(("o_proj",), training) and (training.fused or not training.copies_inputs)):
        kept -= 2 * q
    if model.qk_norm:
        kept += _norm(q, training, heads) + _norm(k, training, kv_heads)
    if training.eager_length:  # softmax in fp32 and its bf16 copy in place of logsumexp; keys and values repeated for each query head
        kept += heads * (6 * training.eager_length - 4) + (4 * (q - k) if q != k else 0)
    return kept


def _mlp_fused(training):
    return training.fused and _adapters(MLP, training) == len(MLP)  # Unsloth's kernel takes all three or none


def _mlp(model, training):
    """SwiGLU: gate, silu(gate), up, and their product where the down projection keeps it; Unsloth computes the last two again.
    GELU in one kernel: x; as transformers' gelu_new writes it: x, x/2, tanh, 1 + tanh."""
    wide = model.intermediate_size
    if _mlp_fused(training):
        return 2 * 2 * wide + _inputs(wide, ("down_proj",), training) - 2 * wide
    kept = (2 if training.liger else 3) if model.gated else (1 if model.fused_gelu else 4)
    return kept * 2 * wide + _inputs(wide, ("down_proj",), training)


def _whole_mlp(model, training):
    return _inputs(model.hidden_size, ("gate_proj", "up_proj"), training) + _mlp(model, training)


def _mlp_peak(model, training):
    """(backward, forward): bytes a token that live for a moment in the MLP beside what it keeps.

    Backward, at the product of gate and up: the gradients of the product and of both factors, while the kept product is gone.
    Forward, in the down projection's adapter under autocast: the product, PEFT's fp32 copy of it, and three results of `hidden_size`.
    Unsloth writes gradients over the kept tensors and needs one more as wide as the MLP, going forward and back.
    """
    hidden, wide = model.hidden_size, model.intermediate_size
    if _mlp_fused(training):
        return 2 * wide, 2 * wide + 2 * hidden
    adapted = _adapters(("down_proj",), training)
    if training.liger:
        return 2 * wide, 2 * wide * (not training.full) + 2 * hidden
    backward = (4 if model.fused_gelu else 6) * wide - 2 * wide * bool(training.full or adapted)
    forward = 2 * wide * (not training.full) + 2 * hidden
    if adapted and training.autocast:
        forward += 4 * wide + (4 * wide if training.dropout else 4 * hidden)
    return backward, forward


def _keeps_input(model, training):
    return model.family == "gpt2" or training.lean_norms  # as the input of the first norm; transformers' RMSNorm keeps an fp32 copy


def layer_bytes_per_token(model, training=Training()):  # noqa: B008
    """What one decoder layer keeps for its backward pass, in bytes a token, its own input included where it is kept."""
    hidden = model.hidden_size
    if model.family == "gpt2":  # LayerNorm keeps its input and, on a GPU in fp32, mean and deviation
        norms = 2 * (2 * hidden + 8) + (2 * training.mask_bytes * hidden if training.dropout and training.full else 0)
    else:
        norms = 2 * _norm(hidden, training)
    attention = _inputs(hidden, ("q_proj", "k_proj", "v_proj"), training) + _attention(model, training)
    return norms + attention + (2 * hidden if training.tiled_mlp else _whole_mlp(model, training))  # tiles keep their input alone


def _adapter_copies(model, training):
    """bf16 copies of one layer's adapter that autocast makes and the backward pass keeps, in bytes. Unsloth keeps none."""
    if not training.lora_r or training.fused or not training.autocast:
        return 0
    return 2 * model.lora_parameters(training.lora_r, training.target_modules) / model.num_hidden_layers


def kept_bytes(model, tokens, gradient_checkpointing, training=Training()):  # noqa: B008
    """On the GPU at the end of the forward pass, without the last norm and the logits: the layers' tensors and what all of them share.

    gradient_checkpointing: "none" keeps every layer's tensors; "true" each layer's input in bf16; "unsloth" moves these to host
    memory but for the last layer's, beside two buffers of one input through which they come back.
    """
    shared = 4 * model.head_dim  # sine and cosine of rotary
    if model.family == "gpt2":  # the mask over the embeddings
        shared = training.mask_bytes * model.hidden_size if training.dropout and training.full else 0
    if gradient_checkpointing == "none":
        layer = tokens * layer_bytes_per_token(model, training) + _adapter_copies(model, training)
        return model.num_hidden_layers * layer + shared * tokens
    moved = gradient_checkpointing == "unsloth" and 2 * model.hidden_size * tokens > OFFLOADED_ABOVE
    return (min(model.num_hidden_layers, 3) if moved else model.num_hidden_layers) * 2 * model.hidden_size * tokens + shared * tokens


def host_bytes(model, tokens, gradient_checkpointing):
    """Pinned host memory for the layer inputs that "unsloth" checkpointing moves there, in the first step the last layer's too.
    PyTorch gives pinned memory in powers of two."""
    one = 2 * model.hidden_size * tokens
    if gradient_checkpointing != "unsloth" or one <= OFFLOADED_ABOVE:
        return 0
    return model.num_hidden_layers * (1 << (one - 1).bit_length())


def _attention_backward(model, training):
    """Bytes a token that live for a moment in the backward pass of flash attention: the gradients of its output and of q, k, v; on a GPU
    also an fp32 sum for that of q, one fp32 a head, and, where heads share keys, gradients of k and v for every head."""
    q, k = model.query_size, model.key_value_size
    on_gpu = 4 * q + 4 * model.num_attention_heads + (4 * q if q != k else 0)
    return 2 * q + 2 * (q + 2 * k) + on_gpu * (not training.cpu)


def _norm_backward(model, training):
    """Bytes a token in the backward pass of transformers' RMSNorm: five fp32 tensors. LayerNorm and Unsloth's make the gradient alone."""
    return 2 * model.hidden_size if model.family == "gpt2" or training.lean_norms else 20 * model.hidden_size


def working_bytes(model, tokens, gradient_checkpointing, training=Training()):  # noqa: B008
    """Beside what is kept, at the peak of one layer's backward pass: its own tensors where they are computed again, and gradients.

    The peak mostly lies in the MLP (see `_mlp_peak`), with wide queries in attention, when the MLP's tensors are gone. Beside it live
    tensors of the stream, `hidden_size` wide: the gradient of the layer's output, the output computed again, the residual. The gradient
    of one matrix is made before it is added to the others. A tiled MLP works on hidden_size tokens at a time, each tile computed again;
    the gradient of its input is there for all.
    """
    hidden, wide = model.hidden_size, model.intermediate_size
    stream, matrix = 2 * hidden, 2 * hidden * wide * training.full
    again = gradient_checkpointing != "none"
    layer, mlp = layer_bytes_per_token(model, training), _whole_mlp(model, training)
    own, ends = (layer - stream * _keeps_input(model, training)) * again, stream * (1 + again)
    backward, forward = _mlp_peak(model, training)
    norm = stream + 8 if model.family == "gpt2" else _norm(hidden, training)  # the one before the MLP
    before = own - (stream if training.tiled_mlp else mlp) + ends  # when the MLP's own tensors are gone
    in_norm = before - 2 * hidden * (training.full and model.family != "gpt2") + _norm_backward(model, training)
    in_attention = before - norm + _attention_backward(model, training)
    if training.tiled_mlp:
        in_mlp = tokens * (own + ends + stream) + min(tokens, hidden) * (mlp + max(backward, forward) + stream) + matrix
    else:
        frames = stream * (again + 2 * (not again) + 2 * (not training.full and not training.fused))
        down = max(tokens * backward, tokens * 2 * wide + matrix)
        in_mlp = tokens * own + max(down + tokens * ends, tokens * (forward + frames))
    return _adapter_copies(model, training) * again + max(in_mlp, tokens * in_norm, tokens * in_attention)


def loss_bytes(tokens, vocab_size, hidden_size, loss, free_bytes=None, trains_head=False):
    """Logits, loss and their gradients at their peak. `trains_head`: the output layer (or the tied embeddings) has a gradient; counted
    is the one being made, not the one it is added to.

    "whole" (transformers): log-softmax, its gradient and the gradient before it, all fp32: 12 bytes a logit.
    "chunked" (TRL's chunked_nll): 256 tokens at a time; logits, log-softmax and, for its entropy, probabilities and their product, all
    fp32: 16 bytes a logit; the hidden states sorted, and their gradient.
    "gpt" (`chunked_loss`): 1024 tokens at a time; fp32 logits that become their gradient and its bf16 copy, 6 bytes a logit; the weight's
    gradient in fp32 and one chunk's; the gradient of the hidden states, scaled into a second one going back.
    "unsloth" (its fused linear loss): gradients are made going forward, in the buffer of the logits; that of the hidden states is
    scaled into a second one going back. With a frozen output layer and 4096 tokens or more the logits are also cut along the
    vocabulary, into 16384 columns: 256 MiB. Else whole rows, see `unsloth_rows`. `free_bytes`: of the GPU, when the loss is computed.
    """
    head, states = 2 * vocab_size * hidden_size * trains_head, 2 * hidden_size * tokens
    if loss == "whole":
        return max(12 * vocab_size * tokens, 2 * vocab_size * tokens + states + head)
    if loss == "chunked":
        return 16 * vocab_size * min(tokens, 256) + 2 * states + head
    if loss == "gpt":
        return 6 * vocab_size * min(tokens, 1024) + 3 * head + 2 * states
    rows, columns = unsloth_rows(tokens, vocab_size, hidden_size, free_bytes), vocab_size
    if tokens >= 4096 and vocab_size > 2 * 16384 and not trains_head:
        rows, columns = 4096, 16384
        if free_bytes is not None:
            rows = max(1, min(rows, int(min(256 * MIB, free_bytes / 2) // (4 * columns))))
    return 2 * states + 2 * head + 4 * rows * (columns + hidden_size)


def unsloth_rows(tokens, vocab_size, hidden_size, free_bytes=None):
    """Tokens in one chunk of Unsloth's fused loss: tokens x H / V, at least 512 and at most 4096, powers of two, within its budget."""
    budget = min(2 * GIB, free_bytes / 2) if free_bytes is not None else 2 * GIB

    def power_below(x):
        return 1 << max(int(x).bit_length() - 1, 0)

    least = min(max(power_below(512 * 151936 / vocab_size), 512), 4096)
    rows = min(max(power_below(tokens * hidden_size / vocab_size), least), 4096)
    return max(1, min(rows, max(int(budget // (4 * vocab_size)), 2), tokens))


def evaluation_bytes(model, tokens, loss, training=Training(), free_bytes=None):  # noqa: B008
    """At the peak of an evaluation of `tokens` tokens, which keeps nothing: logits, their fp32 copy and its log-softmax, 10 bytes a logit
    (or what a chunked loss needs), or one layer's MLP: its factors, their product, and the stream. In tiles of hidden_size tokens the MLP
    needs less than attention: queries, keys and values, the first two rotated, and the output."""
    hidden, wide = model.hidden_size, model.intermediate_size
    tile = min(tokens, hidden) if training.tiled_mlp else tokens
    of_layer = tile * (6 * wide + (4 * wide if training.lora_r and training.autocast else 0))
    if training.tiled_mlp:
        of_layer = max(of_layer, tokens * 6 * (model.query_size + model.key_value_size))
    logits = 10 * model.vocab_size * tokens if loss == "whole" else loss_bytes(tokens, model.vocab_size, hidden, loss, free_bytes)
    return max(logits + 2 * hidden * tokens, 8 * hidden * tokens + of_layer)


def last_norm_bytes(model, tokens, training=Training()):  # noqa: B008
    """What the last norm keeps, and its output: they live until the backward pass reaches the last layer."""
    hidden = model.hidden_size
    return tokens * (2 * hidden + (2 * hidden + 8 if model.family == "gpt2" else _norm(hidden, training)))


def peak(model, tokens, gradient_checkpointing, loss, training=Training(), tiled_mlp=False, free_bytes=None, trains_head=None):  # noqa: B008
    """{"activations kept", "one layer at work", "logits and loss"} in bytes, and "total", of which the last two never meet: the loss
    is at its peak when the backward pass begins, a layer after the logits are gone. total = kept + the larger of the two.
    A tied output layer's gradient waits through the whole backward pass for that of the embeddings, which comes last, when nothing else
    is kept: with few tokens that is the peak, counted with the layer at work."""
    training, trains_head = replace(training, tiled_mlp=tiled_mlp), training.full if trains_head is None else trains_head
    waiting = 2 * model.vocab_size * model.hidden_size * (trains_head and model.tie_word_embeddings)
    kept = kept_bytes(model, tokens, gradient_checkpointing, training)
    work = working_bytes(model, tokens, gradient_checkpointing, training) + waiting
    rows = max(model.vocab_size, model.max_position_embeddings * model.learned_positions)
    work = max(work, waiting + 2 * model.hidden_size * (rows * training.full + tokens) - kept)
    free_bytes = None if free_bytes is None else max(free_bytes - kept, 0)
    logits = loss_bytes(tokens, model.vocab_size, model.hidden_size, loss, free_bytes, trains_head)
    logits += last_norm_bytes(model, tokens, training)
    logits = max(logits, tokens * (4 * model.hidden_size + _norm_backward(model, training)) + waiting)  # with few logits, the norm's own
    return {"activations kept": kept, "one layer at work": work, "logits and loss": logits, "total": kept + max(work, logits)}
