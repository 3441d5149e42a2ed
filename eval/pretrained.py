"""Judging a model that was pretrained on tokens: its loss on held-out tokens, and how it goes on from the beginnings of held-out texts.

There is no base model to compare with; what the frequencies of the held-out tokens alone would reach stands in its place.
"""

import math
import time
from pathlib import Path

import answers
import judging
import numpy as np
import saved_model

from common import encoding, held_out_tokens, measures, scores
from common.refusal import Refusal

JUDGE = 1  # raise it when a figure's meaning changes: everything is judged again
HAS_BASE = False
EXAMPLES = 6  # beginnings that every checkpoint goes on from
BEGINNING, CONTINUATION = 48, 96  # their tokens, and how many follow unless told
FEW = 20  # documents; with fewer, stretches of rows are resampled in their place
STRETCHES = 50
SAMPLING = {"temperature": 0.8, "top_p": 0.95}  # greedy continuations of a small model go round in circles


def saved_models(run):
    """[(name, path), …] of everything a run saved, as they are judged."""
    found = [(path.name, path) for _, path in run.checkpoints()]
    return found + [(run.final_model.name, run.final_model)] * run.final_model.is_dir()


def require_rows(run, limit):
    """`Refusal` where nothing can be judged."""
    held_out_tokens.read(run.held_out_tokens)


class Judge(judging.Judge):
    """Judges pretrained models of one run, one after another, on the same tokens."""

    def _read_rows(self):
        held = held_out_tokens.read(self.run.held_out_tokens)
        return held.some(self.options.rows) if self.options.rows else held

    def _max_memory(self):
        return None  # a model that is pretrained here lies on one GPU

    def _open(self, name, path):
        if path is None:
            raise Refusal(f"{self.run.path.name} was trained from scratch, so it has no base model; name one of its checkpoints")
        saved = saved_model.describe(path, name)
        if saved.kind != "full":
            raise Refusal(f"{path} is an adapter, but {self.run.path.name} is a pretraining run; name a directory with a config.json")
        return saved, None

    def _tokenizer(self, saved, base):
        """(tokenizer, UTF-8 bytes of each token or None), digest; (None, None), None where none was saved with the model."""
        from transformers import AutoTokenizer

        from common import token_data

        if not (Path(saved.source) / "tokenizer.json").is_file():
            return (None, None), None
        try:
            digest = encoding.digest(saved.source)
            tokenizer = AutoTokenizer.from_pretrained(saved.source)
            sizes = token_data.bytes_of_tokens(saved.source, len(tokenizer))
        except Refusal:
            raise
        except Exception as error:  # the tokenizers library raises nothing more special for a tokenizer.json that is cut short
            raise Refusal(f"the tokenizer of {saved.source} cannot be loaded: {str(error).splitlines()[0]}") from error
        largest = int(self.rows.ids.max())
        if largest >= len(tokenizer):
            raise Refusal(f"the tokenizer of {saved.source} has {len(tokenizer):,} tokens, a held-out token is {largest:,}: it is another")
        return (tokenizer, sizes), digest

    def _counts(self):
        groups, unit = stretches(self.rows)
        return {
            "kind": measures.PRETRAINING,
            "rows": len(self.rows),
            "tokens": self.rows.tokens,
            "groups": len(np.unique(groups)),
            "resampled": unit,
            "frequency_loss": entropy(self.rows.ids[:, 1:][self.rows.learned]),
        }

    def settings(self, saved, tokenizer, tokenizer_digest, answering):
        """All that changes the figures, besides the weights themselves."""
        return {
            "judge": JUDGE,
            "kind": measures.PRETRAINING,
            "held_out_tokens": self.rows.digest(),
            "rows": len(self.rows),
            "context": self.rows.context,
            "max_new_tokens": self._continuation(),
            "sampling": self._sampling(),
            "dtype": self.dtype,
            "4bit": False,
            "tokenizer": tokenizer_digest,
            "loaded_with": "transformers",
        }

    def _sampling(self):
        asked = self.options.sampling
        return asked if asked != "greedy" or self.options.greedy else SAMPLING | {"seed": self.options.seed}

    def _continuation(self):
        return min(self.options.max_new_tokens or CONTINUATION, self.rows.context - self._beginning())

    def _beginning(self):
        return max(1, min(BEGINNING, self.rows.context // 3))

    def _figures(self, model, tokenizer, digest, answering):
        tokenizer, sizes = tokenizer
        self._require_fit(model)
        start = time.perf_counter()
        nats = losses(model, self.rows, judging.BATCH if self.options.batch_size == "auto" else self.options.batch_size)
        seconds = time.perf_counter() - start
        groups, _ = stretches(self.rows)
        loss = per(nats, self.rows.learned.sum(axis=1), groups)
        figures = {"loss": judging.interval(loss), "perplexity": judging.interval(scores.perplexity_interval(loss)), "bits_per_byte": None}
        if sizes is not None:
            of_rows = np.where(self.rows.learned, sizes[self.rows.ids[:, 1:]], 0).sum(axis=1)
            if of_rows.any():
                figures["bits_per_byte"] = judging.interval(per(nats / math.log(2), of_rows, groups))
        speed = {"tokens_per_second": round(self.rows.tokens / seconds, 1), "seconds_of_loss": round(seconds, 2)}
        return {"metrics": figures, "speed": speed, "examples": self._examples(model, tokenizer) if tokenizer else []}

    def _require_fit(self, model):
        config, largest = model.config, int(self.rows.ids.max())
        if largest >= config.vocab_size:
            raise Refusal(f"the model knows {config.vocab_size:,} tokens and a held-out token is {largest:,}; it is of another run")
        positions = getattr(config, "max_position_embeddings", None) or self.rows.context
        if positions < self.rows.context:
            raise Refusal(f"the model knows {positions:,} positions and held-out rows have {self.rows.context:,}; it is of another run")

    def _examples(self, model, tokenizer):
        found = beginnings(self.rows, self._beginning(), self._continuation())
        written = go_on(model, [ids for _, ids, _ in found], self.rows.end_of_text, self._continuation(), self._sampling())
        text = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
        return [
            {"id": place, "beginning": text(ids), "reference": text(true), "continuation": text(own)}
            for (place, ids, true), own in zip(found, written, strict=True)
        ]


def stretches(held):
    """(group of each row, what a group is). Groups are resampled whole: what stands in one document is not independent."""
    documents, rows = np.unique(held.documents, return_inverse=True)
    if len(documents) >= FEW:
        return rows, "rows that begin in the same document"
    size = -(-len(held) // STRETCHES)
    return np.arange(len(held)) // size, f"stretches of {size} neighbouring rows" if size > 1 else "rows"


def per(nats, counts, groups):
    """(mean, low, high) of sum(nats) / sum(counts), from the bootstrap over groups."""
    weights = np.maximum(counts, 1e-9)  # a row of nothing but ends of texts has no bytes, and its nats count all the same
    return scores.bootstrap_interval(nats / weights, groups, weights=weights)


def entropy(tokens):
    """Nats a token for whoever knows the frequencies of these very tokens and nothing else."""
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def losses(model, held, batch_size):
    """float64 [rows]: nats summed over the judged tokens of each row, each given all before it in the row."""
    import torch

    device, found, labels = next(model.parameters()).device, np.zeros(len(held)), held.labels()
    inputs = held.ids[:, :-1].astype(np.int64)

    @torch.inference_mode()
    def work(indices, read):  # a row of such a run is read whole
        ids, wanted = (torch.from_numpy(array[indices]).to(device) for array in (inputs, labels))
        logits = model(input_ids=ids, use_cache=False).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=-100)
        found[indices] = nats.view(wanted.shape).double().sum(1).cpu().numpy()

    size = max(1, answers.LOGITS_AT_ONCE // (model.config.vocab_size * held.context))
    answers.halving(min(batch_size, size), inputs, work, "judge on a GPU with more, or on the CPU (CUDA_VISIBLE_DEVICES= )")
    return found


def beginnings(held, length, most):
    """[(document and row in words, ids, true ids that follow), …] of rows spread over the documents.

    Of a row the first text that begins in it and is long enough; else the longest stretch of one text, half of it as the beginning.
    """
    _, firsts = np.unique(held.documents, return_index=True)
    rows = firsts if len(firsts) >= EXAMPLES else np.arange(len(held))
    found = []
    for row in rows[held_out_tokens.spread(len(rows), EXAMPLES)]:
        ids = held.ids[row].astype(np.int64)
        ends = np.flatnonzero(ids == held.end_of_text)
        starts = np.unique(np.append(0, ends))  # the end of the text before stands in front of a text, as in training
        stops = np.append(starts[1:], len(ids))
        whole = np.flatnonzero((ids[starts] == held.end_of_text) & (stops - starts > length + 1) & (starts + length + most <= len(ids)))
        n = whole[0] if len(whole) else np.argmax(stops - starts)
        start, stop = starts[n], stops[n]
        middle = start + min(length, max(1, (stop - start) // 2)) if not len(whole) else start + length
        first = held.learned[row].argmax()  # what stands before the first judged token was counted with the row before
        number = held.documents[row] + ((ends > first) & (ends <= start)).sum() - ((ends > start) & (ends <= first)).sum()
        found.append((f"document {number}, row {row}", ids[start:middle].tolist(), ids[middle : min(stop, middle + most)].tolist()))
    return found


def go_on(model, prompts, end_of_text, most, sampling):
    """The ids that the model puts after each of `prompts`, at most `most`, without the end of the text."""
    import torch
    from transformers import GenerationConfig

    config = {"max_new_tokens": most, "eos_token_id": end_of_text, "pad_token_id": end_of_text, "do_sample": sampling != "greedy"}
    if sampling != "greedy":
        torch.manual_seed(sampling["seed"])
        config |= {"temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": 0}
    ids, mask = answers.padded(prompts, end_of_text, next(model.parameters()).device)
    model.generation_config = GenerationConfig(**config)
    with torch.inference_mode():
        written = model.generate(input_ids=ids, attention_mask=mask)[:, ids.shape[1] :].tolist()
    return [tokens[: tokens.index(end_of_text)] if end_of_text in tokens else tokens for tokens in written]
