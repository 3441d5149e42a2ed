"""Report and model card of a model trained from scratch: what they show, what they leave out, and that everything in them is text."""

import json
import re

import pytest
from example_run import interval, write_metrics
from test_report import Page

from common import model_card, report
from common.run_directory import RunDirectory, read_json, write_json

EVIL = "<script>alert(1)</script> & \u202e backwards"
CONSTANTS = {"MODEL_NAME": "gpt-1.2B", "MAX_SEQ_LENGTH": 2048, "TRAIN_BATCH_SIZE": 128, "TRAIN_FILES": ["/home/somebody/tokens"],
             "SEED": 42, "LEARNING_RATE": 6e-4, "WANDB_API_KEY": "secret", "MAX_GRAD_NORM": 1.0}  # fmt: skip
FOREIGN = ("ROUGE", "Base model", "base model", "base_model", "conversation", "question", "Numbers", "per answer", "label token", "unsloth",
           "Only the assistant", "adapter", "LoRA")  # fmt: skip


def judged(name, step, loss):
    example = {"id": "document 7", "beginning": f"The history {EVIL}", "reference": " of Rome", "continuation": EVIL * 500}
    return {
        "name": name, "step": step, "kind": "pretraining", "settings": {"judge": 1}, "settings_key": "a", "weights": name, "rows": 488,
        "tokens": 999_424, "groups": 310, "resampled": "rows that begin in the same document", "frequency_loss": 7.1,
        "metrics": {"loss": interval(loss, 0.02), "perplexity": interval(2.718**loss, 0.5), "bits_per_byte": interval(loss / 3.1, 0.01)},
        "speed": {"tokens_per_second": 41_000.0, "seconds_of_loss": 24.1}, "examples": [example],
    }  # fmt: skip


def write_run(path, evaluated=True, tiny=False):
    run = RunDirectory(path)
    write_json(run.constants, CONSTANTS)
    write_json(run.run, {
        "kind": "pretraining", "recipe": "gpt_pretrain", "model_name": "gpt-1.2B", "tiny": tiny, "status": "finished", "steps": 1000,
        "command": "python recipes/gpt_pretrain.py --train-files /home/somebody/tokens", "hardware": "8 x H100", "seconds": 7200,
        "versions": {"torch": "2.13.0"}, "notes": ["no GPU: /home/somebody/x"], "warnings": [],
    })  # fmt: skip
    sides = {"files": 20, "shards": 20, "rows": 195_312, "tokens": 400_000_000, "documents": 512_345}
    write_json(run.data, {
        "kind": "tokens", "context": 2048, "files_in_all": 20,
        "files": {f"shard-0000{n}-000.bin": {"tokens": 20_000_000} for n in range(9)},
        "held_out_files": ["shard-00009-000.bin"], "tokenizer": {"digest": "00ff00ff00ff00ff", "vocab_size": 50_257, "end_of_text": 50_256},
        "splits": {"train": sides, "validation": sides | {"files": 1, "tokens": 10_000_000, "documents": None}},
        "skipped": {"empty": 12},
    })  # fmt: skip
    lines = []
    for step in range(10, 1001, 10):
        entry = {"step": step, "loss": 3 + 8 / step**0.5, "learning_rate": 6e-4, "grad_norm": 0.5, "tokens_per_second": 950_000.0}
        lines.append(entry | {"memory_gb": 61.0, "mfu": 0.42, "gpu_utilisation": 0.99, "files": step // 200})
        if step % 250 == 0:
            lines.append({"step": step, "eval_loss": 3.1 + 8 / step**0.5, "eval_bits_per_byte": 1 + 2 / step**0.5})
    write_metrics(run, lines)
    write_json(run.samples, [{"beginning": "", "text": EVIL}, {"beginning": "The history of", "text": "x" * 9_000}])
    write_json(run.final_model / "config.json", {"n_layer": 24, "n_embd": 2048, "n_head": 16, "n_positions": 2048, "vocab_size": 50_257})
    write_json(run.final_model / "tokenizer.json", {})
    if evaluated:
        for name, step, loss in (("checkpoint-500", 500, 3.4), ("checkpoint-1000", 1000, 3.2), ("final_model", None, 3.2)):
            write_json(run.eval / f"{name}.json", judged(name, step, loss))
        write_json(run.eval / "summary.json", {"best": "checkpoint-1000", "best_by": "lowest loss on held-out tokens", "failed": {}})
    return run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "gpt_pretrain")


def words(run):
    page = Page(report.write(run).read_text(encoding="utf-8"))
    return page, " ".join(" ".join(page.words).split())


def test_the_report_has_the_figures_the_curves_and_the_tokens(run):
    page, text = words(run)
    assert "gpt-1.2B, trained from scratch" in text
    assert "On 999,424 held-out tokens, final_model has a loss of 3.20 [3.18, 3.22] nats per token" in text
    assert "which is 1.03 [1.02, 1.04] bits per byte of text." in text
    assert "Whoever knew only how often each of these tokens comes would have 7.10." in text
    assert "Since checkpoint-500 the loss on these tokens fell from 3.40 to 3.20." in text
    assert "About 262,144,000 tokens were learned, 5 files through to their end (there are 20)." in text
    assert "950,000 tokens a second (median), at 42.0 % model FLOPs utilisation" in text
    for title in ("Loss", "Bits per byte on held-out tokens", "Speed", "Model FLOPs utilisation", "Files trained to their end", "GPU busy"):
        assert title in page.words or title in text
    assert "rows that begin in the same document (488 rows in 310 groups)" in text and "lowest loss on held-out tokens" in text
    assert "3.400" in text and "3.380–3.420" in text and "41,000" in text
    for shown in ("400,000,000", "512,345", "50,257", "00ff00ff00ff00ff", "9 training files of 20", "12 × empty"):
        assert shown in text
    assert "Held out: shard-00009-000.bin" in text


def test_nothing_of_fine_tuning_nothing_of_the_machine(run):
    _, text = words(run)
    card = model_card.write(run.final_model, run).read_text(encoding="utf-8")
    for place in (text, card):
        for word in FOREIGN:
            assert word not in place, word
        assert "/home/somebody" not in place and "secret" not in place and str(run.path.parent) not in place


@pytest.mark.parametrize(("changed", "name"), [({}, "gpt-1.2B"), ({"HIDDEN_SIZE": 64}, "gpt-1.2B with width 64"),
    ({"HIDDEN_SIZE": 64, "NUM_HIDDEN_LAYERS": 2, "NUM_ATTENTION_HEADS": 4}, "GPT of 2 layers, width 64, 4 heads")])  # fmt: skip
def test_a_model_of_another_size_has_not_the_large_ones_name(run, changed, name):
    write_json(run.constants, CONSTANTS | {"NUM_HIDDEN_LAYERS": None} | changed)
    card = model_card.write(run.final_model, run).read_text(encoding="utf-8")
    assert f"{name}, trained from scratch" in words(run)[1] and f"A language model ({name})" in card
    assert ("MODEL_NAME" in card) == (len(changed) < 3) and "= `None`" not in card


def test_texts_are_shown_as_text_and_shortened(run):
    page, text = words(run)
    assert "script" not in page.tags and "<script>alert(1)</script>" in text and "\u202e" not in text and "[U+202E]" in text
    assert "characters not shown" in text and "x" * 3_000 not in text
    assert text.count("backwards") < 200
    assert not [value for _, name, value in page.attributes if name.startswith("on") or "://" in (value or "")]


@pytest.mark.parametrize("left_out", ["eval", "samples.json", "data.json", "logs/metrics.jsonl", "constants.json"])
def test_what_is_missing_is_left_out(tmp_path, left_out):
    import shutil

    run = write_run(tmp_path / "gpt_pretrain")
    path = run.path / left_out
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, text = words(run)
    card = model_card.write(run.final_model, run).read_text(encoding="utf-8")
    if left_out == "eval":
        assert "Not evaluated yet" in text and "Not evaluated yet." in card and "Held-out texts gone on with" not in text
    if left_out == "samples.json":
        assert "Samples" not in text
    assert "trained from scratch" in card


@pytest.mark.parametrize("broken", ["[1, 2", "7", '{"a": 1}', '[1, null, {"text": null}, {"beginning": 3, "text": ["x"]}]'])
def test_broken_samples_do_not_stop_the_report(run, broken):
    run.samples.write_text(broken, encoding="utf-8")
    _, text = words(run)
    assert "trained from scratch" in text


def test_odd_figures_do_not_stop_report_or_card(run):
    facts = read_json(run.eval / "final_model.json")
    odd = [{"tokens": "many"}, {"frequency_loss": None}, {"examples": [3, {"id": None}]}, {"speed": None}, {"metrics": {"loss": {}}}]
    for change in odd:
        write_json(run.eval / "final_model.json", facts | change)
        words(run)
        model_card.write(run.final_model, run)


def test_the_card_says_what_the_model_is_and_how_to_load_it(run):
    card = model_card.write(run.final_model, run).read_text(encoding="utf-8")
    front = card.split("---")[1]
    assert "pipeline_tag: text-generation" in front and "library_name: transformers" in front and "datasets" not in front
    assert "trained from scratch" in card and "24 layers, 2,048 wide, 16 heads, 2,048 positions, 50,257 tokens" in card
    assert "| Bits per byte, of UTF-8 text | 1.032 [1.022, 1.042] |" in card and "rows that begin in the same document" in card
    assert "262 million tokens were learned" in card and "rows of 2,048 tokens" in card and "across documents" in card
    assert "of no use" not in card and "- LEARNING\\_RATE" not in card and "- LEARNING_RATE = `0.0006`" in card
    write_json(run.run, read_json(run.run) | {"tiny": True})
    assert "the model itself is of no use" in model_card.write(run.final_model, run).read_text(encoding="utf-8")


def test_the_cards_code_runs_with_and_without_a_tokenizer(tmp_path, monkeypatch, capsys):
    import torch
    from transformers import AutoTokenizer

    from common import encoding, gpt, gpt_export

    run = write_run(tmp_path / "gpt_pretrain")
    (run.final_model / "tokenizer.json").unlink()
    encoding.train([b"The history of everything is the history of nothing."] * 20, 270, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    torch.manual_seed(0)
    model = gpt.GPT(gpt.Shape(len(tokenizer), 256, 32, 1, 2))
    gpt_export.save(model.state_dict(), model.shape, run.final_model, tokenizer.eos_token_id)
    monkeypatch.chdir(run.final_model)
    for save in (lambda: None, lambda: tokenizer.save_pretrained(run.final_model)):
        save()
        card = model_card.write(run.final_model, run).read_text(encoding="utf-8")
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()
    assert "tokenizer.eos_token" in code and json.loads((run.final_model / "config.json").read_text())["model_type"] == "gpt2"
