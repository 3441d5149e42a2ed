"""Bytes on disk and in host memory that a run needs beside its GPUs."""

from common import model_states

TOKENIZER_BYTES = 17.3e6  # Llama 3's tokenizer.json with its 128,256 tokens; Qwen's has 11.4e6
SMALL_FILES_BYTES = 4e4  # of a checkpoint: README, configs, states of random numbers and of the trainer, manifest
PROCESS_BYTES = 4e9  # of a rank: Python, torch with CUDA's libraries, the Trainer, without weights, which are mapped and moved


def zero_bytes(trained_parameters, optim, zero_stage, gpus):
    """Of the files that DeepSpeed writes for all ranks: fp32 master weights and moments, under ZeRO-1 and 2 also bf16 weights.

    engine.save_checkpoint: one *_optim_states.pt a rank; ZeRO-3's *_model_states.pt hold no weights of a model trained whole.
    """
    states = gpus * model_states.optimizer_bytes(trained_parameters, optim, zero_stage, gpus)
    return states + (2 * trained_parameters if zero_stage < 3 else 0)


def frozen_in_checkpoint_bytes(model, load_in_4bit):
    """Of what DeepSpeed saves of a frozen base though it is told to leave it out, once a checkpoint.

    It leaves out by the names of parameters (engine.module_state_dict). An output layer tied to the embeddings is saved by its
    second name, under ZeRO-1 and 2 whole; the scales and tables of NF4 are no parameters.
    """
    scales = model_states.nf4_bytes(model) - model.linear_parameters() / 2 if load_in_4bit else 0
    return scales + 2 * model.vocab_size * model.hidden_size * model.tie_word_embeddings


def checkpoint_bytes(trained_parameters, optim, zero_stage, adapter=True, tokenizer_bytes=TOKENIZER_BYTES, gpus=1, small=0, model=None,
                     load_in_4bit=False):  # fmt: skip
    """Of one checkpoint-N/: what is trained, the optimiser's states, tokenizer, small files.

    In one process 12 bytes a parameter (fp32 weight and Adam's moments), 6 with an 8-bit optimiser; under ZeRO-1 and 2 16, under
    ZeRO-3 14 (bf16 weights, fp32 master weights, moments; the first two write the bf16 weights twice). small: as in
    `model_states.optimizer_bytes`. The frozen base of an adapter is not in it, but for what `frozen_in_checkpoint_bytes` says of `model`.
    """
    others = tokenizer_bytes + SMALL_FILES_BYTES
    if not zero_stage:
        return 4 * trained_parameters + model_states.optimizer_bytes(trained_parameters, optim, 0, 1, small=small) + others
    if adapter and model and zero_stage < 3:
        others += frozen_in_checkpoint_bytes(model, load_in_4bit)
    return 2 * trained_parameters + zero_bytes(trained_parameters, optim, zero_stage, gpus) + others


def kept_bytes(one, save_total_limit, best=True):
    """Of all checkpoints at the worst moment: those that are kept, the `best` one where one is, and the one being written."""
    return one * (save_total_limit + 1 + best)


def final_model_bytes(trained_parameters, adapter=True, zero_stage=0, tokenizer_bytes=TOKENIZER_BYTES):
    """Of final_model/: the adapter in fp32 (bf16 under DeepSpeed), or the whole model in bf16."""
    return trained_parameters * (4 if adapter and not zero_stage else 2) + tokenizer_bytes


def merged_model_bytes(model, tokenizer_bytes=TOKENIZER_BYTES):
    """Of merged_model/ in 16 bit; the hub's copy of a bf16 model takes as much."""
    return model.parameters() * 2 + tokenizer_bytes


def cache_bytes(tokens):
    """Of the tokenised cache: 4 for the id and 4 for the label of a token."""
    return tokens * 8


def host_bytes(ranks, process_bytes=PROCESS_BYTES, kept_activations_bytes=0, offloaded_bytes=0):
    """Of host memory on one node: of each of its `ranks` the process, the activations moved there and the offloaded states.

    Weights on their way to a GPU are pages of a mapped file, which the system gives back. Paged optimiser states come here only
    while a GPU is full, and are not counted.
    """
    return ranks * (process_bytes + kept_activations_bytes + offloaded_bytes)
