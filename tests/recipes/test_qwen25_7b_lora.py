"""The recipe that sizes itself, by the commands of its documentation: config, overrides, resume; 4 bit and 16; what it refuses."""

import csv
import json
import math
import re

import pytest
import yaml
from user_commands import ROOT, Ran, call, imported

from common import hardware
from common.refusal import Refusal
from common.run_directory import RunDirectory, read_json

RECIPE = "recipes/qwen25_7b_lora.py"
FEW = ("--logging-steps", "1", "--no-merge", "--report-to", "[]")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("sized")


@pytest.fixture(scope="module")
def learned(home, warm):
    """`python recipes/qwen25_7b_lora.py --tiny`, then base and end judged on half of the test rows."""
    code, said = call(["python", RECIPE, "--tiny", "--output-dir", str(home / "learned")], home, OMP_NUM_THREADS="1")
    assert code == 0, said
    run = RunDirectory(home / "learned")
    code, judged = warm.plainly(["eval/eval_all.py", str(run.path), "--only", "base,final_model", "--rows", "30"], home)
    assert code == 0, judged
    return Ran(0, said, run)


def losses(run, name="loss"):
    """{step: value}; the last one counts where a step was logged twice."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {found["step"]: found[name] for found in lines if name in found}


def test_it_learns_and_the_intervals_say_so(learned):
    base, final = (read_json(learned.run.eval / f"{name}.json")["metrics"] for name in ("base", "final_model"))
    assert final["loss"]["high"] < base["loss"]["low"] and final["rougeL"]["low"] > base["rougeL"]["high"]
    held = losses(learned.run, "eval_loss")
    assert min(held.values()) < 0.75 * held[min(held)] and set(losses(learned.run, "eval_perplexity")) == set(held)


def test_what_is_learned_is_the_answer_in_qwens_own_turns(learned):
    spans = read_json(learned.run.data)["example"]["spans"]
    [label] = [span["text"] for span in spans if span["label"]]
    assert label.endswith("<|im_end|>") and "".join(s["text"] for s in spans).startswith("<|im_start|>system\n")


def test_the_run_has_what_the_documentation_names(learned):
    run, merge = learned.run, read_json(learned.run.run)["merge"]
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"):
        assert (run.final_model / name).is_file(), name
    assert list(run.tensorboard.glob("events.out.tfevents.*")) and (run.checkpoints()[-1][1] / "trainer_state.json").is_file()
    assert 0 < merge["relative_rms"] < merge["tolerance"] and list(run.merged_model.glob("*.safetensors"))
    assert not list(run.logs.glob("wandb")), "TensorBoard alone is what REPORT_TO says"
    assert "vllm serve" in (run.merged_model / "README.md").read_text() and "vllm serve" in learned.output
    assert "nats per label token" in learned.output, "the curve in the terminal"
    assert re.search(r"at the measured [\d,]+ tokens/s.*1,000 take .*100,000", learned.output)


# From raw rows in five formats through a config file in sections


@pytest.fixture(scope="module")
def config(home, warm):
    """A config file of the documentation's layout: the shipped example, its paths those of rows prepared from five formats."""
    rows = [json.loads(line)["messages"] for line in (ROOT / "samples/cross_validated.jsonl").open()][:200]
    pairs = [(messages[-2]["content"], messages[-1]["content"]) for messages in rows]
    with (home / "mixed.jsonl").open("w") as out:
        for place, (messages, (question, answer)) in enumerate(zip(rows, pairs, strict=True)):
            rendered = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
            forms = ({"messages": messages}, {"instruction": question, "input": "", "output": answer},
                     {"prompt": question, "completion": answer}, {"text": rendered})  # fmt: skip
            if place % 5 < 4:
                out.write(json.dumps(forms[place % 5]) + "\n")
    with (home / "table.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("Question", "Answer"), *pairs[4::5]])
    files = f"{home / 'mixed.jsonl'},{home / 'table.csv'}"
    code, said = call(["python", "prepare/chat_files.py", "--files", files, "--output", str(home / "chat")], home)
    assert code == 0, said
    for kind in ("messages", "instruction", "prompt", "question", "text"):
        assert kind in said
    text = (ROOT / "recipes/qwen25_7b_lora.yaml").read_text().replace("data/chat/", f"{home / 'chat'}/")
    text = text.replace("outputs/my_run", str(home / "output"))
    for key, value in (("num_epochs: 3", "num_epochs: 1"), ("# use_qlora: true", "use_qlora: true"), ("# lora_rank: 16", "lora_rank: 8"),
                       ("# per_device_train_batch_size: 2", "per_device_train_batch_size: 8"), ("# save_steps: 100", "save_steps: 4"),
                       ("# gradient_accumulation_steps: 8", "gradient_accumulation_steps: 2"), ("# eval_steps: 100", "eval_steps: 4"),
                       ("# max_seq_length: 2048", "max_seq_length: 512"), ("logging_steps: 10", "logging_steps: 2"),
                       ("# gradient_checkpointing: true", "gradient_checkpointing: false"),
                       ("report_to: [tensorboard]", "report_to: [tensorboard, wandb]")):  # fmt: skip
        assert key in text
        text = text.replace(key, value)
    (home / "my_config.yaml").write_text(text)
    return str(home / "my_config.yaml")


@pytest.fixture(scope="module")
def configured(config, home, warm):
    """`python recipes/qwen25_7b_lora.py --config my_config.yaml`"""
    code, said = warm.call([RECIPE, "--tiny", "--config", config, "--no-merge"], home)
    assert code == 0, said
    return Ran(code, said, RunDirectory(home / "output"))


def test_every_key_of_a_config_in_sections_is_heeded(configured):
    found, facts = read_json(configured.run.constants), read_json(configured.run.run)
    assert (found["LORA_R"], found["LORA_ALPHA"], found["LOAD_IN_4BIT"], found["NUM_TRAIN_EPOCHS"]) == (8, 16, True, 1.0)
    assert found["GRADIENT_CHECKPOINTING"] == "none" and found["LEARNING_RATE"] == 2e-4 and facts["model_name"].count("tiny-qwen2")
    steps = facts["steps"]
    assert f"{steps} steps of 8 x 2 x 1 rank(s) rows" in configured.output and steps >= 8
    assert set(losses(configured.run)) == set(range(2, steps + 1, 2)) and {4, 8} <= set(losses(configured.run, "eval_loss"))
    assert [step for step, _ in configured.run.whole_checkpoints()][0] == 4
    assert list(configured.run.tensorboard.glob("events.out.tfevents.*")) and list(configured.run.logs.glob("wandb/offline-run-*"))
    assert "<- config" in configured.output and read_json(configured.run.data)["splits"]["validation"]["rows"] == 10


def test_flags_override_the_config_and_another_run_is_left_alone(configured, config, home, warm):
    flags = ("--learning-rate", "3e-4", "--num-epochs", "5", "--max-steps", "2", *FEW)
    code, said = warm.call([RECIPE, "--tiny", "--config", config, *flags], home)
    assert code == 2 and f"OUTPUT_DIR {home}/output holds another run, saved at step " in said and "--resume-from-checkpoint auto" in said
    code, said = warm.call([RECIPE, "--tiny", "--config", config, *flags, "--output-dir", str(home / "other")], home)
    assert code == 0, said
    found = read_json(home / "other" / "constants.json")
    assert (found["LEARNING_RATE"], found["NUM_TRAIN_EPOCHS"], found["MAX_STEPS"]) == (3e-4, 5.0, 2)
    assert read_json(home / "other" / "run.json")["steps"] == 2, "max_steps before epochs"


def test_it_resumes_from_the_checkpoint_that_is_named(configured, config, home, warm):
    before, named = losses(configured.run), str(home / "output" / "checkpoint-4")
    code, said = warm.call([RECIPE, "--tiny", "--config", config, *FEW[2:], "--resume-from-checkpoint", named], home)
    assert code == 0 and "resuming from checkpoint-4" in said, said
    assert losses(configured.run) == before, "the same losses again"


def test_the_run_from_raw_rows_is_judged(configured, home, warm):
    code, said = warm.plainly(["eval/eval_all.py", str(configured.run.path), "--only", "final_model", "--rows", "5"], home)
    assert code == 0 and math.isfinite(read_json(configured.run.eval / "final_model.json")["metrics"]["loss"]["mean"]), said


PROGRAM = """
import json, sys
sys.path.insert(0, {root!r})
from recipes import qwen25_7b_lora as recipe
from common import held_out_loss, models

seen, load, step = {{}}, models.load, held_out_loss.HeldOutLoss.training_step

def loading(*arguments, **keywords):
    model, tokenizer = load(*arguments, **keywords)
    weights = [module.weight for name, module in model.named_modules() if name.endswith("_proj")]
    seen["weights"] = sorted({{(type(w).__name__, str(w.dtype)) for w in weights}})
    return model, tokenizer

models.load = loading
common = dict(tiny=True, merge=False, report_to=[], eval_strategy="no", logging_steps=1)
found = {{}}
for name, four_bit in (("four", True), ("sixteen", False)):
    recipe.main(use_qlora=four_bit, max_steps=2, output_dir={home!r} + "/" + name, **common)
    found[name] = seen["weights"]

def stepping(self, model, inputs, *rest):
    import torch
    if self.state.global_step >= 1 and len(inputs["input_ids"]) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return step(self, model, inputs, *rest)

for name in ("whole", "shrunk"):
    recipe.main(max_steps=3, save_strategy="epoch", save_steps=None, output_dir={home!r} + "/" + name, **common)
    held_out_loss.HeldOutLoss.training_step = stepping
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def programmed(learned, home, warm):
    """Four runs from Python: 4 bit, 16 bit; three steps, and the same with memory that runs out."""
    (home / "program.py").write_text(PROGRAM.format(root=str(ROOT), home=str(home)))
    code, said = warm.call([str(home / "program.py")], home)
    assert code == 0, said
    return json.loads(said.rsplit("FOUND ", 1)[1]), said


def test_without_qlora_the_weights_are_of_16_bit(programmed, home):
    found, _ = programmed
    assert found["four"] == [["Params4bit", "torch.uint8"]] and found["sixteen"] == [["Parameter", "torch.bfloat16"]]
    assert read_json(home / "sixteen" / "constants.json")["LOAD_IN_4BIT"] is False


def test_memory_that_runs_out_shrinks_the_micro_batch_and_nothing_else(programmed, home):
    whole, shrunk = (losses(RunDirectory(home / name)) for name in ("whole", "shrunk"))
    assert set(shrunk) == {1, 2, 3} and shrunk == pytest.approx(whole, rel=0.01)
    said = [w for w in read_json(home / "shrunk" / "run.json")["warnings"] if w.startswith("memory ran out in step 2 with ")]
    assert len(said) == 2, "8 rows at once, 4, then 2"
    saved = read_json(home / "shrunk" / "checkpoint-3" / "constants.json")
    assert (saved["PER_DEVICE_TRAIN_BATCH_SIZE"], saved["GRADIENT_ACCUMULATION_STEPS"]) == (2, 4)


def test_two_ranks_under_zero_2(learned, home, warm):
    flags = ("--tiny", "--max-steps", "2", "--per-device-train-batch-size", "4", *FEW, "--output-dir", str(home / "two"))
    code, said = warm.call([RECIPE, *flags], home, ranks=2)
    assert code == 0 and "2 steps of 4 x 1 x 2 rank(s)" in said and said.count("qwen25_7b_lora: constants") == 1, said
    assert list((home / "two" / "checkpoint-2").glob("global_step2/*optim_states.pt")), "ZeRO's sharded optimiser"


# Bad input: a sentence, exit code 2, before anything loads


@pytest.fixture(scope="module")
def main():
    with imported("qwen25_7b_lora") as main:
        yield main


@pytest.fixture
def refused(main, tmp_path):
    """The sentence with which --tiny and these keywords are refused; nothing is left behind."""

    def refuse(**keywords):
        with pytest.raises(Refusal) as refusal:
            main(**{"tiny": True, "output_dir": str(tmp_path / "out"), **keywords})
        assert not (tmp_path / "out").exists()
        return str(refusal.value)

    return refuse


def test_what_contradicts_itself_is_refused(refused):
    assert "BF16 and FP16 are both True; a run computes in one of them" in refused(fp16=True)
    assert "BF16 and FP16 are both False" in refused(bf16=False)
    said = refused(save_strategy="epoch", eval_strategy="epoch", save_steps=48)
    assert 'SAVE_STRATEGY is "epoch" and SAVE_STEPS is 48; a checkpoint comes after each epoch' in said
    assert "FP16 is True, which is for GPUs older than bf16, and there is no GPU here" in refused(fp16=True, bf16=False)


def test_a_gpu_without_bf16(refused, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda *_: [hardware.Gpu("Tesla T4", 15.0, 15.0, "580.1")])
    said = refused(bf16=True)
    assert "BF16 is True, and Tesla T4 has no bf16; set BF16 = False and FP16 = True" in said


def test_keys_that_are_none(refused, tmp_path):
    for text, wanted in (
        ("training: {num_epoch: 3}\n", "the key 'num_epoch' in 'training', which is no constant of this recipe; the nearest is NUM_EPOCHS"),
        ("model: {use_qlor: true}\n", "the nearest is USE_QLORA"),
        ("training: {learning_rate: fast}\n", "LEARNING_RATE is 'fast'; it must be a number above 0"),
        ("training: {save_strategy: best}\n", "it must be one of 'steps', 'epoch'"),
        ("model: {lora_rank: 8, lora_r: 8}\n", "sets LORA_R twice"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        assert wanted in refused(config=str(tmp_path / "config.yaml"))


def test_an_output_directory_that_holds_something_else(learned, main, tmp_path):
    def refuse(directory):
        with pytest.raises(Refusal) as refusal:
            main(tiny=True, output_dir=str(directory))
        return str(refusal.value)

    assert "holds another run, saved at step" in refuse(learned.run.path)
    assert "holds runs (" in refuse(learned.run.path.parent)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    assert "holds other things (todo.txt); name a directory that is new or empty" in refuse(tmp_path / "notes")
    assert f"OUTPUT_DIR is '{tmp_path}/my run'; its last part is the run's name: letters, digits" in refuse(tmp_path / "my run")
    with pytest.raises(Refusal, match="a run goes on in its own directory: leave OUTPUT_DIR out, or set it to"):
        main(tiny=True, output_dir=str(tmp_path / "new"), resume_from_checkpoint=str(learned.run.checkpoints()[0][1]))


def test_rows_that_cannot_be_used(refused, tmp_path):
    rows = [json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(4)]
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    train.write_text("".join(rows))
    files = {"train_file": str(train), "validation_file": str(valid)}
    (tmp_path / "two.jsonl").write_text("".join(rows[:2]))
    said = refused(train_file=str(tmp_path / "two.jsonl"))
    assert "the rows come from 2 source question(s); HELD_OUT = 0.2 needs at least 3" in said, "other rows than data/chat judge these"
    assert "valid.jsonl does not exist" in refused(**files)
    valid.write_text("")
    assert "valid.jsonl is empty; VALIDATION_FILE must name" in refused(**files)
    valid.write_text(rows[1])
    assert "valid.jsonl shares 1 of its 1 rows with those it is to judge" in refused(**files)
    train.write_text("question,answer\nWhat?,That.\n")
    train.rename(tmp_path / "train.csv")
    assert "is a CSV table" in refused(train_file=str(tmp_path / "train.csv"))


def test_configs_for_three_gpus_are_heeded_to_the_letter(refused, tmp_path, monkeypatch):
    """As in common advice for a 4090, an A40 and an A100: what they set comes before GPU_PRESETS."""
    from qwen25_7b_lora import GPU_PRESETS, main

    for batch, accumulation, length, checkpointing, four_bit, rank in ((2, 8, 2048, True, True, 16), (4, 4, 2048, True, False, 32),
                                                                       (8, 2, 4096, False, False, 64)):  # fmt: skip
        training = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_seq_length": length,
                    "gradient_checkpointing": checkpointing, "bf16": True}  # fmt: skip
        config = {"training": training, "model": {"use_qlora": four_bit, "lora_rank": rank}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        job = main(plan=True, json=True, tokens=1000, gpus="A100", config=str(tmp_path / "config.yaml"))["job"]
        found = tuple(job[name] for name in ("load_in_4bit", "lora_r", "per_device_train_batch_size", "gradient_accumulation_steps",
                                             "max_seq_length", "gradient_checkpointing"))  # fmt: skip
        assert found == (four_bit, rank, batch, accumulation, length, "true" if checkpointing else "none")
        assert len(found) == len(GPU_PRESETS["GPU"])
