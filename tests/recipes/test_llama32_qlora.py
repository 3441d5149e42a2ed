"""The recipe as a user runs it: trained, judged, on two ranks, from Python, from another run's model."""

import json
import math
import os

import torch
from safetensors.torch import load_file
from user_commands import ROOT, train

from common.run_directory import read_json


def measured(run):
    """{step: (loss, grad norm, learning rate)}; the last one counts where a step was logged twice."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {m["step"]: (m["loss"], m["grad_norm"], m["learning_rate"]) for m in lines if "loss" in m}


def test_everything_a_run_promises_is_there(tiny_run):
    run = tiny_run.run
    facts = read_json(run.run)
    assert facts["status"] == "finished" and facts["steps"] == 128 and facts["tiny"] is True
    assert [step for step, _ in run.whole_checkpoints()] == [48, 96, 128]
    for directory in (run.path, run.final_model, *(path for _, path in run.checkpoints())):
        assert read_json(directory / "constants.json")["LORA_R"] == 16, directory
    assert set(measured(run)) == set(range(5, 128, 5)), "a line every LOGGING_STEPS"
    assert list(run.tensorboard.glob("events.out.tfevents.*")) and list(run.logs.glob("wandb/offline-run-*"))
    log = run.training_log.read_text()
    assert "LEARNING_RATE" in log and "step 125/128" in log and "held-out loss" in log
    assert "W&B is not logged in" in tiny_run.output and "no GPU" in facts["notes"][0]
    assert not (run.path / "README.md").exists() and "base_model" in (run.final_model / "README.md").read_text()
    assert run.report.stat().st_size > 10_000


def test_one_example_is_shown_with_its_labels_marked(tiny_run):
    spans = read_json(tiny_run.run.data)["example"]["spans"]
    labels = [span["text"] for span in spans if span["label"]]
    assert len(labels) == 1 and labels[0].endswith("<|eot_id|>") and "Source:" in labels[0]
    assert f"[[{labels[0].splitlines()[0]}" in tiny_run.output
    assert "".join(span["text"] for span in spans).count("<|begin_of_text|>") == 1


def test_held_out_rows_are_of_templates_never_trained_on(tiny_run):
    sides = [{json.loads(line)["group"] for line in file.open()} for file in (tiny_run.run.validation, tiny_run.run.test)]
    trained = read_json(tiny_run.run.data)["splits"]["train"]["groups"]
    assert sides[0].isdisjoint(sides[1]) and trained + len(sides[0]) + len(sides[1]) == 220


def test_it_learns_and_the_intervals_say_so(judged_run):
    base, final = (read_json(judged_run.run.eval / f"{name}.json")["metrics"] for name in ("base", "final_model"))
    assert final["loss"]["high"] < base["loss"]["low"]
    assert final["rougeL"]["low"] > base["rougeL"]["high"]
    page = judged_run.run.report.read_text()
    assert "do not overlap" in page and "do not trust" in page.lower()
    best = read_json(judged_run.run.eval / "summary.json")["best"]
    assert f"best: {best}" in judged_run.output


def test_the_adapter_moved_and_the_merged_model_says_the_same(tiny_run):
    from transformers import AutoModelForCausalLM

    state = load_file(tiny_run.run.final_model / "adapter_model.safetensors")
    assert len(state) == 2 * 7 * 4 and all(t.dtype == torch.float32 and t.any() for t in state.values())
    merge = read_json(tiny_run.run.run)["merge"]
    assert 0 < merge["relative_rms"] < merge["tolerance"] and merge["top1_agreement"] > 0.95
    model = AutoModelForCausalLM.from_pretrained(tiny_run.run.merged_model)
    assert model.dtype == torch.bfloat16 and not hasattr(model.config, "quantization_config")


def test_two_ranks_under_zero_2(tmp_path):
    flags = ("--max-steps", "6", "--save-steps", "6", "--eval-steps", "3", "--logging-steps", "1", "--report-to", "[]", "--no-merge")
    launcher = ("deepspeed", "--num_gpus=2", f"--master_port={20000 + os.getpid() % 10000}")
    ran = train(tmp_path, *flags, name="two", launcher=launcher)
    assert ran.returncode == 0, ran.output
    assert ran.output.count("llama32_qlora: constants") == 1, "rank 0 speaks"
    assert "6 steps of 8 x 1 x 2 rank(s)" in ran.output
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["two"]
    losses = [loss for loss, _, _ in measured(ran.run).values()]
    assert len(losses) == 6 and losses[-1] < losses[0] and all(map(math.isfinite, losses))
    state = load_file(ran.run.final_model / "adapter_model.safetensors")
    assert all(t.numel() and t.any() for t in state.values())
    assert list((ran.run.path / "checkpoint-6").glob("global_step6/*optim_states.pt")), "ZeRO's sharded optimiser"


def test_main_is_the_api_and_goes_on_from_another_runs_model(tiny_run, tmp_path, warm):
    program = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from recipes import llama32_qlora
first = llama32_qlora.main(tiny=True, output_dir={str(tmp_path)!r}, run_name="on", max_steps=4, learning_rate=1e-4,
                           initial_model={str(tiny_run.run.final_model)!r}, report_to=[], merge=False, logging_steps=1)
print("RESULT", json.dumps(first))
"""
    (tmp_path / "program.py").write_text(program)
    code, output = warm.call([str(tmp_path / "program.py")], tmp_path)
    assert code == 0, output
    result = json.loads(output.rsplit("RESULT", 1)[1])
    assert result["steps"] == 4 and result["run"] == str(tmp_path / "on") and result["merged_model"] is None
    fresh, trained = measured(tiny_run.run)[5][0], result["train_loss"]
    assert trained < fresh / 1.5, "it starts where the other run ended"


def test_a_loss_of_nan_stops_with_a_sentence_and_a_taken_name_is_left_alone(tiny_run, warm):
    home = tiny_run.run.path.parent
    flags = ("--learning-rate", "1e38", "--max-grad-norm", "0", "--max-steps", "40", "--logging-steps", "2")
    ran = train(home, *flags, name="llama32_qlora_tiny", warm=warm)
    assert ran.returncode == 2 and "Traceback" not in ran.output, ran.output
    assert "the loss became NaN" in ran.output and "lower LEARNING_RATE" in ran.output
    assert "tokenised data found in" in ran.output, "the cache of the first run"
    assert read_json(home / "llama32_qlora_tiny-2" / "run.json")["status"] == "failed"
    assert read_json(tiny_run.run.run)["status"] == "finished"
