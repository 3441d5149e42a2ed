"""A GPT from scratch: pre-LN, learned positions, biased linear layers, GELU, the output layer tied to the token embeddings.

Parameters have GPT-2's names (Radford et al. 2019), so that `gpt_export` only has to transpose matrices.
"""

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from common import chunked_loss, dimensions
from common.refusal import Refusal


@dataclass(frozen=True)
class Shape:
    """Widths in features, `n_positions` in tokens. `vocab_size` ids are used; the embeddings have `padded_vocab_size` rows."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    dropout: float = 0.0
    attention: str = "sdpa"  # "flash": FlashAttention or an error; "sdpa": what PyTorch finds best
    gradient_checkpointing: bool = False  # each layer is computed again in the backward pass

    padded_vocab_size = property(lambda self: dimensions.padded(self.vocab_size))


def require_attention(shape, dtype):
    """Refuse ATTENTION = "flash" where this machine has no FlashAttention for this dtype, head width and dropout."""
    if shape.attention != "flash":
        return
    some = torch.zeros(1, 1, 8, shape.n_embd // shape.n_head, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings(action="ignore"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            F.scaled_dot_product_attention(some, some, some, dropout_p=shape.dropout, is_causal=True)
    except RuntimeError as error:
        raise Refusal(
            f'ATTENTION is "flash", and this machine cannot compute it for heads of width {some.shape[-1]} in {str(dtype)[6:]} '
            f'with dropout {shape.dropout} ({str(error).splitlines()[0]}); set ATTENTION = "sdpa", which takes the best there is'
        ) from None


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, width = shape, shape.n_embd
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.dropped(self.attend(self.ln_1(x)))
        return x + self.dropped(self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)))))

    def attend(self, x):
        rows, length, width = x.shape
        heads = self.attn["c_attn"](x).view(rows, length, 3, self.shape.n_head, -1).permute(2, 0, 3, 1, 4)
        only = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if self.shape.attention == "flash" else nullcontext()
        with only:
            dropout = self.shape.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        return self.attn["c_proj"](y.transpose(1, 2).reshape(rows, length, width))

    def dropped(self, x):
        return F.dropout(x, self.shape.dropout, self.training) if self.shape.dropout else x


class GPT(nn.Module):
    """`forward(input_ids)` gives logits [rows, length, vocab_size]; with labels the loss, and no logits ever exist whole."""

    def __init__(self, shape):
        super().__init__()
        self.shape, width = shape, shape.n_embd
        self.wte, self.wpe = nn.Embedding(shape.padded_vocab_size, width), nn.Embedding(shape.n_positions, width)
        self.h = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self):
        """N(0, 0.02), biases 0, LayerNorm 1 and 0; what adds to the residual stream is divided by sqrt(2 x layers), as in GPT-2."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, 0.0, 0.02 / (math.sqrt(2 * self.shape.n_layer) if residual else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def hidden(self, input_ids):
        """int64 [rows, length] -> the last LayerNorm's output [rows, length, n_embd]."""
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1], device=input_ids.device))
        x = F.dropout(x, self.shape.dropout, self.training) if self.shape.dropout else x
        for layer in self.h:
            x = checkpoint(layer, x, use_reentrant=False) if self.shape.gradient_checkpointing and self.training else layer(x)
        return self.ln_f(x)

    def forward(self, input_ids, labels=None, num_items_in_batch=None):
        """labels: int64 [rows, length], the token that comes after each of `input_ids`, -100 where none is learned.

        The loss is the mean over labels in nats; with `num_items_in_batch` their sum over that number, which counts the labels of a
        whole optimiser step, so that every token of it weighs the same.
        """
        x = self.hidden(input_ids)
        if labels is None:
            return {"logits": F.linear(x, self.wte.weight)[..., : self.shape.vocab_size]}
        total = chunked_loss.summed(x.flatten(0, 1), self.wte.weight, labels.flatten(), self.shape.vocab_size)
        count = (labels != chunked_loss.IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}
