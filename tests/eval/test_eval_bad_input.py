"""What evaluation refuses: a sentence with what was found and the way out, exit code 2, no traceback."""

import json
import shutil
import sys

import pytest

from common.refusal import guard


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run a command in this process; the sentence with which it refused."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            guard(module.main)
        said = capsys.readouterr()
        assert stop.value.code == 2 and "Traceback" not in said.err, (said.out, said.err)
        return said.err

    return call


def checkpoint(refused, *arguments):
    import eval_checkpoint

    return refused(eval_checkpoint, "--max-new-tokens", 4, "--no-base", "--checkpoint", *arguments)


def test_a_path_that_is_no_checkpoint(refused, run, tmp_path):
    assert "does not exist" in checkpoint(refused, tmp_path / "nothing")
    assert "is a file" in checkpoint(refused, run.constants)
    assert "neither adapter_config.json nor config.json" in checkpoint(refused, run.path)


def test_a_run_without_held_out_rows(refused, run):
    run.test.write_text("")
    assert "has no rows" in checkpoint(refused, run.final_model)
    run.test.write_text('{"messages": [{"role": "user", "content": "?"}]}\n')
    assert "test.jsonl line 1 is no held-out row" in checkpoint(refused, run.final_model)
    run.test.unlink()
    assert "test.jsonl is missing" in checkpoint(refused, run.final_model)


def test_an_adapter_whose_base_is_gone(refused, run):
    facts = json.loads(run.run.read_text())
    run.run.write_text(json.dumps(facts | {"model_name": "/gone/base"}))
    config = run.final_model / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/too"}))
    said = checkpoint(refused, run.final_model)
    assert "base model cannot be found" in said and "/gone/base (run.json)" in said and "/gone/too (adapter_config.json)" in said


def test_an_adapters_own_config_serves_when_run_json_is_silent(run, made):
    import saved_model

    run.run.write_text("{}")
    config = run.final_model / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(made.path.parent / "base")}))
    assert saved_model.base_of(run, run.final_model).source == str(made.path.parent / "base")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "owner/model", "revision": "abc"}))
    assert saved_model.base_of(run, run.final_model) == saved_model.Saved("base", "base", "owner/model", "abc")


def test_a_revision_that_the_adapter_leaves_out_is_run_jsons_for_the_same_model(run):
    import saved_model

    facts, config = json.loads(run.run.read_text()), run.final_model / "adapter_config.json"
    run.run.write_text(json.dumps(facts | {"model_name": "owner/model", "model_revision": "abc"}))

    def base(**changed):
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
        return saved_model.base_of(run, run.final_model)

    assert base(base_model_name_or_path="owner/model", revision=None) == saved_model.Saved("base", "base", "owner/model", "abc")
    assert base(revision="own").revision == "own"
    assert base(base_model_name_or_path="owner/other", revision=None) == saved_model.Saved("base", "base", "owner/other", None)


def test_an_empty_adapter(refused, run):
    from safetensors.torch import save_file

    save_file({}, run.final_model / "adapter_model.safetensors")
    assert "holds 0 tensors" in checkpoint(refused, run.final_model)


def test_a_full_model_that_lacks_tensors(refused, run, made):
    from safetensors.torch import load_file, save_file

    place = shutil.copytree(made.path.parent / "base", run.path / "checkpoint-3")
    tensors = load_file(place / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 tensors" in checkpoint(refused, place)
    (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:5000])
    assert "cannot be loaded" in checkpoint(refused, place)


def test_a_tokenizer_without_chat_template(refused, run):
    (run.final_model / "chat_template.jinja").unlink()
    assert "has no chat template" in checkpoint(refused, run.final_model)
    tokenizer = run.final_model / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text()[:1000])
    assert "cannot be loaded" in checkpoint(refused, run.final_model)


def test_flags_that_contradict_themselves(refused, run):
    for arguments, words in (
        (["--greedy", "--temperature", 1], "--greedy takes no"),
        (["--temperature", 0], "must be above 0"),
        (["--top-p", 1.5], "at most 1"),
        (["--rows", 0], "no whole number of at least 1"),
        (["--colour"], "unknown flag --colour"),
        (["-x"], "unknown flag -x"),
    ):
        assert words in checkpoint(refused, run.final_model, *arguments)


def test_eval_all_without_a_run(refused, tmp_path, monkeypatch, run):
    import eval_all

    monkeypatch.chdir(tmp_path)
    assert "no run found under outputs/" in refused(eval_all)
    assert "is not a directory" in refused(eval_all, tmp_path / "nothing")
    assert "has no checkpoint-6; it has base, checkpoint-5" in refused(eval_all, run.path, "--only", "checkpoint-6")


def test_a_models_answer_cannot_steer_the_terminal():
    import table

    example = {"id": "1", "question": "q", "reference": "r", "answer": "\x1b[31mred\x1b]0;title\x07\n2nd", "rougeL": 0.0}
    shown = table.side_by_side({"examples": [example]})
    assert "\x1b" not in shown and "\x07" not in shown and "2nd" in shown
