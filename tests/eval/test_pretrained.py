"""Judging pretrained models: figures against a loop that computes them by hand, what is said of broken ones, nothing judged twice."""

import json
import math
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

CONTEXT, END = 32, "<|endoftext|>"


class Rows:
    """Rows of one array of tokens, one after another; the last row is filled up with what is not judged."""

    def __init__(self, tokens, end_of_text, context=CONTEXT):
        self.tokens, self.end_of_text, self.context = np.asarray(tokens), end_of_text, context

    def __len__(self):
        return -(-(len(self.tokens) - 1) // self.context)

    def __getitem__(self, indices):
        import torch

        ids = np.full((len(indices), self.context + 1), self.end_of_text, dtype=np.int64)
        labels = np.full((len(indices), self.context), -100, dtype=np.int64)
        for n, index in enumerate(indices):
            found = self.tokens[index * self.context : (index + 1) * self.context + 1]
            ids[n, : len(found)], labels[n, : len(found) - 1] = found, found[1:]
        return {"input_ids": torch.from_numpy(ids[:, :-1]), "labels": torch.from_numpy(labels)}


def documents(count, seed):
    draw = random.Random(seed)
    names, things = ["Ada", "Bo", "Zoë", "Émile"], ["a mean", "the variance", "two samples", "one week"]
    for _ in range(count):
        yield " ".join(f"{draw.choice(names)} has {draw.choice(things)}." for _ in range(draw.randrange(1, 9))).encode()


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory):
    """A finished pretraining run; tests that change anything take `copied`."""
    import torch
    from transformers import AutoTokenizer

    from common import encoding, gpt, gpt_export, held_out_tokens
    from common.run_directory import RunDirectory, write_json

    home = tmp_path_factory.mktemp("outputs")
    encoding.train(list(documents(200, 1)), 300, home / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer")
    end = tokenizer.convert_tokens_to_ids(END)

    def tokens(count, seed):
        return [token for text in documents(count, seed) for token in [*tokenizer(text.decode())["input_ids"], end]]

    run = RunDirectory(home / "gpt")
    run.path.mkdir()
    held_out_tokens.write(run, Rows(tokens(60, 2), end), end)
    torch.manual_seed(0)
    model = gpt.GPT(gpt.Shape(len(tokenizer), CONTEXT, 64, 2, 2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = Rows(tokens(300, 3), end)
    for step in range(1, 41):
        batch = rows[np.random.default_rng(step).integers(0, len(rows), 16)]
        model(**batch)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        if step in (5, 40):
            place = run.path / f"checkpoint-{step}"
            gpt_export.save(model.state_dict(), model.shape, place, end)
            tokenizer.save_pretrained(place)
    shutil.copytree(run.path / "checkpoint-40", run.final_model)
    write_json(run.constants, {"MODEL_NAME": "gpt-125M", "MAX_SEQ_LENGTH": CONTEXT, "REPORT_TO": ["tensorboard"]})
    write_json(
        run.run, {"kind": "pretraining", "recipe": "gpt_pretrain", "model_name": "gpt-125M, changed", "steps": 40, "status": "finished"}
    )
    return run


@pytest.fixture
def copied(pretrained_run, tmp_path):
    from common.run_directory import RunDirectory

    return RunDirectory(shutil.copytree(pretrained_run.path, tmp_path / "gpt"))


@pytest.fixture(scope="module")
def judged(pretrained_run, tmp_path_factory):
    """A run after one call of the command in this process, its results, and what it printed."""
    import contextlib
    import io

    import eval_all

    from common.run_directory import RunDirectory, read_json

    run = RunDirectory(shutil.copytree(pretrained_run.path, tmp_path_factory.mktemp("judged") / "gpt"))
    said, arguments = io.StringIO(), sys.argv
    sys.argv = ["eval_all.py", str(run.path), "--workers", "1"]
    try:
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
            eval_all.main()
    finally:
        sys.argv = arguments
    assert stop.value.code == 0, said.getvalue()
    return run, {path.stem: read_json(path) for path in run.eval.glob("*.json")}, said.getvalue()


def by_hand(checkpoint, held_out):
    """(nats, tokens, bytes) of each row, one token after another, with plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for ids, learned in zip(held_out["ids"].astype(int), held_out["learned"], strict=True):
        with torch.no_grad():
            chances = model(torch.tensor([ids[:-1].tolist()])).logits[0].log_softmax(-1)
        nats = count = size = 0
        for place, token in enumerate(ids[1:]):
            if learned[place]:
                nats -= chances[place, token].item()
                count += 1
                piece = tokenizer.convert_ids_to_tokens([int(token)])[0]
                size += 0 if piece == END else len(piece)  # a letter of byte-level BPE's alphabet stands for one byte
        found.append((nats, count, size))
    return np.array(found)


def test_the_figures_are_those_of_a_plain_loop(judged):
    run, results, _ = judged
    held_out = np.load(run.held_out_tokens, allow_pickle=False)
    for name in ("checkpoint-5", "checkpoint-40"):
        nats, tokens, sizes = by_hand(run.path / name, held_out).sum(axis=0)
        figures = results[name]["metrics"]
        assert figures["loss"]["mean"] == pytest.approx(nats / tokens, rel=1e-5)
        assert figures["perplexity"]["mean"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert figures["bits_per_byte"]["mean"] == pytest.approx(nats / math.log(2) / sizes, rel=1e-5)
        assert results[name]["tokens"] == tokens and results[name]["speed"]["tokens_per_second"] > 0
    assert results["checkpoint-40"]["metrics"]["loss"]["high"] < results["checkpoint-5"]["metrics"]["loss"]["low"]
    shares = np.bincount(held_out["ids"][:, 1:][held_out["learned"]]) / tokens
    assert results["checkpoint-5"]["frequency_loss"] == pytest.approx(-sum(p * math.log(p) for p in shares if p))


def test_every_byte_of_the_held_out_texts_is_counted_once(pretrained_run):
    held_out = np.load(pretrained_run.held_out_tokens, allow_pickle=False)
    found = by_hand(pretrained_run.path / "checkpoint-5", held_out)
    texts = list(documents(60, 2))
    first = held_out["ids"][0, 0]  # of all tokens it alone is no label
    assert found[:, 1].sum() == held_out["learned"].sum()
    from transformers import AutoTokenizer

    piece = AutoTokenizer.from_pretrained(pretrained_run.final_model).convert_ids_to_tokens([int(first)])[0]
    assert found[:, 2].sum() == sum(map(len, texts)) - len(piece)


def test_the_interval_resamples_documents(judged):
    run, results, said = judged
    held_out, found = np.load(run.held_out_tokens), by_hand(run.path / "checkpoint-5", np.load(run.held_out_tokens))
    documents = held_out["documents"]
    assert documents[0] == 0 and (np.diff(documents) >= 0).all() and documents[-1] < 60
    # the document of a row, counted by hand: ends of text among all tokens before the row's second
    ends = np.concatenate([row[1:][learned] for row, learned in zip(held_out["ids"], held_out["learned"], strict=True)])
    counts = held_out["learned"].sum(axis=1)
    starts = np.cumsum(counts) - counts
    assert documents.tolist() == [int((ends[:start] == held_out["end_of_text"]).sum()) for start in starts]
    result = results["checkpoint-5"]
    assert result["resampled"] == "rows that begin in the same document" and result["groups"] == len(set(documents.tolist()))
    assert f"resampling {result['resampled']}" in said
    groups = {number: found[documents == number].sum(axis=0) for number in set(documents.tolist())}
    draws, names = np.random.default_rng(7), sorted(groups)
    means = []
    for _ in range(3000):
        nats, tokens, _ = sum(groups[names[n]] for n in draws.integers(0, len(names), len(names)))
        means.append(nats / tokens)
    low, high = np.percentile(means, [2.5, 97.5])
    loss = result["metrics"]["loss"]
    assert (loss["low"], loss["high"]) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_few_long_documents_are_resampled_in_stretches():
    import pretrained

    from common.held_out_tokens import HeldOutTokens

    ids = np.zeros((230, 9), dtype=np.uint16)
    held = HeldOutTokens(ids, np.ones((230, 8), dtype=bool), np.repeat([0, 1], 115), 1)
    groups, unit = pretrained.stretches(held)
    assert unit == "stretches of 5 neighbouring rows" and np.bincount(groups).tolist() == [5] * 46
    alone = HeldOutTokens(ids[:30], held.learned[:30], held.documents[:30], 1)
    assert pretrained.stretches(alone)[1] == "rows"


def test_best_table_curves_report_and_card(judged):
    run, results, said = judged
    assert results["summary"]["best"] == "checkpoint-40" and results["summary"]["best_by"] == "lowest loss on held-out tokens"
    assert results["summary"]["names"] == ["checkpoint-5", "checkpoint-40", "final_model"] and results["summary"]["failed"] == {}
    assert results["final_model"]["same_weights_as"] == "checkpoint-40" and "best: checkpoint-40" in said
    written = (run.eval / "table.md").read_text()
    loss = results["checkpoint-5"]["metrics"]["loss"]
    assert f"{loss['mean']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}]" in written and "Bits per byte" in written
    for word in ("ROUGE", "base", "s/answer", "validation.jsonl"):
        assert word not in written and word not in said
    assert (run.eval / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "checkpoint-40" in run.report.read_text() and "trained from scratch" in (run.final_model / "README.md").read_text()


def test_continuations_stand_beside_the_true_text_and_are_the_same_again(judged, copied, options):
    import pretrained

    run, results, _ = judged
    texts = [text.decode() for text in documents(60, 2)]
    examples = results["checkpoint-40"]["examples"]
    assert len(examples) == pretrained.EXAMPLES
    for example in examples:
        assert any(example["beginning"] + example["reference"] in text for text in texts), example
        number = int(re.fullmatch(r"document (\d+), row \d+", example["id"]).group(1))
        assert example["beginning"] in texts[number]
    again, fresh = pretrained.Judge(copied, options("--max-new-tokens", "96"))(
        "checkpoint-40", copied.path / "checkpoint-40", copied.path / "x.json"
    )
    assert fresh and again["examples"] == examples
    other, _ = pretrained.Judge(copied, options("--seed", "1"))("checkpoint-40", copied.path / "checkpoint-40", copied.path / "y.json")
    assert [e["beginning"] for e in other["examples"]] == [e["beginning"] for e in examples] and other["examples"] != examples
    assert other["metrics"] == again["metrics"] and other["settings_key"] != again["settings_key"]


def test_nothing_is_judged_twice_and_broken_checkpoints_are_named(judged, tmp_path, evaluate):
    from common.run_directory import RunDirectory

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "gpt"))
    code, said = evaluate(run.path, "--workers", "1")
    assert code == 0 and said.count("judged before") == 3
    file = run.path / "checkpoint-5" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run.final_model / name).unlink()
    code, said = evaluate(run.path, "--workers", "1")
    assert code == 1 and "checkpoint-5: not judged" in said and "checkpoint-40: loss" in said
    assert not (run.eval / "checkpoint-5.json").exists()
    without = json.loads((run.eval / "final_model.json").read_text())
    with_one = json.loads((run.eval / "checkpoint-40.json").read_text())
    assert without["metrics"]["bits_per_byte"] is None and without["examples"] == []
    assert without["metrics"]["loss"] == with_one["metrics"]["loss"]
    assert "could not be judged" in run.report.read_text()


def test_only_rows_workers_and_one_checkpoint(copied, evaluate, monkeypatch, capsys):
    import eval_checkpoint

    code, said = evaluate(copied.path, "--only", "checkpoint-40", "--rows", "5", "--report-to", "none")
    assert code == 0 and [path.stem for path in copied.eval.glob("check*.json")] == ["checkpoint-40"]
    few = json.loads((copied.eval / "checkpoint-40.json").read_text())
    assert few["rows"] == 5 and few["groups"] <= 5
    monkeypatch.setattr(sys, "argv", ["eval_checkpoint.py", "--checkpoint", str(copied.path / "checkpoint-5"), "--greedy"])
    eval_checkpoint.main()
    said = capsys.readouterr().out
    assert "true text" in said and "base" not in said and (copied.eval / "checkpoint-5.json").is_file()


def test_wandb_gets_figures_and_continuations(judged, tmp_path, monkeypatch):
    import tracker

    from common.run_directory import RunDirectory

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "gpt"))
    results = [judged[1][name] for name in ("checkpoint-5", "checkpoint-40", "final_model")]
    directory = Path(tracker.log(run, results, None, "wandb"))
    found = [json.loads(path.read_text()) for path in directory.rglob("*.table.json")]
    assert [table["columns"] for table in found] == [["model", "id", "beginning", "true text", "continuation"]]
    assert len(found[0]["data"]) == sum(len(result["examples"]) for result in results)


def test_what_cannot_be_judged_is_said_in_a_sentence(copied, options):
    import pretrained

    from common.refusal import Refusal
    from common.run_directory import write_json

    judge = pretrained.Judge(copied, options())
    with pytest.raises(Refusal, match="has no base model"):
        judge("base", None, copied.eval / "base.json")
    config = json.loads((copied.final_model / "config.json").read_text())
    write_json(copied.final_model / "config.json", config | {"n_positions": 16})
    with pytest.raises(Refusal):
        judge("final_model", copied.final_model, copied.eval / "x.json")
    content = copied.held_out_tokens.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PK\x03\x04"):
        copied.held_out_tokens.write_bytes(damaged)
        with pytest.raises(Refusal, match="held_out_tokens.npz cannot be read"):
            pretrained.require_rows(copied, None)
    np.savez(copied.held_out_tokens, ids=np.array([object()]), learned=1, documents=1, end_of_text=1)
    with pytest.raises(Refusal, match="cannot be read"):
        pretrained.require_rows(copied, None)
    copied.held_out_tokens.unlink()
    with pytest.raises(Refusal, match="VALIDATION_FILES"):
        pretrained.require_rows(copied, None)


def test_held_out_tokens_are_drawn_evenly_and_come_back(tmp_path):
    from common import held_out_tokens
    from common.run_directory import RunDirectory

    run, tokens = RunDirectory(tmp_path), np.arange(32_001) % 70_000
    held_out_tokens.write(run, Rows(tokens, 7), 7, limit=3200)
    found = held_out_tokens.read(run.held_out_tokens)
    assert len(found) == 100 and found.tokens == 3200 and found.ids[:, 0].tolist() == list(range(5 * 32, 32_000, 320))
    assert (found.labels() == found.ids[:, :-1] + 1).all() and found.end_of_text == 7
    assert found.documents.tolist() == [1] * 100  # token 7 stands once, in the first row
    before = run.held_out_tokens.read_bytes()
    held_out_tokens.write(run, Rows(tokens, 7), 7, limit=3200)
    assert run.held_out_tokens.read_bytes() == before
    assert len(found.some(10)) == 10 and found.some(1000).digest() == found.digest() != found.some(99).digest()
    held_out_tokens.write(run, Rows(tokens[:40], 7), 7)
    short = held_out_tokens.read(run.held_out_tokens)
    assert short.tokens == 39 and short.learned[1].sum() == 7 and (short.labels()[1, 7:] == -100).all()
    held_out_tokens.write(run, None, 7)
    assert not run.held_out_tokens.exists()


def test_of_a_training_runs_rows_every_token_but_a_files_first_is_judged_once(tmp_path):
    import pretrained

    from common import held_out_tokens, shards
    from common.run_directory import RunDirectory
    from common.token_rows import TokenRows

    draws, run = np.random.default_rng(3), RunDirectory(tmp_path)
    arrays = [draws.integers(1, 300, size).astype(np.uint16) for size in (1000, 20, 33, 777)]
    for n, array in enumerate(arrays):
        array[6::7] = 0
        facts = {"text_bytes": 1, "tokenizer": "ab", "vocab_size": 300, "end_of_text": 0, "sources": []}
        shards.write(tmp_path, f"shard-0000{n}-000", array, np.flatnonzero(array == 0) + 1, **facts)
    held_out_tokens.write(run, TokenRows(shards.find([tmp_path]), CONTEXT, 0), 0)
    found = held_out_tokens.read(run.held_out_tokens)
    assert found.tokens == sum(map(len, arrays)) - 4
    assert found.ids[:, 1:][found.learned].tolist() == np.concatenate([array[1:] for array in arrays]).tolist()
    ended = np.concatenate([array[1:] == 0 for array in arrays])
    counts = found.learned.sum(axis=1)
    assert found.documents.tolist() == [int(ended[:start].sum()) for start in np.cumsum(counts) - counts]
    # what is gone on with is of the document that it is said to be of, in rows that begin before what is judged in them as well
    everything = np.concatenate(arrays)
    of = np.cumsum(everything == 0) - (everything == 0)
    for row in range(len(found)):
        one = held_out_tokens.HeldOutTokens(found.ids[[row]], found.learned[[row]], found.documents[[row]], 0)
        ((place, ids, true),) = pretrained.beginnings(one, 3, 2)
        text = np.array([token for token in ids if token] + true)
        starts = [start for start in range(len(everything) - len(text) + 1) if (everything[start : start + len(text)] == text).all()]
        assert int(place.split()[1].strip(",")) in of[starts]
