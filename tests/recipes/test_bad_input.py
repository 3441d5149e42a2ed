"""Bad input through the recipe's own entry: a sentence with file and line or the values, exit code 2, no traceback.

What costs a new process is shown by a handful of them; the rest call `main()` and look at the `Refusal` that the command prints.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import cache, log, refusal, tiny_models, tokenised

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "llama32_qlora.py"
GOOD = {"messages": [{"role": "user", "content": "What is power?"}, {"role": "assistant", "content": "One minus the type II error."}]}
OWN_DATA = {"split_by": "id", "held_out": 0}


@pytest.fixture(scope="module")
def tiny_model():
    """The embedded model, from the repository's cache. Torch is loaded first: the data are then tokenised right here and not in
    a forked child that imports everything anew for each test; the commands below show the child."""
    import torch  # noqa: F401

    return tiny_models.ensure("tiny-llama")


@pytest.fixture
def here(tmp_path, tiny_model, monkeypatch):
    """The test's own directory as cache and outputs; the embedded model is borrowed from the repository's cache."""
    assert Path(tiny_model).parent == cache.root() / "tiny_models"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny_models").symlink_to(Path(tiny_model).parent)
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    log.close()


@pytest.fixture
def main(here):
    """`main(**overrides)` of the tiny recipe, writing into the test's own directory; returns the sentence it refuses with."""
    spec = importlib.util.spec_from_file_location("llama32_qlora", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)

    def run(**overrides):
        with pytest.raises(refusal.Refusal) as refused:
            recipe.main(tiny=True, output_dir=str(here / "outputs"), **overrides)
        assert not (here / "outputs").exists()  # refused before anything was written
        return str(refused.value)

    return run


def command(here, *flags, recipe=RECIPE, **environment):
    """The user's own command; returns what it says after `error: `, when it ends as it should."""
    ended = subprocess.run(
        [sys.executable, str(recipe), "--tiny", "--output-dir", str(here / "outputs"), *flags],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert not (here / "outputs").exists()
    return said.removeprefix("error: ")


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n")
    return str(path)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        pytest.param(b'{"messages": [', "it is not JSON", id="no JSON"),
        pytest.param({"topic": "power"}, "it has no messages (its keys are topic)", id="without messages"),
        pytest.param(
            chat(("user", "Why?"), ("bot", "So.")), "message 2 has the role 'bot'; known are system, user, assistant", id="unknown role"
        ),
        pytest.param(chat(("user", " "), ("assistant", "So.")), "message 1 (user) has empty content", id="empty content"),
        pytest.param(chat(("user", "a"), ("assistant", "b"), ("user", "c")), "it ends with a user turn", id="ends with the user"),
        pytest.param(b'{"messages": "\xe9"}', "byte 15 is not UTF-8", id="invalid UTF-8"),
        pytest.param(chat(("user", "Why?"), ("assistant", "because " * 600)), "answers are never cut", id="answer too long"),
        pytest.param(chat(("user", "<|eot_id|>"), ("assistant", "So.")), "holds the control token <|eot_id|>", id="control token"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(main, here, bad, said):
    path = write(here / "rows.jsonl", GOOD, GOOD, bad, GOOD)
    sentence = main(train_files={path: 1.0}, **OWN_DATA)
    assert sentence.startswith(f"{path} line 3: ")
    assert said in sentence
    assert 'BAD_ROWS = "skip"' in sentence


def test_an_answer_that_is_too_long_is_named_with_both_numbers(main, here):
    path = write(here / "rows.jsonl", chat(("user", "Why?"), ("assistant", "7" * 100)))
    assert "its answer has 100 tokens and leaves no room for a prompt in MAX_SEQ_LENGTH = 64" in main(
        train_files={path: 1.0}, max_seq_length=64, **OWN_DATA
    )


def test_missing_and_empty_files(main, here):
    assert f"{here}/no.jsonl does not exist" in main(train_files={f"{here}/no.jsonl": 1.0})
    (here / "empty.jsonl").touch()
    assert f"{here}/empty.jsonl is empty" in main(train_files={f"{here}/empty.jsonl": 1.0})


def test_values_that_cannot_be(main, here):
    path = write(here / "rows.jsonl", *[GOOD] * 3)
    assert main(train_files={path: -0.5}).startswith(f"TRAIN_FILES['{path}'] is -0.5, a float; it must be a number of 0 or more")
    assert "leave no row to train on" in main(train_files={path: 0}, **OWN_DATA)
    assert main(max_seq_length=(2048,)).startswith("MAX_SEQ_LENGTH is (2048,), a tuple; it must be a whole number above 0.")
    assert "HELD_OUT is 10" in main(train_files={path: 1.0}, split_by="id", held_out=10)
    assert "come from 1 source question" in main(train_files={path: 1.0}, split_by="id", held_out=0.1)
    assert "SAVE_STEPS = 10 is no multiple of EVAL_STEPS = 4" in main(save_steps=10, eval_steps=4)


def test_unknown_names(main, here):
    assert "'learning_rte'" in main(learning_rte=1.0)
    (here / "run.yaml").write_text("lora:\n  r: 8\n  alpah: 16\n")
    assert "'alpah' in 'lora'" in main(config=str(here / "run.yaml"))


@pytest.mark.parametrize("kind", ["absent", "another directory", "interrupted"])
def test_a_checkpoint_that_is_none(main, here, kind):
    path = here / ("checkpoint-5" if kind != "another directory" else "final_model")
    if kind != "absent":
        path.mkdir()
        (path / "trainer_state.json").touch()
    wanted = {"absent": "does not exist", "another directory": "named checkpoint-N", "interrupted": "has no manifest.json"}[kind]
    sentence = main(resume_from_checkpoint=str(path))
    assert str(path) in sentence
    assert wanted in sentence


def test_an_initial_model_that_is_none(main, here):
    assert f"{here}/final_model" in main(initial_model=f"{here}/final_model")
    (here / "final_model").mkdir()
    sentence = main(initial_model=f"{here}/final_model")
    assert sentence.startswith("INITIAL_MODEL is ")
    assert "neither config.json nor adapter_config.json" in sentence


def test_a_model_that_is_none(main, here):
    assert "no such directory" in main(model_name=f"{here}/model")
    assert "no embedded model 'tiny-lama'" in main(model_name="tiny-lama")


# Real commands


def test_the_command_ends_with_the_sentence_and_exit_code_2(here):
    path = write(here / "rows.jsonl", GOOD, b"no json")
    said = command(here, "--train-files", f"{path}=1.0", "--held-out", "0", "--split-by", "id")
    assert said.startswith(f"{path} line 2: it is not JSON")


def test_an_unknown_flag(here):
    assert command(here, "--lerning-rate", "1").startswith("there is no flag --lerning-rate; the nearest is --learning-rate")


def test_a_stray_comma_in_the_recipe(here):
    recipe = here / "recipes" / "llama32_qlora.py"
    recipe.parent.mkdir()
    source = RECIPE.read_text(encoding="utf-8")
    changed = source.replace("MAX_SEQ_LENGTH: PositiveInt = 2048 ", "MAX_SEQ_LENGTH: PositiveInt = 2048, ")
    changed = re.sub(r'\n    "MAX_SEQ_LENGTH": .*', "", changed)  # what TINY says would hide it
    assert changed.count("2048, ") == source.count("2048, ") + 1
    recipe.write_text(changed, encoding="utf-8")
    assert command(here, recipe=recipe).startswith("MAX_SEQ_LENGTH is (2048,), a tuple; it must be a whole number above 0. A stray comma")


def test_a_tokenizer_without_chat_template(here, tiny_model):
    model = here / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").unlink()
    said = command(here, "--model-name", str(model))
    assert said.startswith(f"the tokenizer of {model} has no chat template")
    assert "Instruct" in said


def test_a_gpu_that_is_too_small(here):
    program = here / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA A2, 512, 500, 580.95.05'\n")
    program.chmod(0o755)
    path = write(here / "rows.jsonl", b"no row")  # what comes after the plan
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0"}
    said = command(here, "--train-files", f"{path}=1", **environment)
    assert said.startswith("this run cannot fit: with these constants it needs ")
    assert "NVIDIA A2 has 512 MiB. " in said
    assert "it is not JSON" in command(here, "--train-files", f"{path}=1", "--no-plan", **environment)


def test_a_run_that_no_machine_can_hold(main, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = main(max_seq_length=2_000_000, per_device_train_batch_size=65536)
    assert re.match(r"this run cannot fit: .* and CPU has .* Change PER_DEVICE_TRAIN_BATCH_SIZE 65536 -> \d+ and ", said)


def test_no_room_for_one_checkpoint(here):
    """The step that opens a run, given a model whose adapter no disk can hold."""
    import torch

    from common import constants, run_directory, watching

    spec = importlib.util.spec_from_file_location("llama32_qlora", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    settings = constants.resolve(vars(recipe), {"tiny": True})
    run = run_directory.RunDirectory(here / "outputs" / "run")
    enormous = torch.nn.Linear(10**8, 10**7, bias=False, device="meta")  # 10^15 parameters, none of them in memory
    with pytest.raises(refusal.Refusal) as refused:
        watching.begin(run, None, settings, enormous, "tiny-llama", tokenised.Tokenised(here), [], [])
    assert str(refused.value).startswith("one checkpoint needs 16000.0 TB and the disk of ")
    assert "OUTPUT_DIR" in str(refused.value)
    assert not run.path.exists()  # no run that seems to go on for ever
