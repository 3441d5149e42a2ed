"""On how many GPUs a model must lie, so that its weights and the keys and values of the longest row fit beside each other."""

import math

import answers
import room
import saved_model

from common import dimensions, hardware
from common.refusal import Refusal
from common.run_directory import read_json

USABLE = 0.92  # of a GPU's memory: the rest is the driver's, and what lies in fragments
NF4 = 0.53  # bytes of a quantised weight with its scales (QLoRA, double quantisation: 4.127 bits)
ITEM = 2  # bytes of a number on GPUs: bf16 or fp16
TEMPLATE = 64  # tokens that a chat template puts around a message, at most


def weight_bytes(found, load_in_4bit):
    """Bytes of a model's weights (`Dimensions`) as they are loaded on a GPU."""
    quantised = found.linear_parameters() if load_in_4bit else 0
    return quantised * NF4 + (found.parameters() - quantised) * ITEM


def of_one_gpu(found, weights, length, gpus):
    """Bytes on the fullest of `gpus` GPUs over which a model's layers lie, with one row of `length` tokens."""
    share = math.ceil(found.num_hidden_layers / gpus) / found.num_hidden_layers
    table = found.vocab_size * found.hidden_size * ITEM * (gpus > 1)  # embeddings or output layer lie whole on one of them
    needs = room.Needs.of(found, ITEM, share)
    return weights * share + table + needs.bytes(1, length, min(length, room.READ)) + room.FOR_THE_REST


def gpus_per_model(found, weights, length, memory, gpus):
    """The fewest of `gpus` GPUs, the smallest with `memory` bytes, that hold a model and one row of `length` tokens; else all of them.

    Whether it then fits is seen by trying. A row is taken to be read in pieces (`room.READ`), as it is where memory is short.
    """
    return next((n for n in range(1, gpus + 1) if of_one_gpu(found, weights, length, n) <= USABLE * memory), gpus)


def room_for_weights(found, weights, length, memories):
    """{GPU: bytes of weights that it may hold}, accelerate's max_memory, for GPUs of `memories` bytes: what a row of `length` leaves.

    At least an even share with one layer more, for a model that hardly fits is to be tried.
    """
    beside = of_one_gpu(found, 0, length, len(memories))
    even = weights / len(memories) + weights / found.num_hidden_layers
    return {n: int(max(USABLE * memory - beside, even)) for n, memory in enumerate(memories)}


def needed(run, options, rows):
    """(GPUs per model, accelerate's max_memory or None for one GPU) for a run's rows, on the GPUs that this process may use.

    Raises `Refusal` where --gpus-per-model asks for more than there are.
    """
    memories = [gpu.memory_gib * hardware.GIB for gpu in hardware.gpus()]
    asked = options.gpus_per_model
    if asked != "auto" and asked > max(1, len(memories)):
        raise Refusal(f"--gpus-per-model is {asked}, and there are {len(memories) or 'no'} GPUs for it here; take fewer, or auto")
    unknown = asked == "auto" and any(map(math.isnan, memories))  # memory that is shared with the host
    if asked == 1 or len(memories) < 2 or unknown:
        return 1, None
    try:
        base = saved_model.base_of(run)
        found = dimensions.read(base.source, base.revision)
    except Refusal:  # no base, or dimensions that nobody knows: an explicit number is obeyed
        return (1, None) if asked == "auto" else (asked, {n: int(USABLE * memory) for n, memory in enumerate(memories[:asked])})
    weights = weight_bytes(found, saved_model.four_bit(run, options.load_in_4bit, base))
    length = longest(run, rows) + answers.most_new(options.max_new_tokens, longest_reference(run, rows))
    count = asked if asked != "auto" else gpus_per_model(found, weights, length, min(memories), len(memories))
    return count, room_for_weights(found, weights, length, memories[:count]) if count > 1 else None


def longest(run, rows):
    """Tokens that the longest row can have: as many as its text has bytes, but no more than the run's MAX_SEQ_LENGTH."""
    return _bounded(run, max(sum(TEMPLATE + len(message["content"].encode()) for message in row.messages) for row in rows))


def longest_reference(run, rows):
    """Tokens that the longest reference answer can have, as `longest`: no tokenizer is loaded before the GPUs are divided."""
    return _bounded(run, max(len(row.reference.encode()) for row in rows))


def _bounded(run, count):
    return min(count, read_json(run.constants, {}).get("MAX_SEQ_LENGTH") or count)
