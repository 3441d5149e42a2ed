"""Cross-entropy of an output layer without its logits: some thousand tokens at a time, gradients made on the way forward."""

import torch

from common.token_rows import IGNORED

CHUNK = 1024  # tokens whose logits exist at once: 206 MB in fp32 with 50,304 columns


class _SummedCrossEntropy(torch.autograd.Function):
    """Each chunk's logits become their own gradient at once, as in Liger's and Unsloth's kernels, so nothing is computed again."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, vocab_size, wanted):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wanted else None
        of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted else None
        for start in range(0, len(hidden), CHUNK):
            states = hidden[start : start + CHUNK]
            loss, slopes = _loss_and_slopes(states, weight, labels[start : start + CHUNK], vocab_size, wanted)
            total += loss
            if wanted:
                torch.mm(slopes, weight, out=of_hidden[start : start + CHUNK])
                of_weight += slopes.t() @ states
            del slopes  # before the next chunk's exist
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, slope):
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * slope.to(of_hidden.dtype), of_weight.mul_(slope).to(ctx.dtype), None, None, None


def _loss_and_slopes(states, weight, labels, vocab_size, wanted):
    """The summed loss of a chunk, and its gradient by the logits in the dtype of `states`; in a function, so that logits die with it."""
    learned, places = labels != IGNORED, labels.clamp(min=0)[:, None]
    logits = (states @ weight.t()).float()
    logits[:, vocab_size:] = -torch.inf  # the rows that only fill up the matrix are no tokens
    top = logits.amax(1, keepdim=True)
    of_label = logits.gather(1, places) - top
    sums = logits.sub_(top).exp_().sum(1, keepdim=True)  # in place: they exist once
    loss = ((sums.log() - of_label)[:, 0] * learned).sum()
    if not wanted:
        return loss, None
    logits.div_(sums).scatter_add_(1, places, logits.new_full(places.shape, -1.0))
    return loss, logits.mul_(learned[:, None]).to(states.dtype)


def summed(hidden, weight, labels, vocab_size):
    """The cross-entropy in nats, summed over labels that are not -100: a scalar in fp32.

    hidden: [tokens, width]; weight: [at least vocab_size, width], of the same dtype; labels: int64 [tokens]. Memory beside the
    gradients: 6 bytes a logit of `CHUNK` tokens, and fp32 sums for the weight's gradient.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)  # inside, a weight always says it needs one
    return _SummedCrossEntropy.apply(hidden, weight, labels, vocab_size, wanted)
