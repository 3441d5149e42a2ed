"""The command over a whole run: what it writes, what it skips, what it says of broken checkpoints."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def summary(run):
    return json.loads((run.eval / "summary.json").read_text())


@pytest.fixture(scope="module")
def judged(made, tmp_path_factory):
    """A run after one call of the command, and what it printed."""
    from common.run_directory import RunDirectory

    home = tmp_path_factory.mktemp("judged")
    run = RunDirectory(shutil.copytree(made.path, home / "outputs" / "tiny"))
    command = ["bash", REPOSITORY / "eval" / "eval_all_checkpoints.sh", "--max-new-tokens", "16"]  # the newest run under outputs/
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_everything_is_judged_and_the_best_is_named(judged):
    run, said = judged
    names = ["base", "checkpoint-5", "checkpoint-10", "final_model"]
    assert summary(run)["names"] == names and summary(run)["failed"] == {}
    results = {name: json.loads((run.eval / f"{name}.json").read_text()) for name in names}
    lowest = min(names[1:], key=lambda name: results[name]["metrics"]["validation_loss"]["mean"])
    assert summary(run)["best"] == lowest == "checkpoint-10"  # of equals the checkpoint, not its copy final_model
    assert "best: checkpoint-10, the lowest loss on validation.jsonl" in said
    assert {name: result["step"] for name, result in results.items()} == {
        "base": 0,
        "checkpoint-5": 5,
        "checkpoint-10": 10,
        "final_model": None,
    }
    assert len({result["settings_key"] for result in results.values()}) == 1  # so their figures may be compared
    assert results["final_model"]["same_weights_as"] == "checkpoint-10" and "same weights as checkpoint-10" in said
    for result in results.values():
        for figures in result["metrics"].values():
            assert figures["low"] <= figures["mean"] <= figures["high"]


def test_the_table_stands_on_the_terminal_and_in_markdown_with_the_files_figures(judged):
    run, said = judged
    found = json.loads((run.eval / "checkpoint-5.json").read_text())["metrics"]
    cells = [f"{found[key]['mean']:.3f} [{found[key]['low']:.3f}, {found[key]['high']:.3f}]" for key in ("loss", "rouge2", "rougeL")]
    markdown = (run.eval / "table.md").read_text()
    for cell in cells:
        assert cell in said and cell in markdown
    assert [line for line in markdown.splitlines() if line.startswith("| checkpoint-5 |")]
    assert "best: checkpoint-10" in markdown


def test_curves_and_report_are_written(judged):
    run, _ = judged
    content = (run.eval / "curves.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG") and width > 1000 and height > 500
    assert "checkpoint-10" in run.report.read_text()


def test_the_table_and_the_report_name_every_figure_alike(judged):
    from common.measures import METRICS

    run, said = judged
    for metric in (metric for key, metric in METRICS.items() if key != "exact"):  # these references are long
        assert f" {metric.name} |" in (run.eval / "table.md").read_text() and f" {metric.name}" in said
        assert metric.name.replace("-", "\u2011") in run.report.read_text()


def test_the_model_cards_have_the_figures(judged, tmp_path, evaluate):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from common.run_directory import RunDirectory, read_json

    def cell(result, metric):
        return f"{result['metrics'][metric]['mean']:.2f} ["

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "tiny"))
    final = read_json(run.eval / "final_model.json")
    rouge = next(line for line in (run.final_model / "README.md").read_text().splitlines() if line.startswith("| ROUGE-L |"))
    assert cell(final, "rougeL") in rouge and cell(read_json(run.eval / "base.json"), "rougeL") in rouge
    base = AutoModelForCausalLM.from_pretrained(read_json(run.run)["model_name"])
    PeftModel.from_pretrained(base, run.final_model).merge_and_unload().save_pretrained(run.merged_model)
    AutoTokenizer.from_pretrained(run.final_model).save_pretrained(run.merged_model)
    (run.final_model / "README.md").unlink()
    assert evaluate(run.path, "--max-new-tokens", 16, "--workers", 1)[0] == 0
    body = (run.merged_model / "README.md").read_text()
    assert "the figures are those of final_model" in body and "| | base | final_model | this model |" in body
    loss = next(line for line in body.splitlines() if line.startswith("| Loss |"))
    assert loss.split(" | ")[3].startswith(cell(read_json(run.eval / "merged_model.json"), "loss"))
    assert rouge in (run.final_model / "README.md").read_text()


def test_the_cards_code_runs_and_asks_with_trainings_date(judged, tmp_path, monkeypatch, capsys):
    from common import chat_text, model_card
    from common.run_directory import RunDirectory, read_json

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "tiny"))
    template = run.final_model / "chat_template.jinja"
    template.write_text("{{ date_string }} " + template.read_text())
    model_card.write(run.final_model, run)
    code = (run.final_model / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace('BASE = "base"', f"BASE = {read_json(run.run)['model_name']!r}")
    monkeypatch.chdir(run.final_model)
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    asked = found["tokenizer"].decode(found["output"][0])
    assert asked.startswith(chat_text.render(found["tokenizer"], found["messages"], add_generation_prompt=True))
    assert asked.startswith(chat_text.DATE) and capsys.readouterr().out.strip()


def test_a_second_call_judges_nothing_and_broken_checkpoints_do_not_stop_the_rest(judged, tmp_path, evaluate):
    import torch
    from safetensors.torch import load_file, save_file

    from common.run_directory import RunDirectory

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "tiny"))
    before = {path: path.stat().st_mtime_ns for path in run.eval.glob("*.json") if path.name != "summary.json"}
    weights = (run.final_model / "adapter_model.safetensors").read_bytes()
    for number, name in enumerate(["truncated", "no config", "nan", "empty", "zero", "stranger", "no weights"], 20):
        place = shutil.copytree(run.path / "checkpoint-10", run.path / f"checkpoint-{number}")
        file = place / "adapter_model.safetensors"
        tensors = load_file(file)
        if name == "truncated":
            file.write_bytes(weights[: len(weights) // 2])
        elif name == "no config":
            (place / "adapter_config.json").unlink()
        elif name == "nan":
            tensors[sorted(tensors)[0]][0, 0] = float("nan")
            save_file(tensors, file)
        elif name == "empty":
            save_file({}, file)
        elif name == "zero":
            save_file({key: torch.zeros_like(tensor) if "lora_B" in key else tensor for key, tensor in tensors.items()}, file)
        elif name == "stranger":
            save_file({key.replace("layers.1", "layers.7"): tensor for key, tensor in tensors.items()}, file)
        else:
            file.unlink()
    code, said = evaluate(run.path, "--max-new-tokens", 16, "--workers", 1)
    assert code == 1
    failed = summary(run)["failed"]
    assert set(failed) == {f"checkpoint-{number}" for number in range(20, 27)}
    for number, words in enumerate(
        ["cut short", "neither adapter_config.json", "NaN", "holds 0 tensors", "is all zero", "disagree on", "not saved whole"], 20
    ):
        assert words in failed[f"checkpoint-{number}"], failed
        assert f"checkpoint-{number} was not judged" in said
    assert summary(run)["names"] == ["base", "checkpoint-5", "checkpoint-10", "final_model"]
    assert said.count("judged before") == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_workers_share_the_models_and_give_the_same(judged, tmp_path, evaluate, monkeypatch):
    from common.run_directory import RunDirectory

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "tiny"))
    shutil.rmtree(run.eval)
    (run.path / "checkpoint-10" / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    code, _ = evaluate(run.path, "--max-new-tokens", 16, "--workers", 2)
    assert code == 1 and set(summary(run)["failed"]) == {"checkpoint-10"}
    for name in ("base", "checkpoint-5", "final_model"):
        ours, theirs = (json.loads((place.eval / f"{name}.json").read_text()) for place in (run, judged[0]))
        assert ours["metrics"].keys() == theirs["metrics"].keys()
        for metric, figure in theirs["metrics"].items():
            assert ours["metrics"][metric] == pytest.approx(figure, rel=1e-5), metric  # sums depend on a worker's number of threads
    assert summary(run)["best"] == "final_model" and not list(run.eval.glob(".*"))


def test_of_a_worker_that_dies_midway_the_table_keeps_what_was_judged(judged, tmp_path, evaluate, monkeypatch):
    import psutil

    from common.run_directory import RunDirectory

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "tiny"))
    shutil.rmtree(run.eval)
    weights = run.path / "checkpoint-10" / "adapter_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)  # nobody writes to it: the worker stands still here until it is killed
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def kill():
        deadline = time.monotonic() + 60
        while not (run.eval / "base.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # on to checkpoint-10
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # what has ended has no command line
                if "base,checkpoint-10,final_model" in child.cmdline():
                    child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    code, said = evaluate(run.path, "--max-new-tokens", 16, "--workers", 2)
    killer.join()
    assert code == 1 and summary(run)["names"] == ["base", "checkpoint-5"]
    assert set(summary(run)["failed"]) == {"checkpoint-10", "final_model"} and "its process died" in summary(run)["failed"]["checkpoint-10"]
    assert "base was not judged" not in said and "| base |" in (run.eval / "table.md").read_text()


@pytest.fixture
def environment():
    """os.environ, as it was afterwards."""
    before = dict(os.environ)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


def test_figures_and_examples_go_to_wandb_offline_where_nobody_is_logged_in(judged, tmp_path, environment, capsys):
    import tracker

    from common.run_directory import RunDirectory

    run = RunDirectory(shutil.copytree(judged[0].path, tmp_path / "tiny"))
    environment.update(WANDB_API_KEY="", WANDB_MODE="", NETRC=str(tmp_path / "no netrc"))
    results = [json.loads((run.eval / f"{name}.json").read_text()) for name in ("base", "checkpoint-10")]
    assert tracker.log(run, results, results[0], "auto") is None  # REPORT_TO names tensorboard only
    assert tracker.wanted("wandb", "auto") and tracker.wanted(["tensorboard", "wandb"], "auto") and not tracker.wanted("wandb", "none")
    directory = Path(tracker.log(run, results, results[0], "wandb"))
    assert run.logs in directory.parents and "W&B is not logged in" in capsys.readouterr().out
    log, deadline = next(directory.parent.glob("*.wandb")), time.monotonic() + 20
    while b"eval/examples" not in log.read_bytes() and time.monotonic() < deadline:  # W&B's own process writes it
        time.sleep(0.1)
    assert b"eval/rougeL" in log.read_bytes() and b"eval/examples" in log.read_bytes()
    tables = list(directory.rglob("*.table.json"))
    assert len(json.loads(tables[0].read_text())["data"]) == 12


@pytest.mark.parametrize("script", ["eval_checkpoint.py", "eval_all.py"])
def test_help_and_a_typo_answer_within_a_second(script):
    for arguments, code, words in ((["--help"], 0, "--max-new-tokens"), (["--max-new-token", "5"], 2, "nearest is --max-new-tokens")):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, REPOSITORY / "eval" / script, *arguments], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(REPOSITORY)})  # fmt: skip
        assert time.perf_counter() - start < 1
        assert done.returncode == code and words in done.stdout + done.stderr and "Traceback" not in done.stderr
