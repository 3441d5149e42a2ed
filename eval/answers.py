"""What a model does with held-out rows: the loss on the reference answers, and the answers it gives itself."""

import hashlib
import time
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

from room import Room

from common import chat_text, positions
from common.chat_rows import BadRow
from common.refusal import Refusal

MAX_NEW_TOKENS = 512  # of an answer, unless told or the references are short or longer
NO_LIMIT = 1 << 30  # positions of a model whose config names none
TOKENISED_AT_ONCE = 16  # rows side by side on all cores; what the tokenizers library says of a token takes 100 bytes
FIRST_STAGE = 64  # tokens generated before finished answers leave the batch, which is then read again
READING = 16  # tokens of a prompt that are read in about the time in which one is written: where it has more, stages are longer
MORE = "judge on a GPU with more, or on several (--gpus-per-model)"
LOGITS_AT_ONCE = 1 << 28  # numbers in a batch's logits: 1 GB in fp32, whatever the vocabulary


@dataclass(frozen=True)
class Encoded:
    """One row in tokens: the prompt as a user's program would write it, and the conversation as in training, to the last end of turn."""

    asked: list  # the prompt's messages as they fit
    prompt_ids: array  # of C ints, 4 bytes each, for documents are long
    ids: array
    answer_start: int  # of the last answer in `ids`

    answer_tokens = property(lambda self: len(self.ids) - self.answer_start)


def load_tokenizer(places):
    """The tokenizer of the first of `places` (directories or hub names) that has one, and a digest of what it does."""
    place = next((p for p in places if not Path(p).is_dir() or (Path(p) / "tokenizer_config.json").is_file()), places[-1])
    try:
        tokenizer = chat_text.load_tokenizer(place)
    except Refusal:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special for a tokenizer.json that is cut short
        raise Refusal(f"the tokenizer of {place} cannot be loaded: {str(error).splitlines()[0]}") from error
    content = [tokenizer.chat_template, str(tokenizer.eos_token), str(tokenizer.bos_token), sorted(tokenizer.get_vocab().items())]
    return tokenizer, hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def encode(tokenizer, rows, max_length):
    """The rows as `Encoded`, and a sentence when prompts alone give other tokens than prompts with their answer.

    Shortened and labelled exactly as for training; of a conversation with several answers the last is judged.
    """
    found, differing = [], 0
    for start in range(0, len(rows), TOKENISED_AT_ONCE):
        batch = rows[start : start + TOKENISED_AT_ONCE]
        fitted = chat_text.fit(tokenizer, [row.messages for row in batch], max_length)
        if broken := next(((row, reason) for row, reason in zip(batch, fitted, strict=True) if isinstance(reason, BadRow)), None):
            raise Refusal(f"row {broken[0].id} cannot be judged: {broken[1]}")
        prompts = _prompts(tokenizer, [messages[:-1] for messages, _ in fitted])
        for row, (messages, trained), prompt in zip(batch, fitted, prompts, strict=True):
            labels = trained.labels
            last = max((n for n, label in enumerate(labels) if label != chat_text.IGNORED), default=None)
            if last is None:
                raise Refusal(f"row {row.id} has no answer token under this chat template, so it has no loss")
            first = next(n for n in range(last, -1, -1) if n == 0 or labels[n - 1] == chat_text.IGNORED)
            differing += prompt != trained.input_ids[:first]
            found.append(Encoded(messages[:-1], array("i", prompt), array("i", trained.input_ids[: last + 1]), first))
    if not differing:
        return found, None
    return found, (
        f"{differing} of {len(rows)} prompts give other tokens alone than before an answer (the tokenizer joins their end "
        "differently), so the model answers prompts that it was not trained on"
    )


def _prompts(tokenizer, conversations):
    texts = [chat_text.render(tokenizer, messages, add_generation_prompt=True) for messages in conversations]
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def most_new(asked, longest):
    """Tokens that an answer may have, the longest reference having `longest`: as asked; else 512, or a quarter more than that reference.

    But at most twice that reference: what runs on is wrong already.
    """
    return asked or min(max(MAX_NEW_TOKENS, -(-5 * longest // 4)), 2 * longest)


def positions_of(model):
    """How many tokens a prompt and its answer may have together, with the scaling that the model's config asks for."""
    config = model.config.get_text_config().to_dict()
    declared = config.get("max_position_embeddings") or config.get("n_positions")
    return (positions.of_config(config).longest if declared else None) or NO_LIMIT


def with_room(tokenizer, rows, encoded, most, max_new_tokens):
    """`encoded` of `rows`, its prompts leaving `max_new_tokens` of the model's `most` positions, and sentences on what that took.

    As trained on, a long document and its reference fill MAX_SEQ_LENGTH: where the model has no more positions, an answer could only
    become as long as its reference. So documents are shortened further, whatever their reference; but prompts keep half the positions.
    """
    room, found, shortened = max(most - max_new_tokens, most // 2), list(encoded), 0
    long = [n for n, row in enumerate(encoded) if len(row.prompt_ids) > room]
    for start in range(0, len(long), TOKENISED_AT_ONCE):
        batch = long[start : start + TOKENISED_AT_ONCE]
        asked = [[*rows[n].messages[:-1], {"role": "assistant", "content": "."}] for n in batch]
        fitted = zip(batch, chat_text.fit(tokenizer, asked, room), strict=True)
        fitted = {n: messages[0][:-1] for n, messages in fitted if not isinstance(messages, BadRow)}
        prompts = _prompts(tokenizer, list(fitted.values())) if fitted else []
        for (n, messages), prompt in zip(fitted.items(), prompts, strict=True):
            found[n] = replace(encoded[n], asked=messages, prompt_ids=array("i", prompt))
        shortened += len(fitted)
    left = [most - len(row.prompt_ids) for row in found]
    tight, full = sum(0 < n < max_new_tokens for n in left), sum(n <= 0 for n in left)
    limit = f"the model's {most:,} positions"
    notes = [
        (shortened, f"were shortened more than for training, to leave {most - room:,} of {limit} for an answer, whatever its reference"),
        (tight, f"leave fewer than {max_new_tokens:,} tokens of {limit} for an answer, which is cut off there"),
        (full, f"leave nothing of {limit} for an answer and could not be shortened; their answers are empty and count as wrong"),
    ]
    return found, [f"{count} of {len(found)} prompts {words}" for count, words in notes if count]


def end_ids(tokenizer, model, rows):
    """Every id that ends an answer: the template's end of turn, the tokenizer's eos and those of the model's generation_config."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    return ends | {row.ids[-1] for row in rows} | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


def padded(sequences, pad, device):
    """(ids, mask), both [sequences, longest], filled up on the left."""
    import torch

    width = max(map(len, sequences))
    ids, mask = torch.full((len(sequences), width), pad), torch.zeros((len(sequences), width), dtype=torch.long)
    for n, sequence in enumerate(sequences):
        ids[n, width - len(sequence) :] = torch.tensor(sequence)
        mask[n, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def halving(batch_size, sequences, work, fix, room=None, new=0, cached=False, beside=0):
    """`work(indices, read)` for batches of similar length, longest first, of as many as `room` has place for.

    A batch that ends the GPU's memory is tried again in halves, a single row by reading it in pieces of `read` tokens. new, cached, beside:
    what `room` is asked for besides (`Room.batch`).
    """
    import torch

    waiting = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    room = room or Room(None, 0)
    while waiting:
        size, read = room.batch(min(batch_size, len(waiting)), len(sequences[waiting[0]]), new, cached, beside)
        try:
            work(waiting[:size], read)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            longest = len(sequences[waiting[0]])
            if size > 1:
                batch_size = size // 2
            elif not room.tighten():
                raise Refusal(f"one row of {longest} tokens does not fit the GPU's memory; {fix}") from error
            continue
        del waiting[:size]


def losses(model, rows, batch_size, pad):
    """[(nats summed over the answer's tokens, number of these tokens), …] in the order of `rows` (`Encoded`).

    -log p(token | all before it) over the reference answer and its end-of-turn token.
    """
    import torch

    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    results = [None] * len(rows)
    answer = max(row.answer_tokens for row in rows)

    @torch.inference_mode()
    def work(indices, read):
        batch = [rows[index] for index in indices]
        ids, mask = padded([row.ids for row in batch], pad, device)
        kept = max(row.answer_tokens for row in batch) + 1  # logits of the answer and of the token before it; it stands at the right
        logits = last_logits(model, ids, mask, kept, read)
        for index, row, scores, tokens in zip(indices, batch, logits, ids, strict=True):
            wanted = tokens[-row.answer_tokens :]
            scores = scores[-row.answer_tokens - 1 : -1].float()
            results[index] = (torch.nn.functional.cross_entropy(scores, wanted, reduction="sum").item(), row.answer_tokens)

    size = max(1, LOGITS_AT_ONCE // (vocabulary * (answer + 1)))
    beside = 8 * vocabulary * (answer + 1)  # logits as the model gives them, and of one row in fp32
    halving(min(batch_size, size), [row.ids for row in rows], work, MORE, Room.of(model), beside=beside)
    return results


def last_logits(model, ids, mask, kept, read=None):
    """[rows, kept, vocabulary]: the logits of the last `kept` tokens. With `read` the others are read in pieces of so many tokens."""
    from transformers import DynamicCache

    positions = (mask.cumsum(1) - 1).clamp(min=0)
    before = max(0, ids.shape[1] - kept) if read else 0
    cache = DynamicCache(config=model.config.get_text_config()) if before else None
    for start in range(0, before, read or 1):
        end = min(start + read, before)
        piece = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        model(**piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    rest = {"input_ids": ids[:, before:], "attention_mask": mask, "position_ids": positions[:, before:], "past_key_values": cache}
    return model(**rest, logits_to_keep=kept, use_cache=cache is not None).logits[:, -kept:]


@dataclass(frozen=True)
class Given:
    """The answers of a model, in the order of the rows that it was asked."""

    texts: list
    stopped: list  # whether each ended with an end id, not at the most tokens it may have or the last position that the model knows
    tokens: int  # of all answers
    seconds: float


def generate(model, tokenizer, rows, ends, pad, max_new_tokens, batch_size, sampling):
    """What the model answers to `rows` (`Encoded`), as `Given`. Answers stop at any id of `ends`.

    A batch costs as much for one unfinished answer as for all, so it goes on for a stage of 64 tokens, then those unfinished are batched
    anew, with what they have said as part of the prompt, for 64, 128, 256, … more. Reading the prompts again must be cheap beside that:
    with long ones stages are longer, and a row alone has only one.
    """
    import torch
    from transformers import GenerationConfig

    device, room = next(model.parameters()).device, Room.of(model)
    limit = positions_of(model)
    said = [[] for _ in rows]
    config = {"eos_token_id": sorted(ends), "pad_token_id": pad, "use_cache": True, "do_sample": sampling != "greedy"}
    if sampling != "greedy":
        torch.manual_seed(sampling["seed"])
        config |= {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": 0}

    def is_going(n):
        return len(said[n]) < max_new_tokens and not ends & set(said[n][-1:]) and len(rows[n].prompt_ids) + len(said[n]) < limit

    start = time.perf_counter()
    while going := [n for n in range(len(rows)) if is_going(n)]:
        prompts = [rows[n].prompt_ids + array("i", said[n]) for n in going]

        @torch.inference_mode()
        def work(indices, read, going=going, prompts=prompts):
            ids, mask = padded([prompts[index] for index in indices], pad, device)
            written = [len(said[going[index]]) for index in indices]
            most = min(max_new_tokens - max(written), limit - ids.shape[1])  # not past the positions that the model knows
            stage = most if len(indices) == 1 else min(most, stage_of(min(written), ids.shape[1]))
            model.generation_config = GenerationConfig(**config, max_new_tokens=stage, prefill_chunk_size=read)
            found = model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
            for index, tokens in zip(indices, found, strict=True):
                end = next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
                said[going[index]] += tokens[:end]

        halving(batch_size, prompts, work, f"lower --max-new-tokens, or {MORE}", room, max_new_tokens, cached=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]
    return Given(texts, [bool(ends & set(tokens[-1:])) for tokens in said], sum(map(len, said)), seconds)


def stage_of(written, longest):
    """Tokens to write before the unfinished are batched anew, after `written`, of prompts of up to `longest` tokens."""
    return max(FIRST_STAGE, written, longest // READING)
