"""Judging one saved model: settings, figures with intervals, examples, as the JSON that lies in a run's eval/ directory."""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import answers
import documents
import held_out
import placement
import saved_model

from common import scores
from common.refusal import Refusal
from common.run_directory import read_json, step_of, write_json

JUDGE = 2  # raise it when a figure's meaning changes: everything is judged again
BATCH = 64  # rows at a time unless told
HAS_BASE = True  # a model that training began with, to compare with


@dataclass(frozen=True)
class Rows:
    """What a run held out, read once."""

    test: list
    validation: list | None  # None where the run has no validation.jsonl

    all = property(lambda self: [*self.test, *(self.validation or [])])

    @cached_property
    def digests(self):
        """{"test", "validation"}: names for exactly these rows."""
        return {"test": held_out.digest(self.test), "validation": held_out.digest(self.validation) if self.validation else None}

    @cached_property
    def documents(self):
        return documents.Documents(self.test)

    @classmethod
    def of(cls, run, limit):
        return cls(held_out.read(run.test, limit), held_out.read(run.validation, limit) if run.validation.is_file() else None)


def saved_models(run):
    """[(name, path), …] of everything a run saved, base first, as they are judged."""
    found = [(path.name, path) for _, path in run.checkpoints()]
    return [("base", None), *found, *((path.name, path) for path in (run.final_model, run.merged_model) if path.is_dir())]


def require_rows(run, limit):
    """`Refusal` where nothing can be judged."""
    Rows.of(run, limit)


def open_saved(run, name, path):
    """(what is to be judged, the base it stands on or None)."""
    if name == "base":
        base = saved_model.base_of(run)
        return base, base
    saved = saved_model.describe(path, name)
    return saved, saved_model.base_of(run, saved.source) if saved.kind == "adapter" else None


def device_and_dtype():
    """("cuda", bf16 or fp16) with a GPU, else ("cpu", fp32)."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", torch.float32
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def quiet():
    """No progress bars over files of kilobytes, and no advice on kernels that the figures do not depend on."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


class Judge:
    """Judges models of one run, one after another, with the same rows and settings."""

    def __init__(self, run, options):
        self.run, self.options = run, options
        self.rows = self._read_rows()
        self.device, dtype = device_and_dtype()
        quiet()
        self.dtype = str(dtype).removeprefix("torch.")
        self.models = saved_model.Models(self.device, dtype, self._max_memory())
        self.notes = []
        self.judged = {}  # (settings_key, weights) -> result, of this process
        self._encoded = {}  # the tokenizer's digest -> the rows in its tokens
        self._asked = {}  # this digest, a model's positions -> the test rows as such a model is asked, their `Documents`

    def _read_rows(self):
        return Rows.of(self.run, self.options.rows)

    def _max_memory(self):
        return placement.needed(self.run, self.options, self.rows.all)[1]

    def _open(self, name, path):
        return open_saved(self.run, name, path)

    def _tokenizer(self, saved, base):
        return answers.load_tokenizer(self._tokenizer_places(saved, base))

    def _counts(self):
        return {"rows": len(self.rows.test), "groups": len({row.group for row in self.rows.test})}

    def settings(self, saved, tokenizer, tokenizer_digest, answering):
        """All that changes the figures, besides the weights themselves."""
        four_bit = saved_model.four_bit(self.run, self.options.load_in_4bit, saved)
        base = "as saved" if not four_bit else "NF4, written out as float32 once" if self.device == "cpu" else "NF4"
        return {
            "judge": JUDGE,
            **self.rows.digests,
            "rows": len(self.rows.test),
            "max_new_tokens": self._max_new_tokens(tokenizer) if answering else 0,
            "max_length": self._max_length(),
            "sampling": self.options.sampling,
            "dtype": self.dtype,
            "4bit": four_bit,
            "base_weights": base,
            "tokenizer": tokenizer_digest,
            "loaded_with": "transformers and PEFT, without Unsloth",
            **self.rows.documents.settings(),
        }

    def __call__(self, name, path, output, answering=True):
        """The JSON of one model, from `output` where it lies there already with the same settings and weights. `Refusal` if it is broken.

        A model with the weights of one judged before takes its figures. Without `answering` there are losses only, which an `output`
        with answers serves as well. Returns (result, whether it was judged now).
        """
        saved, base = self._open(name, path)
        tokenizer, digest = self._tokenizer(saved, base)
        weights = saved.digest() + (f" on {base.digest()}" if saved.kind == "adapter" else "")
        known = {} if self.options.force else _known(output)
        for settings in (self.settings(saved, tokenizer, digest, True), self.settings(saved, tokenizer, digest, answering)):
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
            if known.get("settings_key") == key and known.get("weights") == weights:
                return known, False
        identity = {
            "name": name,
            "step": 0 if name == "base" else step_of(name),
            "path": _relative(path, self.run) if path else saved.source,
            "settings": settings,
            "settings_key": key,
            "weights": weights,
        }
        twin = self._twin(key, weights)
        if twin:
            result = twin | identity | {"same_weights_as": twin["name"]}
            write_json(output, result)
            return result, True
        model = self.models.use(saved, base, settings["4bit"])
        result = identity | self._counts() | self._figures(model, tokenizer, digest, answering)
        if result["metrics"]["loss"]["mean"] != result["metrics"]["loss"]["mean"]:
            raise Refusal(f"the loss of {name} is NaN though its weights are finite: it overflows in {self.dtype}; take an earlier one")
        write_json(output, result)
        self.judged[key, weights] = result
        return result, True

    def _twin(self, key, weights):
        """A result with these settings and weights: of this process, or on disk."""
        on_disk = [] if self.options.force else map(_known, self.run.eval.glob("*.json"))
        found = {(r.get("settings_key"), r.get("weights")): r for r in on_disk if "metrics" in r} | self.judged
        return found.get((key, weights))

    def _figures(self, model, tokenizer, digest, answering):
        test, validation, options = self.rows.test, self.rows.validation or [], self.options
        encoded = self._in_tokens(tokenizer, digest)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        size = BATCH if options.batch_size == "auto" else options.batch_size
        start = time.perf_counter()
        losses = answers.losses(model, encoded, size, pad)
        loss_seconds = time.perf_counter() - start
        loss = _loss(losses[: len(test)], test)
        figures = {
            "loss": interval(loss),
            "perplexity": interval(scores.perplexity_interval(loss)),
            "validation_loss": interval(_loss(losses[len(test) :], validation)) if validation else None,
        }
        if not answering:
            return {"metrics": figures, "speed": None, "examples": []}
        ends = answers.end_ids(tokenizer, model, encoded)
        prompts, about = self._to_ask(model, tokenizer, digest)
        given = answers.generate(model, tokenizer, prompts, ends, pad, self._max_new_tokens(tokenizer), size, options.sampling)
        pairs = [(row.reference, answer) for row, answer in zip(test, given.texts, strict=True)]
        rouges, numbers = ([score(*pair) for pair in pairs] for score in (scores.rouge, scores.numbers_recalled))
        return {
            "metrics": figures
            | {
                **{name: _mean([found[name] for found in rouges], test) for name in scores.ROUGE_NAMES},
                "numbers": _mean(numbers, test),
                **({"exact": _mean([scores.is_exact(*pair) for pair in pairs], test)} if scores.are_short([r for r, _ in pairs]) else {}),
                **{name: _mean(values, test) for name, values in about.figures(given.texts, given.stopped).items()},
            },
            **({"of_references": about.of_references} if about.to_sum_up else {}),
            "speed": {
                "tokens_per_second": round(given.tokens / given.seconds, 1),
                "seconds_per_answer": round(given.seconds / len(test), 4),
                "generated_tokens": given.tokens,
                "prompt_and_answer_tokens": given.tokens + sum(len(row.prompt_ids) for row in prompts),
                "seconds_of_generation": round(given.seconds, 2),
                "seconds_of_loss": round(loss_seconds, 2),
                "batch_size": size,
            },
            "examples": [
                {"id": test[n].id, "group": test[n].group, "question": documents.clipped(test[n].question), "reference": test[n].reference,
                 "answer": given.texts[n], "rougeL": rouges[n]["rougeL"], "numbers": numbers[n], **about.example(n, given.texts[n])}
                for n in held_out.examples(test)
            ],
        }  # fmt: skip

    def _in_tokens(self, tokenizer, digest):
        """The test rows and the validation rows behind them as `answers.Encoded`, once for all models with this tokenizer."""
        if digest not in self._encoded:
            encoded, note = answers.encode(tokenizer, self.rows.all, self._max_length())
            self._encoded = {digest: encoded}
            self._note(note)
        return self._encoded[digest]

    def _to_ask(self, model, tokenizer, digest):
        """The test rows as `answers.Encoded` whose prompts leave room for an answer, and the `Documents` that are read in them."""
        key = digest, answers.positions_of(model)
        if key not in self._asked:
            test = self.rows.test
            encoded = self._in_tokens(tokenizer, digest)[: len(test)]
            prompts, notes = answers.with_room(tokenizer, test, encoded, key[1], self._max_new_tokens(tokenizer))
            about = documents.Documents(test, [row.asked for row in prompts])
            self._asked = {key: (prompts, about)}
            self._note(*notes, *about.notes())
        return self._asked[key]

    def _note(self, *sentences):
        self.notes += [sentence for sentence in sentences if sentence and sentence not in self.notes]

    def _max_new_tokens(self, tokenizer):
        longest = max(len(ids) for ids in tokenizer([row.reference for row in self.rows.test], add_special_tokens=False)["input_ids"])
        return answers.most_new(self.options.max_new_tokens, longest)

    def _max_length(self):
        return read_json(self.run.constants, {}).get("MAX_SEQ_LENGTH") or 1 << 30

    def _tokenizer_places(self, saved, base):
        """The checkpoint's own; the base is asked in the run's own words, so that only the weights differ."""
        everything = [self.run.final_model, *(path for _, path in reversed(self.run.checkpoints()))]
        own = everything if saved.kind == "base" else [Path(saved.source)]
        return [*(path for path in own if path.is_dir()), *([base.source] if base else [])]


def _known(path):
    try:
        found = read_json(path, {})
    except Refusal:  # half a file: judged again
        return {}
    return found if isinstance(found, dict) else {}


def _relative(path, run):
    path, home = Path(path).resolve(), run.path.resolve()
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _loss(found, rows):
    """Mean per answer token over all rows, with its interval over groups."""
    means, counts = [nats / count for nats, count in found], [count for _, count in found]
    return scores.bootstrap_interval(means, [row.group for row in rows], weights=counts)


def _mean(values, rows):
    """The mean over the rows that have a value; None where none has."""
    pairs = [(value, row.group) for value, row in zip(values, rows, strict=True) if value is not None]
    return interval(scores.bootstrap_interval(*zip(*pairs, strict=True))) if pairs else None


def interval(found):
    return dict(zip(("mean", "low", "high"), found, strict=True))
