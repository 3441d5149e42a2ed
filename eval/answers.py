"""What a model does with held-out rows: the loss on the reference answers, and the answers it gives itself."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from common import chat_text
from common.chat_rows import BadRow
from common.refusal import Refusal

FIRST_STAGE = 64  # tokens generated before finished answers leave the batch
LOGITS_AT_ONCE = 1 << 28  # numbers in a batch's logits: 1 GB in fp32, whatever the vocabulary


@dataclass(frozen=True)
class Encoded:
    """One row in tokens: the prompt as a user's program would write it, and the conversation as in training, to the last end of turn."""

    prompt_ids: list
    ids: list
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
    for row in rows:
        try:
            trained = chat_text.encode(tokenizer, row.messages, max_length)
        except BadRow as reason:
            raise Refusal(f"row {row.id} cannot be judged: {reason}") from None
        labels = trained.labels
        last = max((n for n, label in enumerate(labels) if label != chat_text.IGNORED), default=None)
        if last is None:
            raise Refusal(f"row {row.id} has no answer token under this chat template, so it has no loss")
        start = next(n for n in range(last, -1, -1) if n == 0 or labels[n - 1] == chat_text.IGNORED)
        prompt = trained.input_ids[:start]
        if not trained.shortened:
            text = chat_text.render(tokenizer, row.messages[:-1], add_generation_prompt=True)
            alone = tokenizer(text, add_special_tokens=False)["input_ids"]
            differing += alone != prompt
            prompt = alone
        found.append(Encoded(prompt, trained.input_ids[: last + 1], start))
    if not differing:
        return found, None
    return found, (
        f"{differing} of {len(rows)} prompts give other tokens alone than before an answer (the tokenizer joins their end "
        "differently), so the model answers prompts that it was not trained on"
    )


def end_ids(tokenizer, model, rows):
    """Every id that ends an answer: the template's end of turn, the tokenizer's eos and those of the model's generation_config."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    return ends | {row.ids[-1] for row in rows} | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


def padded(sequences, pad, device):
    """(ids, mask), both [sequences, longest], filled up on the left."""
    import torch

    width = max(map(len, sequences))
    ids = torch.tensor([[pad] * (width - len(s)) + s for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask


def halving(batch_size, sequences, work, fix="lower --max-new-tokens"):
    """`work(indices)` for batches of similar length, longest first; a batch that ends the GPU's memory is tried again in halves."""
    import torch

    waiting = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    while waiting:
        try:
            work(waiting[:batch_size])
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if batch_size == 1:
                longest = len(sequences[waiting[0]])
                raise Refusal(f"one row of {longest} tokens does not fit the GPU's memory; {fix}") from error
            batch_size //= 2
            continue
        del waiting[:batch_size]


def losses(model, rows, batch_size, pad):
    """[(nats summed over the answer's tokens, number of these tokens), …] in the order of `rows` (`Encoded`).

    -log p(token | all before it) over the reference answer and its end-of-turn token.
    """
    import torch

    device, vocabulary = next(model.parameters()).device, model.config.get_text_config().vocab_size
    results = [None] * len(rows)
    answer = max(row.answer_tokens for row in rows)

    @torch.inference_mode()
    def work(indices):
        batch = [rows[index] for index in indices]
        ids, mask = padded([row.ids for row in batch], pad, device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        kept = max(row.answer_tokens for row in batch) + 1  # logits of the answer and of the token before it; it stands at the right
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept, use_cache=False).logits[:, -kept:]
        for index, row, scores, tokens in zip(indices, batch, logits, ids, strict=True):
            wanted = tokens[-row.answer_tokens :]
            scores = scores[-row.answer_tokens - 1 : -1].float()
            results[index] = (torch.nn.functional.cross_entropy(scores, wanted, reduction="sum").item(), row.answer_tokens)

    room = max(1, LOGITS_AT_ONCE // (vocabulary * (answer + 1)))
    halving(min(batch_size, room), [row.ids for row in rows], work)
    return results


def generate(model, tokenizer, rows, ends, pad, max_new_tokens, batch_size, sampling):
    """(answers in the order of `rows`, generated tokens, seconds). Answers stop at any end id.

    A batch costs as much for one unfinished answer as for all, so it goes on for 64 tokens, then those unfinished are batched anew, with
    what they have said as part of the prompt, for 64, 128, 256, … more.
    """
    import torch
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    said = [[] for _ in rows]
    config = {"eos_token_id": sorted(ends), "pad_token_id": pad, "use_cache": True, "do_sample": sampling != "greedy"}
    if sampling != "greedy":
        torch.manual_seed(sampling["seed"])
        config |= {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": 0}

    start, total = time.perf_counter(), 0
    while total < max_new_tokens:
        stage = min(max(total, FIRST_STAGE), max_new_tokens - total)
        going = [
            n
            for n, row in enumerate(rows)
            if len(said[n]) == total and not ends & set(said[n][-1:]) and len(row.prompt_ids) + total < limit
        ]
        if not going:
            break
        prompts = [rows[n].prompt_ids + said[n] for n in going]

        @torch.inference_mode()
        def work(indices, going=going, prompts=prompts, stage=stage):
            ids, mask = padded([prompts[index] for index in indices], pad, device)
            room = min(stage, limit - ids.shape[1])  # not past the positions that the model knows
            model.generation_config = GenerationConfig(**config, max_new_tokens=room)
            found = model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
            for index, tokens in zip(indices, found, strict=True):
                end = next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
                said[going[index]] += tokens[:end]

        halving(batch_size, prompts, work)
        total += stage
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said], sum(map(len, said)), seconds
