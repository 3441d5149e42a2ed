"""The 32B recipe by the user's own commands, shrunk: it learns facts in two ranks, equals an un-sharded run, survives kills."""

import json
import re
import time

import numpy as np
import pytest
import torch
from compared_runs import differences, logged
from object_store import free_port
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_commands import ROOT, call, imported, train, user_environment

from common import accelerators, chat_text, compute, dimensions, manifest, tiny_models
from common.run_directory import RunDirectory, read_json

RECIPE = "mtg_full_32b"
STEPS = 50
QUIETLY = ("--report-to", "[]", "--test-file", "none")
# What the issue of small updates is about: the learning rate of the 32B, bf16 weights, 50 steps
# in less than an epoch, in whose last step accelerate fills up the batch of the second rank with rows that had their turn.
SMALL_STEPS = ("--max-steps", str(STEPS), "--learning-rate", "2e-5", "--warmup-steps", "5", "--logging-steps", "1", "--save-steps", "20",
               "--eval-steps", "25", "--per-device-train-batch-size", "16")  # fmt: skip
RANKS = (*SMALL_STEPS, "--gradient-checkpointing", "true")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module")
def learned(home):
    """`deepspeed --num_gpus=2 recipes/mtg_full_32b.py --tiny`, with five epochs of the ten."""
    launcher = ["deepspeed", "--num_gpus=2", f"--master_port={free_port()}"]
    found = train(home, "--num-train-epochs", "5", name="learned", recipe=RECIPE, launcher=launcher, OMP_NUM_THREADS="1")
    assert found.returncode == 0, found.output
    return found


@pytest.fixture(scope="module")
def sharded(home, warm):
    """Two ranks under ZeRO-3 in bf16, with the learning rate of the 32B."""
    return done(train(home, *QUIETLY, *RANKS, name="sharded", recipe=RECIPE, warm=warm, ranks=2))


@pytest.fixture(scope="module")
def sharded_fp32(home, warm):
    return done(train(home, *QUIETLY, *RANKS, "--bf16", "false", name="sharded_fp32", recipe=RECIPE, warm=warm, ranks=2))


@pytest.fixture(scope="module")
def whole_fp32(home, warm):
    """One process without DeepSpeed: plain PyTorch on the same rows."""
    flags = [*QUIETLY, *SMALL_STEPS, "--bf16", "false", "--use-deepspeed", "false", "--per-device-train-batch-size", "32"]
    return done(train(home, *flags, name="whole_fp32", recipe=RECIPE, warm=warm))


def done(found):
    assert found.returncode == 0, found.output
    return found


def losses(run):
    return {line["step"]: line["loss"] for line in logged(run) if "loss" in line}


def held_out(run):
    return {line["step"]: line["eval_loss"] for line in logged(run) if "eval_loss" in line}


def weights(directory):
    return {name: tensor.double() for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


# It learns


def test_it_answers_facts_in_words_never_trained_on(learned):
    exact = {line["step"]: line["eval_exact_match"] for line in logged(learned.run) if "eval_exact_match" in line}
    assert exact[0] < 0.1 and exact[max(exact)] > 0.5
    facts = read_json(learned.run.run)
    assert facts["test_exact_match"] > 0.5 and facts["status"] == "finished"
    trained = {json.loads(line)["messages"][0]["content"] for line in (ROOT / "samples/mtg_facts/train.jsonl").open()}
    assert not any(json.loads(line)["messages"][0]["content"] in trained for line in learned.run.test.open())


def test_plain_transformers_give_the_answers_it_counted(learned):
    """Greedy generation by the saved model alone, as often exact as training said."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(learned.run.final_model), AutoTokenizer.from_pretrained(learned.run.final_model)
    assert model.dtype == torch.bfloat16
    rows = [json.loads(line)["messages"] for line in learned.run.test.open()][:60]
    right = []
    for messages in rows:
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            written = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        right.append(tokenizer.decode(written) == messages[-1]["content"] + tokenizer.eos_token)  # it stops by itself
    assert np.mean(right) == pytest.approx(read_json(learned.run.run)["test_exact_match"], abs=0.15)


def test_one_run_one_cache_one_tracker_and_what_it_says(learned):
    run, said = learned.run, learned.output
    assert len(list(run.wandb.glob("wandb/offline-run-*"))) == 1
    assert len({path.name.split(".")[-2] for path in run.tensorboard.rglob("events.*")}) == 1  # the process that wrote them
    assert [path.name for path in run.path.parent.iterdir() if path.is_dir() and path.name.startswith("learned")] == ["learned"]
    assert said.count("tokenised data") == 1 and said.count("parameters are trained (100.00%)") == 1
    assert "all 39 tensors have moved after 2 steps; what the optimiser moves is fp32" in said
    assert re.search(r"145 steps of 32 x 1 x 2 rank\(s\) rows, about [\d,]+ tokens each", said)
    resolved = read_json(run.ds_config)
    assert resolved["zero_optimization"]["stage"] == 3 and resolved["train_batch_size"] == 64 and resolved["bf16"]["enabled"] is True
    assert "auto" not in json.dumps(resolved)
    assert read_json(run.run)["export"]["relative_rms"] < 0.02
    assert "Traceback" not in said and "report: " in said


def test_the_weights_are_divided(learned):
    mine, all_of_it, ranks = re.search(r"weights: ([\d.]+) MB of ([\d.]+) MB on this one of (\d) ranks", learned.output).groups()
    assert float(mine) == pytest.approx(float(all_of_it) / 2, abs=0.06) and ranks == "2"


def test_every_checkpoint_is_a_model_and_what_a_resume_needs(learned):
    for step, path in learned.run.whole_checkpoints():
        assert manifest.verify(path) == []
        assert {"config.json", "model.safetensors", "tokenizer.json", "constants.json"} <= {file.name for file in path.iterdir()}
        assert len(list(path.glob(f"global_step{step}/*optim_states.pt"))) == 2
    assert len(learned.run.whole_checkpoints()) == 2


def test_the_test_file_is_judged_once(learned):
    judged = [line for line in logged(learned.run) if "test_loss" in line]
    assert [line["test_exact_match"] for line in judged] == [read_json(learned.run.run)["test_exact_match"]]


# ZeRO-3 is the un-sharded run


def test_two_ranks_have_the_losses_of_one_unsharded_process(sharded_fp32, whole_fp32):
    assert sharded_fp32.run.ds_config.exists() and not whole_fp32.run.ds_config.exists()
    assert len(losses(whole_fp32.run)) == STEPS
    assert losses(sharded_fp32.run) == pytest.approx(losses(whole_fp32.run), rel=1e-5)
    assert held_out(sharded_fp32.run) == pytest.approx(held_out(whole_fp32.run), rel=1e-5)


def test_and_its_final_weights(sharded_fp32, whole_fp32, base):
    for run in (sharded_fp32.run, whole_fp32.run):
        assert read_json(run.run)["export"]["relative_rms"] < 1e-5  # reloaded: the live model's logits
    one, other = (moved(weights(run.final_model), base) for run in (sharded_fp32.run, whole_fp32.run))
    assert (one - other).norm() < 1e-3 * other.norm()


@pytest.fixture(scope="module")
def base():
    from pathlib import Path

    return weights(Path(tiny_models.ensure("tiny-r1")))


def moved(now, before):
    return torch.cat([(now[name] - before[name]).flatten() for name in sorted(before)])


def test_fp32_masters_move_as_an_fp32_reference_does(sharded, whole_fp32, base):
    """With bf16 weights and a learning rate of 2e-5; the bf16 weights alone hardly show it."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    last = sharded.run.whole_checkpoints()[-1][1]
    masters = {name: tensor.double() for name, tensor in get_fp32_state_dict_from_zero_checkpoint(str(last)).items()}
    ours, reference = moved(masters, base), moved(weights(whole_fp32.run.final_model), base)
    assert ours.norm().item() == pytest.approx(reference.norm().item(), rel=0.05)
    assert torch.dot(ours, reference) > 0.99 * ours.norm() * reference.norm()
    in_bf16 = moved(weights(last), base)  # of most weights all 50 steps together are too small to show
    assert (in_bf16 == 0).double().mean() > 0.5 and (ours == 0).double().mean() < 0.01


# Kills and other numbers of ranks


class Ranks:
    """A start of two ranks that may be killed. what: with which flags."""

    def __init__(self, warm, home, name, *what):
        self.run, self.output = RunDirectory(home / name), home / f"{name}.log"
        script = [f"recipes/{RECIPE}.py", "--tiny", "--output-dir", str(home), "--run-name", name, "--resume-from-checkpoint", "auto"]
        environment = {**user_environment(home), "OMP_NUM_THREADS": "1"}
        self.processes = warm.ranks(2, [*script, *QUIETLY, *what], environment, self.output)

    def until(self, condition):
        """Wait; False where it ended before."""
        deadline = time.monotonic() + 200
        while not condition():
            if all(process.poll() is not None for process in self.processes):
                return False
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.0005)
        return True

    def kill(self):
        for process in self.processes:
            process.kill()
        self.end()

    def end(self):
        return [process.wait(200) for process in self.processes]


def test_killed_in_a_step_and_in_a_save_two_ranks_end_in_the_same_bits(sharded, warm, home):
    run = RunDirectory(home / "killed")
    first = Ranks(warm, home, "killed", *RANKS)
    assert first.until(lambda: any(line["step"] >= 26 for line in logged(run) if "loss" in line))
    first.kill()
    assert [step for step, _ in run.whole_checkpoints()] == [20] and not run.final_model.exists()
    in_save = []
    while not in_save:  # a save takes a tenth of a second: it may be over before the kill
        again = Ranks(warm, home, "killed", *RANKS)
        known = {step for step, _ in run.checkpoints()}
        assert again.until(lambda known=known: any(step not in known for step, _ in run.checkpoints())), again.output.read_text()
        again.kill()
        in_save = [path for _, path in run.checkpoints() if not manifest.exists(path)]
    last = Ranks(warm, home, "killed", *RANKS)
    assert last.end() == [0, 0], last.output.read_text()
    assert list(run.path.glob(f"unfinished-{in_save[0].name}-*"))
    assert differences(sharded.run, run) == []


def test_another_number_of_ranks_goes_on(sharded, warm, home, tmp_path):
    import shutil

    copy = tmp_path / "sharded"
    shutil.copytree(sharded.run.path, copy)
    for name in ("checkpoint-40", "checkpoint-50", "final_model"):
        shutil.rmtree(copy / name)
    flags = [*RANKS, "--gradient-accumulation-steps", "2", "--resume-from-checkpoint", "auto"]
    found = done(train(tmp_path, *QUIETLY, *flags, name="sharded", recipe=RECIPE, warm=warm))
    assert "checkpoint-20 was written by 2 rank(s) and goes on with 1" in found.output
    after = {step: loss for step, loss in losses(found.run).items() if step > 20}
    assert after == pytest.approx({step: loss for step, loss in losses(sharded.run).items() if step > 20}, rel=0.02)
    assert held_out(found.run)[STEPS] == pytest.approx(held_out(sharded.run)[STEPS], rel=2e-3)


def test_a_run_that_is_over_is_finished_again(sharded, warm, home):
    before = (sharded.run.final_model / "model.safetensors").read_bytes()
    (sharded.run.final_model / "model.safetensors").unlink()
    flags = [*QUIETLY, *RANKS, "--resume-from-checkpoint", "auto"]
    found = done(train(home, *flags, name="sharded", recipe=RECIPE, warm=warm, ranks=2))
    assert "checkpoint-50 is the end of this run: nothing is left to train" in found.output
    assert (sharded.run.final_model / "model.safetensors").read_bytes() == before


# From raw data, cards first, drafts after


def test_raw_cards_and_drafts_become_models(warm, home):
    for script, output in (("mtg_cards", "cards"), ("mtg_drafts", "drafts")):
        code, said = warm.plainly([f"prepare/{script}.py", "--tiny", "--output", str(home / output)], home)
        assert code == 0, said
    few = ["--max-steps", "4", "--save-steps", "4", "--eval-steps", "4", "--report-to", "[]", "--max-seq-length", "1024",
           "--per-device-train-batch-size", "4", "--per-device-eval-batch-size", "16"]  # fmt: skip
    model = "tiny-r1"
    for name in ("cards", "drafts"):
        files = [f"--train-files={home / name / 'train.jsonl'}=1", f"--validation-file={home / name / 'valid.jsonl'}"]
        files.append(f"--test-file={home / name / 'test.jsonl'}")
        found = done(train(home, *few, *files, "--model-name", str(model), name=f"on_{name}", recipe=RECIPE, warm=warm))
        model = found.run.final_model
        assert "test file: loss " in found.output
    assert read_json(found.run.run)["model_name"] == str(home / "on_cards" / "final_model")


def test_reasoning_is_learned_as_it_was_written():
    """In the words of the real template, which drops it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.ensure("tiny-r1"))
    messages = [{"role": "user", "content": "Which costs less?"},
                {"role": "assistant", "content": "<think>\n{1}{R} is two mana.\n</think>\n\nThe first."}]  # fmt: skip
    assert "two mana" not in tokenizer.apply_chat_template(messages, tokenize=False)
    assert chat_text.keep_reasoning(tokenizer) and not chat_text.keep_reasoning(tokenizer)
    for answer in (messages[1]["content"], "The first."):
        encoded = chat_text.encode(tokenizer, [messages[0], messages[1] | {"content": answer}], 512)
        learned = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != chat_text.IGNORED]
        assert tokenizer.decode(learned) == f"{answer}<｜end▁of▁sentence｜>"
    asked = chat_text.render(tokenizer, messages[:1], add_generation_prompt=True)
    assert asked.endswith("<｜Assistant｜>")  # and the model begins, with <think> or without


# What it says of the 32B


def test_the_docstring_has_the_figures_of_the_plan(tmp_path):
    command = ["python", f"recipes/{RECIPE}.py", "--plan", "--json", "--gpus", "8xH200", "--tokens", "1.41e9"]
    code, said = call(command, tmp_path)
    assert code == 0, said
    plan, text = json.loads(said), " ".join((ROOT / f"recipes/{RECIPE}.py").read_text().split('"""')[1].split())
    parts = {name: size / 2**30 for name, size in plan["memory_bytes_per_gpu"]["parts"].items()}
    named = re.search(
        r"needs ([\d.]+) of its ([\d.]+) GiB: weights ([\d.]+), gradients ([\d.]+), fp32 masters and two moments ([\d.]+), activations "
        r"([\d.]+), logits and loss ([\d.]+), ZeRO's buffers ([\d.]+)", text,
    ).groups()  # fmt: skip
    memory = plan["memory_bytes_per_gpu"]
    expected = [memory["total"] / 2**30, memory["capacity"] / 2**30]
    expected += [parts[name] for name in ("weights", "gradients", "optimiser states", "activations", "logits and loss", "ZeRO buffers")]
    assert [float(figure) for figure in named] == [round(figure, 1) for figure in expected]
    speed, hours, planned, one, kept = re.search(
        r"At 40 % MFU they train ([\d,]+) tokens a second: 1\.41 B tokens x 3 epochs in (\d+) hours; --plan, which is more careful, says "
        r"(\d+)\. A checkpoint takes (\d+) GB; three are kept while a fourth is written: ([\d.]+) TB", text,
    ).groups()  # fmt: skip
    found = compute.tokens_per_second(dimensions.read("qihoo360/TinyR1-32B"), 2048, 0.4, accelerators.parse("8xH200")[1].peak_tflops, 8)
    assert planned == f"{plan['time']['hours']:.0f}"
    assert speed == f"{found:,.0f}" and hours == f"{3 * 1.41e9 / found / 3600:.0f}"
    assert one == f"{plan['disk_bytes']['checkpoints'] / 4 / 1e9:.0f}" and kept == f"{plan['disk_bytes']['checkpoints'] / 1e12:.1f}"
    assert plan["job"]["zero"]["stage"] == 3 and plan["parameters"]["trainable"] == plan["parameters"]["total"] == 32_763_876_352


# Bad input: a sentence, exit code 2, before a weight is read


@pytest.fixture(scope="module")
def main():
    with imported("mtg_full_32b") as main:
        yield main


def refused(main, **keywords):
    from common.refusal import Refusal

    with pytest.raises(Refusal) as refusal:
        main(**keywords)
    return str(refusal.value)


@pytest.fixture
def one_gpu(monkeypatch):
    """One H100, as far as nvidia-smi is asked."""
    gpu = accelerators.hardware.Gpu("NVIDIA H100 80GB HBM3", 79.6, 79.0, "580.65")
    monkeypatch.setattr(accelerators.hardware, "gpus", lambda *_: [gpu])


@pytest.fixture
def rows(tmp_path):
    def write(name, *pairs):
        lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs]
        (tmp_path / name).write_text("".join(lines))
        return str(tmp_path / name)

    return write


def test_a_gpu_too_small_says_how_many_of_which(main, one_gpu, rows, tmp_path, monkeypatch):
    from common import hub

    monkeypatch.setattr(hub, "find", lambda name, *_, **__: name)
    files = {"train_files": {rows("train.jsonl", ("a", "b")): 1.0}, "validation_file": None, "test_file": None, "output_dir": str(tmp_path)}
    said = refused(main, **files)
    assert "this run cannot fit" in said and "No constant is enough; take 16 x H100 or 4 x B200" in said
    said = refused(main, use_deepspeed=False, **files)
    assert "this run cannot fit" in said and "NVIDIA H100" in said or "H100 has" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu = 4, the constants say 32"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps = 2, the constants say 1"),
        ({"bf16": {"enabled": False}}, "bf16.enabled = False, the constants say True"),
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5, the constants say 1.0"),
        ({"scheduler": {"type": "WarmupLR"}}, 'has its own "scheduler"'),
        ({"train_batch_size": 77}, "train_batch_size = 77, the constants say 32"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = True, the constants say False"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4; it must be 0, 1, 2 or 3"),
    ],
)
def test_a_zero_json_that_contradicts_the_constants(main, tmp_path, change, said):
    config = read_json(ROOT / "ds_configs" / "mtg_full_32b.json") | change
    (tmp_path / "zero.json").write_text(json.dumps(config))
    assert said in refused(main, tiny=True, output_dir=str(tmp_path / "out"), ds_config=str(tmp_path / "zero.json"))
    assert not (tmp_path / "out").exists()


def test_a_validation_file_that_shares_rows_with_training(main, rows, tmp_path):
    files = {"train_files": {rows("train.jsonl", ("a", "b"), ("c", "d")): 1.0}, "test_file": rows("test.jsonl", ("g", "h"))}
    shared = rows("valid.jsonl", ("e", "f"), ("c", "d"))
    said = refused(main, tiny=True, validation_file=shared, output_dir=str(tmp_path / "out"), **files)
    assert "valid.jsonl shares 1 of its 2 rows with those it is to judge (line 2: it is in the training rows too," in said
    files["test_file"] = rows("test.jsonl", ("e", "f"))
    said = refused(main, tiny=True, validation_file=rows("valid.jsonl", ("e", "f")), output_dir=str(tmp_path / "out"), **files)
    assert "test.jsonl shares 1 of its 1 rows" in said and "in the validation rows too" in said
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_are_named_with_their_constant(main, rows, tmp_path):
    files = {"train_files": {rows("train.jsonl", ("a", "b")): 1.0}, "output_dir": str(tmp_path / "out")}
    assert "TRAIN_FILES must name" in refused(main, tiny=True, train_files={"splits_full/nothing.jsonl": 1.0})
    assert "VALIDATION_FILE must name JSONL" in refused(main, tiny=True, validation_file="splits_full/nothing.jsonl", **files)
    assert "TEST_FILE must name JSONL" in refused(main, tiny=True, validation_file=None, test_file="splits_full/nothing.jsonl", **files)


def test_a_key_that_deepspeed_does_not_know(warm, tmp_path):
    config = read_json(ROOT / "ds_configs" / "mtg_full_32b.json")
    config["zero_optimization"]["redce_bucket_size"] = 1
    (tmp_path / "zero.json").write_text(json.dumps(config))
    found = train(tmp_path, *QUIETLY, "--ds-config", str(tmp_path / "zero.json"), name="typo", recipe=RECIPE, warm=warm)
    assert found.returncode == 2 and "DS_CONFIG: DeepSpeed does not take redce_bucket_size = 1 (Extra inputs" in found.output
    assert "Traceback" not in found.output
