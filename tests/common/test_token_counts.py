"""Tokens before anything is tokenised: against the tokenised cache, against files whose tokens are known, against TRL's packing."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common import chat_rows, chat_text, conversation_tokens, mixing, sampled_lines, tiny_models, token_counts, tokenised
from common.refusal import Refusal

SAMPLES = {str(tiny_models.SAMPLES / "cross_validated.jsonl"): 1.0, str(tiny_models.SAMPLES / "arxiv.jsonl"): 1.0}
PROSE = (tiny_models.SAMPLES / "base_prose.txt").read_text(encoding="utf-8").replace("\n", " ")


@pytest.fixture(scope="module")
def model():
    return tiny_models.ensure("tiny-llama")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "cache"))


def counts_of(lengths, rows=None):
    lengths = np.asarray(lengths)
    return token_counts.TokenCounts(rows or len(lengths), int(lengths.sum()), lengths, 0.0, 0.0, "given")


def write_rows(path, lengths):
    """A row of so many characters for each of `lengths`, the answer "Yes." included; returns the path."""
    with path.open("w", encoding="utf-8") as out:
        for number, length in enumerate(lengths):
            start = number * 997 % (len(PROSE) // 2)
            question = PROSE[start : start + length - 5].strip().ljust(length - 5, ".") + "?"
            out.write(json.dumps({"id": f"q_{number}_1", "question": question, "answer": "Yes."}) + "\n")
    return str(path)


def tokens_of(characters):
    """Where no tokenizer is: a quarter of the characters, and five for each of the two messages."""
    return np.rint(np.asarray(characters) / 4 + 10)


@pytest.mark.parametrize("template", ["llama3", "llama3_2", "qwen2_5", "phi3", "gemma3"])
def test_the_chat_template_adds_as_many_tokens_as_it_writes(model, tmp_path, template):
    """Of a template that cannot be rendered like this the markup of Llama 3 and ChatML is taken: five a message."""
    tokenizer = chat_text.load_tokenizer(model)
    tokenizer.chat_template = chat_text.template_path(template).read_text(encoding="utf-8")
    tokenizer.save_pretrained(tmp_path / "model")
    first = [{"role": "user", "content": "Why is the mean so low?"}, {"role": "assistant", "content": "The median is not."}]
    count = conversation_tokens.Counter(str(tmp_path / "model")).count
    conversations = [first, first * 2, [{"role": "system", "content": "Be brief."}, *first], [*first, *first, *first]]
    truth = [len(tokenizer(chat_text.render(tokenizer, c), add_special_tokens=False)["input_ids"]) for c in conversations]
    assert count(conversations)[:, 0] == pytest.approx(truth, rel=0.03, abs=3)
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    bare = conversation_tokens.Counter(str(tmp_path / "model")).count
    contents = [sum(len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) + 5 for m in c) for c in conversations]
    assert bare(conversations)[:, 0].tolist() == contents


def test_the_samples_have_as_many_tokens_as_their_tokenised_cache(model, empty_cache, tmp_path):
    rows = {sample: [json.loads(line) for line in Path(sample).read_text(encoding="utf-8").splitlines()] for sample in SAMPLES}
    for row in [row for some in rows.values() for row in some[::7]]:
        row["messages"][-2]["content"] += "\n\n" + PROSE[:3000]
    files, settings = {}, {"max_length": 400, "held_out": 0.2}
    for (sample, some), weight in zip(rows.items(), (2.0, 0.5), strict=True):
        files[str(tmp_path / Path(sample).name)] = weight
        (tmp_path / Path(sample).name).write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")

    def build(directory):
        rows, report = chat_rows.read(files, split_by="family")
        train, validation, test = mixing.split(rows, 0.2, seed=42, report=report)
        parts = {"train": mixing.weigh(train, files, seed=42), "validation": validation, "test": test}
        tokenised.encode(directory, parts, report, model, None, 400, "stop", files)

    assert tokenised.find(build, files, model, **settings) is None
    estimate = token_counts.measure(files, 400, 0.2, model)
    built = tokenised.once(build, files, model, **settings)
    found = tokenised.find(build, files, model, **settings)
    truth = token_counts.measure(files, 400, 0.2, model, cached=found)
    train = built.statistics["splits"]["train"]
    assert (truth.rows, truth.tokens) == (train["rows"], train["tokens"])
    assert truth.lengths.tolist() == list(built.train()["length"])
    read, validation = built.statistics["rows_read"], built.statistics["splits"]["validation"]
    assert re.match(rf"tokenised cache of (79|80)\.\d% of all {read} rows \(the others are held out\); 1\d\.\d% of the rows are longer",
                    truth.source)  # fmt: skip
    assert re.fullmatch(rf"80% of all {read} rows \(the others are held out\), counted with the model's tokenizer; 1\d\.\d% of the rows "
                        r"are longer than MAX_SEQ_LENGTH and will be shortened", estimate.source)  # fmt: skip
    assert (truth.validation_rows, truth.validation_tokens) == (validation["rows"], validation["tokens"])
    assert estimate.validation_rows == pytest.approx(truth.validation_rows, rel=0.1)
    assert estimate.validation_tokens == pytest.approx(truth.validation_tokens, rel=0.2)
    assert truth.exact and not estimate.exact
    assert estimate.rows == pytest.approx(truth.rows, rel=0.03)
    assert estimate.tokens == pytest.approx(truth.tokens, rel=0.03)
    assert estimate.tokens == pytest.approx(estimate.rows * estimate.lengths.mean(), rel=0.01)
    assert estimate.shortened_share == pytest.approx(truth.shortened_share, abs=0.03)
    assert truth.shortened_share > 0.05, "the limit must bite, or the test says nothing about it"
    assert token_counts.attended_length(estimate) == pytest.approx(token_counts.attended_length(truth), rel=0.03)


def test_a_cache_of_anything_else_is_not_found(model, empty_cache, tmp_path, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", [100])

    def build(directory):
        (directory / "data.json").write_text("{}")

    built = tokenised.once(build, [file], model, max_length=1)
    assert tokenised.find(build, [file], model, max_length=1) == built
    assert tokenised.find(build, [file], model, max_length=2) is None
    assert tokenised.find(build, [file], None, max_length=1) is None
    assert tokenised.find(build, [file, str(tmp_path / "missing")], model, max_length=1) is None
    with monkeypatch.context() as patch:
        patch.setattr(tokenised, "LOOKED_AT", 10)
        assert tokenised.find(build, [file], model, max_length=1) is None, "it would have to be read"
    (tmp_path / "rows.jsonl").write_text("other")
    assert tokenised.find(build, [file], model, max_length=1) is None


def test_an_embedded_model_is_found_and_not_built(model, empty_cache, monkeypatch):
    assert tiny_models.find("tiny-llama") is None
    with pytest.raises(Refusal, match="no embedded model 'tiny-lama'"):
        tiny_models.find("tiny-lama")
    monkeypatch.delenv("RECIPES_CACHE")
    assert tiny_models.ensure("tiny-llama") == tiny_models.find("tiny-llama")


@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_of_a_file_with_a_long_tail_are_told_from_a_sample(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(sampled_lines, "BLOCKS", 64)  # 8 of the 27 MB
    characters = np.random.default_rng(7).lognormal(6.5, 1.2, 20_000).clip(20, 80_000).astype(int)
    truth = tokens_of(characters)
    counts = token_counts.measure({write_rows(tmp_path / "rows.jsonl", characters): 1.0}, 2000, seed=seed)
    assert counts.rows == pytest.approx(len(characters), rel=0.05)
    assert counts.tokens == pytest.approx(truth.clip(max=2000).sum(), rel=0.05)
    assert counts.shortened_share == pytest.approx((truth > 2000).mean(), rel=0.2)
    assert counts.lengths.max() == 2000
    assert np.median(counts.lengths) == pytest.approx(np.median(truth), rel=0.05)
    assert re.match(r"about 2\d,000 rows, told from a sample of \d+; .*; 1\.\d+% of the rows are longer than MAX_SEQ_LENGTH", counts.source)
    again = token_counts.measure({str(tmp_path / "rows.jsonl"): 1.0}, 2000, seed=seed)
    assert (again.tokens, again.source) == (counts.tokens, counts.source)


def test_long_rows_are_drawn_as_often_as_short_ones(tmp_path, monkeypatch):
    """Of the lines behind random places nearly all would be short here, of the lines at random places nearly all long."""
    monkeypatch.setattr(sampled_lines, "BLOCKS", 40)
    file = write_rows(tmp_path / "rows.jsonl", [40, 16_000] * 1000)
    counts = token_counts.measure({file: 1.0}, 10_000)
    assert counts.rows == pytest.approx(2000, rel=0.02)
    assert (counts.lengths > 1000).mean() == pytest.approx(0.5, abs=0.02)
    assert counts.tokens == pytest.approx(1000 * tokens_of([40, 16_000]).sum(), rel=0.02)


@pytest.mark.parametrize("length", [3, 7, 31, 62, 63, 64, 200])
def test_a_line_belongs_to_the_block_in_which_it_begins(tmp_path, monkeypatch, length):
    monkeypatch.setattr(sampled_lines, "BLOCK", 64)
    lines = [f"{n:03d}".encode() + b"x" * (length - 3) for n in range(50)]
    (tmp_path / "lines").write_bytes(b"\n".join(lines))
    with (tmp_path / "lines").open("rb") as content:
        blocks = [sampled_lines.begun_in(content, start) for start in range(0, 50 * (length + 1), 64)]
    assert [line for block in blocks for line in block] == lines
    assert [len(block) for block in blocks] == [sum(start <= n * (length + 1) < start + 64 for n in range(50))
                                                for start in range(0, 50 * (length + 1), 64)]  # fmt: skip


def test_rows_that_cannot_be_used_are_counted_and_the_first_is_named(tmp_path, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", [100] * 97)
    good = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(["\ufeff" + good[0], "", '{"text": "no turns"}', *good[1:], "not JSON", "[]"]))
    counts = token_counts.measure({file: 1.0}, 2048)
    assert (counts.rows, counts.tokens, len(counts.lengths)) == (97, 97 * tokens_of(100), 97)
    assert counts.unusable_share == pytest.approx(0.03)
    no_turns = f"{file} line 3: its text has no turns"
    how = "all 100 rows; no tokenizer on this machine: 4 characters a token assumed; 3 of them (3%) cannot be used"
    assert counts.source.startswith(f"{how}, and training will stop there: {no_turns}")
    assert counts.source.endswith('(BAD_ROWS = "skip" leaves such rows out)')
    skipped = token_counts.measure({file: 1.0}, 2048, bad_rows="skip")
    assert skipped.source.startswith(f"{how} and will be left out, the first: {no_turns}") and "BAD_ROWS" not in skipped.source
    monkeypatch.setattr(token_counts, "SMALL", 0)
    monkeypatch.setattr(token_counts, "COUNTED", 5000)
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n[]{' ' * 150}\n" for line in good * 4))
    sampled = token_counts.measure({file: 1.0}, 2048)
    assert sampled.rows == pytest.approx(388, rel=0.2) and sampled.tokens == sampled.rows * tokens_of(100)
    assert sampled.source.startswith("about 780 rows, told from a sample of 3")
    assert re.search(rf"about 5\d(\.\d+)?% of them cannot be used, and training will stop there: {file} line \d+: it is", sampled.source)
    (tmp_path / "rows.jsonl").write_text("{}\n[]\n")
    with pytest.raises(Refusal, match=r"none of the 2 rows that were looked at can be used; .*rows.jsonl line 1: it has no messages"):
        token_counts.measure({file: 1.0}, 2048)


def random_conversation(generator):
    """One to three exchanges, of which any turn may be long; some have a system message, two questions, or two answers at the end."""
    turns = [("system", 8)] * (generator.random() < 0.3)
    for _ in range(generator.integers(1, 4)):
        turns += [("user", generator.choice([20, 120, 700]))] * generator.choice([1, 1, 2])
        turns += [("assistant", generator.choice([20, 120, 500]))]
    turns += [("assistant", 100)] * (generator.random() < 0.2)
    starts = generator.integers(0, len(PROSE) - 800, len(turns))
    return [{"role": role, "content": PROSE[start : start + size]} for (role, size), start in zip(turns, starts, strict=True)]


def test_rows_that_training_refuses_are_unusable_and_no_others(model, tmp_path):
    """An answer that leaves no room, beside turns that can and cannot be taken away, and control tokens: against `encode` itself."""
    generator, limit = np.random.default_rng(5), 200
    conversations = [random_conversation(generator) for _ in range(250)]
    conversations[7][-1]["content"] = "It ends with <|eot_id|> here."
    tokenizer, refused = chat_text.load_tokenizer(model), {}
    for number, messages in enumerate(conversations):
        try:
            chat_text.encode(tokenizer, messages, limit)
        except chat_rows.BadRow as reason:
            refused[number] = str(reason)
    counter = conversation_tokens.Counter(model)
    assert [n for n, messages in enumerate(conversations) if counter.control_token(messages)] == [7]
    _, last, least, answer = counter.count(conversations).T
    unusable = set(np.flatnonzero(np.rint(least) > limit)) | {7}
    assert len(unusable ^ set(refused)) <= 2, "a token at a seam may decide"
    assert 30 < len(refused) < 220, "both kinds must be there, or the test says nothing"
    named = {n: re.search(r"answer has (\d+) tokens", reason) for n, reason in refused.items()}
    assert [answer[n] for n, found in named.items() if found] == pytest.approx([int(found[1]) for found in named.values() if found], abs=2)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    counts = token_counts.measure({str(file): 1.0}, limit, tokenizer_directory=model)
    assert counts.unusable_share == len(unusable) / 250
    assert f"{file} line {min(unusable) + 1}: its answer has about " in counts.source
    assert f"tokens and leaves no room for a prompt in MAX_SEQ_LENGTH = {limit}; answers are never cut" in counts.source
    dropped = []
    for number, messages in enumerate(conversations):
        try:
            chat_text.encode(tokenizer, messages, limit, long_documents="drop")
        except chat_text.TooLong:
            dropped.append(number)
        except chat_rows.BadRow:
            assert number in refused
    too_long = set(np.flatnonzero(np.rint(last) > limit)) - unusable
    assert len(too_long ^ set(dropped)) <= 2 and len(dropped) > 30
    left = token_counts.measure({str(file): 1.0}, limit, tokenizer_directory=model, long_documents="drop")
    assert left.rows == 250 - len(unusable) - len(too_long) == len(left.lengths)
    assert left.unusable_share == pytest.approx((len(unusable) + len(too_long)) / 250)
    assert (left.lengths == limit).sum() >= round(left.shortened_share * left.rows) > 0, "without their oldest turns they fit"
    said = f'% of the rows are longer than MAX_SEQ_LENGTH and will be left out (LONG_DOCUMENTS = "drop"); {len(unusable)} of them'
    assert said in left.source
    (tmp_path / "one.jsonl").write_text("".join(json.dumps({"messages": conversations[n]}) + "\n" for n in (7, 7)))
    with pytest.raises(Refusal, match=r"line 1: it holds the control token <\|eot_id\|> as text"):
        token_counts.measure({str(tmp_path / "one.jsonl"): 1.0}, 2048, tokenizer_directory=model)


def test_answers_that_are_too_long_are_told_from_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(token_counts, "SMALL", 0)
    monkeypatch.setattr(token_counts, "COUNTED_ROWS", 60)
    answers = [40, 40, 40, 6000] * 200
    rows = [{"question": "Why?", "answer": PROSE[n : n + size].ljust(size, ".")} for n, size in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = token_counts.measure({str(tmp_path / "rows.jsonl"): 1.0}, 512)
    assert counts.unusable_share == pytest.approx(0.25, abs=0.02)
    assert counts.rows == pytest.approx(600, abs=15) and counts.lengths.max() < 30
    assert "training will stop there" in counts.source and "its answer has about 1,500 tokens" in counts.source


def test_documents_that_are_too_long_are_shortened_or_left_out_as_the_recipe_does(tmp_path, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", [100] * 60 + [4000] * 40)
    shortened, dropped = (token_counts.measure({file: 2.0}, 500, long_documents=what) for what in ("shorten", "drop"))
    assert (shortened.rows, shortened.tokens) == (200, 120 * tokens_of(100) + 80 * 500)
    assert (dropped.rows, dropped.tokens, dropped.lengths.max()) == (120, 120 * tokens_of(100), tokens_of(100))
    assert (shortened.shortened_share, shortened.unusable_share) == pytest.approx((0.4, 0.0))
    assert (dropped.shortened_share, dropped.unusable_share) == pytest.approx((0.0, 0.4))
    assert "; 40% of the rows are longer than MAX_SEQ_LENGTH and will be shortened" in shortened.source
    assert '; 40% of the rows are longer than MAX_SEQ_LENGTH and will be left out (LONG_DOCUMENTS = "drop")' in dropped.source
    monkeypatch.setattr(token_counts, "SMALL", 0)
    sampled = token_counts.measure({write_rows(tmp_path / "many.jsonl", [100] * 600 + [4000] * 400): 1.0}, 500, long_documents="drop")
    assert sampled.rows == pytest.approx(600, abs=20) and sampled.lengths.max() <= tokens_of(100) + 1
    alone = write_rows(tmp_path / "long.jsonl", [4000] * 3)
    with pytest.raises(Refusal, match='none of the 3 rows .* used; they are longer than MAX_SEQ_LENGTH = 500, and LONG_DOCUMENTS = "drop"'):
        token_counts.measure({alone: 1.0}, 500, long_documents="drop")
    with pytest.raises(Refusal, match="longer than MAX_SEQ_LENGTH"):
        token_counts.measure({alone: 1.0}, 500, long_documents="drop", bad_rows="skip")


def test_what_cannot_be_counted_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "blank").write_text("\n \n")
    for files, why in (
        ({"missing.jsonl": 1.0}, "missing.jsonl does not exist"), ({str(tmp_path / "empty"): 1.0}, "is empty"),
        ({str(tmp_path / "blank"): 1.0}, "has no rows"), ({str(tmp_path / "blank"): 0.0}, "leave no row to train on"),
    ):  # fmt: skip
        with pytest.raises(Refusal, match=why):
            token_counts.measure(files, 2048)
    with pytest.raises(Refusal, match="leave no row to train on"):
        token_counts.measure({write_rows(tmp_path / "one.jsonl", [80]): 0.2}, 2048)


def test_weights_and_the_held_out_share_change_rows_tokens_and_lengths(tmp_path):
    first, second, third = (write_rows(tmp_path / f"{n}.jsonl", [n] * 200) for n in (80, 400, 800))
    counts = token_counts.measure({first: 0.5, second: 2.0, third: 0}, 2048, held_out=0.1)
    assert counts.rows == 90 + 360 and counts.tokens == 90 * tokens_of(80) + 360 * tokens_of(400)
    assert np.bincount(counts.lengths)[[30, 110]].tolist() == [90, 360] == [(counts.lengths == n).sum() for n in (30, 110)]
    assert (np.diff(counts.lengths) >= 0).all(), "in the order of the files"
    assert (counts.validation_rows, counts.validation_tokens) == (20, 10 * (tokens_of(80) + tokens_of(400))), "without weights"
    assert token_counts.measure({first: 1.0}, 2048).validation_tokens == 0
    assert counts.source.startswith("90% of all 400 rows (the others are held out); no tokenizer")


def cache_of(lengths, **splits):
    row = {"rows_read": 100_000, "bad_row_count": 1000, "files": {"a": {"rows_after_weighting": 90_000, "weight": 1.5}},
           "splits": {"train": {"shortened": 6000}, **splits}}  # fmt: skip
    return SimpleNamespace(lengths=lambda: lengths, statistics=row)


def test_of_a_cache_all_lengths_are_kept_and_packed():
    lengths = np.random.default_rng(2).lognormal(5, 1, 90_000).clip(1, 2048).astype(np.int32)
    held_out = {"validation": {"rows": 4950, "tokens": 777}, "test": {"rows": 4950}}
    counts = token_counts.measure({}, 2048, cached=cache_of(lengths, **held_out))
    assert counts.exact and counts.lengths is lengths
    assert (counts.rows, counts.tokens, counts.validation_rows, counts.validation_tokens) == (90_000, lengths.sum(), 4950, 777)
    assert (counts.unusable_share, counts.shortened_share) == pytest.approx((0.01, 0.1))
    assert counts.source == (
        "tokenised cache of 90% of all 99,000 rows (the others are held out); 10% of the rows are longer than MAX_SEQ_LENGTH and "
        "will be shortened; 1,000 rows (1%) cannot be used and are left out"
    )
    assert token_counts.measure({}, 2048, cached=cache_of(lengths)).source.startswith("tokenised cache; 10% of the rows")
    with_long_ones = cache_of(lengths, **held_out)
    with_long_ones.statistics |= {"rows_read": 103_000, "too_long_count": 3000}
    counts = token_counts.measure({}, 2048, cached=with_long_ones)
    assert counts.unusable_share == pytest.approx(4 / 103) and counts.source.startswith("tokenised cache of 90% of all 99,000 rows")
    assert counts.source.endswith(
        "; 3,000 rows (2.91%) are longer than MAX_SEQ_LENGTH and are left out; 1,000 rows (0.971%) cannot be used and are left out"
    )


def test_of_very_many_rows_so_many_lengths_are_kept_that_stand_for_them(monkeypatch):
    lengths = np.random.default_rng(2).lognormal(5, 1, 90_000).clip(1, 2048).astype(np.int32)
    monkeypatch.setattr(token_counts, "KEPT_OF_CACHE", 20_000)
    counts = token_counts.measure({}, 2048, cached=cache_of(lengths))
    assert (counts.rows, counts.tokens, len(counts.lengths), counts.exact) == (90_000, lengths.sum(), 20_000, False)
    whole = counts_of(lengths)
    assert token_counts.packing(counts, 2048) == pytest.approx(token_counts.packing(whole, 2048), rel=0.02)
    assert token_counts.attended_length(counts) == pytest.approx(token_counts.attended_length(whole), rel=0.03)


def test_a_tokenizer_is_found_on_this_machine_alone(model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert token_counts.tokenizer_directory("owner/name") is None
    assert token_counts.tokenizer_directory("no/such/name") is None
    assert token_counts.tokenizer_directory(str(tmp_path)) is None
    assert token_counts.tokenizer_directory(model) == model
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    assert token_counts.tokenizer_directory("owner/name") == str(snapshot)
    assert token_counts.tokenizer_directory("owner/name", "a" * 40) == str(snapshot)
    assert token_counts.tokenizer_directory("owner/name", "other") is None


def test_counting_imports_nothing_heavy_and_leaves_a_process_that_can_fork(model):
    """A run counts first, and tokenises in a forked child: `tokenizers` warns of threads that were started before."""
    program = f"""
import os, sys
from common import token_counts
counts = token_counts.measure({SAMPLES!r}, 512, 0.1, token_counts.tokenizer_directory({model!r}))
heavy = {{"torch", "transformers", "datasets", "trl"}} & set(sys.modules)
print(counts.tokens > 0, heavy)
sys.stdout.flush()
if not (child := os.fork()):
    from tokenizers import Tokenizer
    Tokenizer.from_file({model + "/tokenizer.json"!r}).encode_batch(["a", "b"])
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True set()\n", "")


def test_packing_fills_as_many_rows_as_trl(model):
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    generator = np.random.default_rng(0)
    for lengths in (
        generator.lognormal(6, 0.8, 2500).clip(1, 2048).astype(int), generator.integers(1, 3000, 1500), np.full(900, 700),
        generator.choice([512, 1023, 1024, 1025, 2047, 2048], 1500), np.full(5, 2048),
    ):  # fmt: skip
        counts = counts_of(lengths)
        packed = pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), 2048, "bfd")
        rows, efficiency = token_counts.packing(counts, 2048)
        assert rows == len(packed)
        assert efficiency == pytest.approx(sum(map(len, packed["input_ids"])) / (2048 * len(packed)))
    assert token_counts.packing(counts_of(lengths, rows=5000), 2048)[0] == 5000


def test_padding_and_attended_length_against_counting():
    lengths = np.random.default_rng(1).integers(10, 500, 1600)
    one, two = (token_counts.padding_share(counts_of(lengths), 4, gpus, 42) for gpus in (1, 2))
    assert 0 < one < 0.03 and 0 < two < 0.03 and one != two
    assert token_counts.padding_share(counts_of([7] * 64), 4, 2, 0) == 0
    assert token_counts.padding_share(counts_of([10, 30]), 2, 1, 0) == pytest.approx(20 / 60)
    assert token_counts.attended_length(counts_of([10, 30])) == pytest.approx((100 + 900) / 40)
