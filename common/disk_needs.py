"""Bytes on disk and in host memory that a run needs beside its GPUs."""

TOKENIZER_BYTES = 17e6  # Llama 3's tokenizer.json, the largest file of those that lie beside a checkpoint's tensors


def checkpoint_bytes(trained_parameters, optim, zero_stage, adapter=True, tokenizer_bytes=TOKENIZER_BYTES):
    """Bytes of one checkpoint: what is trained, the optimiser's states, tokenizer."""
    states = 2 * (1 + 4 / 256) if "8bit" in optim else 8
    weights = 4 + (2 if zero_stage else 0)
    return trained_parameters * (weights + states) + tokenizer_bytes


def kept_bytes(one, save_total_limit):
    """Bytes of all checkpoints at the worst moment: those kept, the best, and the one being written."""
    return one * (save_total_limit + 2)


def final_model_bytes(trained_parameters, adapter=True, zero_stage=0, tokenizer_bytes=TOKENIZER_BYTES):
    """Bytes of final_model/: the adapter in fp32 (bf16 under DeepSpeed), or the whole model in bf16."""
    return trained_parameters * (4 if adapter and not zero_stage else 2) + tokenizer_bytes


def merged_model_bytes(model, tokenizer_bytes=TOKENIZER_BYTES):
    """Bytes of merged_model/ in 16 bit; also of the hub's copy of a bf16 model."""
    return model.parameters() * 2 + tokenizer_bytes


def cache_bytes(tokens):
    """Bytes of the tokenised cache: 4 of the id and 4 of the label per token."""
    return tokens * 8


def host_bytes(ranks, process_bytes=4e9, kept_activations_bytes=0, offloaded_bytes=0):
    """Bytes of host memory on one node: of every rank the process, the activations moved there and the offloaded states."""
    return ranks * (process_bytes + kept_activations_bytes + offloaded_bytes)
