"""The pretraining recipe by the user's own commands: raw text to shards to a model for plain transformers; ranks, kills, bad input."""

import hashlib
import json
import shutil
import subprocess
import time
from functools import partial

import numpy as np
import pytest
import torch
from generated_text import documents, write_jsonl
from object_store import free_port
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_commands import ROOT, call, imported, train, user_environment

from common import gpt, gpt_export, manifest, resume, shards, token_data
from common.run_directory import RunDirectory, read_json

STEPS = 40
QUIETLY = ("--report-to", "[]", "--samples", "[]", "--logging-steps", "1")
DROPPING = ("--dropout", "0.1", "--save-steps", "none", "--checkpoint-every-files", "1", "--save-total-limit", "9")
# Mean losses of steps 1-10, 11-20, … on the generated text, and the held-out loss at the end. bf16 products differ between processors.
GOLDEN = {"losses": [4.938, 2.4905, 1.3618, 1.0987], "held_out": 1.0548}
NEAR = 0.06


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Shards of generated text, by prepare/pretrain_tokens.py."""
    home = tmp_path_factory.mktemp("tokens")
    source = write_jsonl(home / "pages.jsonl")
    code, output = call(
        ["python", "prepare/pretrain_tokens.py", "--sources", str(source), "--output", str(home / "shards"), "--train-tokenizer", "400",
         "--shard-tokens", "8000"], home,
    )  # fmt: skip
    assert code == 0, output
    return home / "shards"


def flags(tokens, *more):
    return [
        *("--train-files", str(tokens), "--max-steps", str(STEPS), "--eval-steps", "20", "--save-steps", "8", "--warmup-steps", "5"),
        *("--eval-tokens", "4000", "--learning-rate", "3e-3", "--max-seq-length", "64", "--dropout", "0", *more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ran(tokens, tmp_path_factory, warm):
    """One process, two micro-batches a step; the fresh start is that of `two_ranks`."""
    home = tmp_path_factory.mktemp("gpt")
    found = train(home, *flags(tokens), name="one", recipe="gpt_pretrain", warm=warm)
    assert found.returncode == 0, found.output
    return found


def started(home, name, command):
    environment = {**user_environment(home), "OMP_NUM_THREADS": "1"}
    launcher = ["deepspeed", "--num_gpus=2", f"--master_port={free_port()}", "recipes/gpt_pretrain.py"]
    out = (home / f"{name}.log").open("ab")
    return subprocess.Popen([*launcher, "--tiny", "--output-dir", str(home), "--run-name", name, *command], cwd=ROOT, env=environment,
                            stdout=out, stderr=subprocess.STDOUT)  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(tokens, tmp_path_factory):
    """Two ranks under the launcher, one micro-batch each a step."""
    home = tmp_path_factory.mktemp("ranks")
    process = started(home, "two", flags(tokens, *QUIETLY))
    assert process.wait(300) == 0, (home / "two.log").read_text()
    return RunDirectory(home / "two")


def ranks(warm, home, name, command):
    """Two ranks as forks; their processes."""
    environment = {**user_environment(home), "OMP_NUM_THREADS": "1"}
    script = ["recipes/gpt_pretrain.py", "--tiny", "--output-dir", str(home), "--run-name", name]
    return warm.ranks(2, [*script, *command], environment, home / f"{name}.log")


@pytest.fixture(scope="module")
def dropping(tokens, tmp_path_factory, warm):
    """The same with dropout, so that a resume has a random state to restore, and with checkpoints after files alone."""
    home = tmp_path_factory.mktemp("dropping")
    processes = ranks(warm, home, "whole", flags(tokens, *QUIETLY, *DROPPING))
    assert [process.wait(300) for process in processes] == [0, 0], (home / "whole.log").read_text()
    return RunDirectory(home / "whole")


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in lines(run) if "loss" in line}


def held_out(run):
    return {line["step"]: line["eval_loss"] for line in lines(run) if "eval_loss" in line}


def test_it_learns_and_says_so(ran, tokens):
    found, facts = lines(ran.run), read_json(ran.run.run)
    logged = [line for line in found if "loss" in line]
    assert [line["step"] for line in logged] == [10, 20, 30, 40]
    assert logged[-1]["loss"] < 0.6 * logged[0]["loss"]
    assert {"learning_rate", "grad_norm", "tokens_per_second", "memory_gb", "files"} <= logged[0].keys()
    judged = [line for line in found if "eval_loss" in line]
    assert [line["step"] for line in judged] == [20, 40] and judged[1]["eval_bits_per_byte"] < judged[0]["eval_bits_per_byte"] < 5
    assert facts["status"] == "finished" and facts["kind"] == "pretraining" and facts["steps"] == STEPS
    rows = token_data.read([str(tokens)], None, 64, 1, None, 4000, 42).train
    ends = rows.shard_ends(42, 0)
    assert logged[-1]["files"] == np.searchsorted(ends, STEPS * 16, side="right") > 0
    assert "parameters: 2 layers of width 128" in ran.output
    assert f"{STEPS} steps of 8 x 2 x 1 rank(s) rows of 64 = 1,024 tokens" in ran.output


def test_the_learning_rate_is_a_cosine_that_ends_at_a_tenth(ran):
    rates = [line["learning_rate"] for line in lines(ran.run) if "loss" in line]
    # transformers logs the rate of the step that was taken: step n has place n - 1
    expected = [3e-3 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (step - 1 - 5) / (STEPS - 5)))) for step in (10, 20, 30, 40)]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_every_checkpoint_is_a_model_for_plain_transformers(ran, tokens):
    places = [path for _, path in ran.run.whole_checkpoints()] + [ran.run.final_model]
    assert [path.name for path in places][-2:] == [f"checkpoint-{STEPS}", "final_model"]
    ids = torch.tensor([[399, *range(40, 70)]])
    logits = []
    for place in places[-2:]:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        logits.append(model(ids).logits)
        assert model.config.vocab_size == 400 and read_json(place / "constants.json")["MAX_SEQ_LENGTH"] == 64
    assert torch.equal(*logits)
    tokenizer = AutoTokenizer.from_pretrained(ran.run.final_model)
    text = next(documents(1))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_its_loss_in_plain_transformers_is_the_one_that_was_logged(ran, tokens):
    data = token_data.read([str(tokens)], None, 64, 1, None, 4000, 42)
    model = AutoModelForCausalLM.from_pretrained(ran.run.final_model, dtype=torch.float32)
    batch = data.validation[np.arange(len(data.validation))]
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100).item()
    assert held_out(ran.run)[STEPS] == pytest.approx(loss, rel=0.01)  # that one is in bf16
    bits = lines(ran.run)[-1]["eval_bits_per_byte"]
    learned = batch["labels"][batch["labels"] != -100]
    sizes = {token: len(letters) for letters, token in AutoTokenizer.from_pretrained(ran.run.final_model).get_vocab().items()}
    size = sum(sizes[token] for token in learned.tolist() if token != 399)
    assert bits == pytest.approx(loss * len(learned) / np.log(2) / size, rel=0.01)


def test_samples_trackers_report_and_card_are_there(ran):
    assert [sample["beginning"] for sample in read_json(ran.run.samples)] == ["", "import ", "class ", "    def __init__(self"]
    assert list(ran.run.tensorboard.rglob("events.*")) and list(ran.run.wandb.glob("wandb/offline-run-*"))
    assert "bits per byte" in ran.run.report.read_text().lower()
    assert "from scratch" in (ran.run.final_model / "README.md").read_text()
    assert "Traceback" not in ran.output


def test_the_golden_curve(ran):
    assert list(losses(ran.run).values()) == pytest.approx(GOLDEN["losses"], abs=NEAR)
    assert held_out(ran.run)[STEPS] == pytest.approx(GOLDEN["held_out"], abs=NEAR)


def test_two_ranks_give_the_curve_of_one(ran, two_ranks):
    every = losses(two_ranks)
    means = {step: np.mean([every[n] for n in range(step - 9, step + 1)]) for step in (10, 20, 30, 40)}
    assert means == pytest.approx(losses(ran.run), rel=2e-3)
    assert held_out(two_ranks) == pytest.approx(held_out(ran.run), rel=2e-3)


def test_one_micro_batch_gives_the_curve_of_two(ran, tokens, tmp_path, warm):
    found = train(tmp_path, *flags(tokens, "--per-device-train-batch-size", "16", "--report-to", "[]", "--samples", "[]"), name="whole",
                  recipe="gpt_pretrain", warm=warm)  # fmt: skip
    assert found.returncode == 0, found.output
    assert losses(found.run) == pytest.approx(losses(ran.run), rel=2e-3)


def ends_of_files(tokens):
    """The optimiser steps in which a file ends, up to the last one."""
    rows = token_data.read([str(tokens)], None, 64, 1, None, 4000, 42).train
    steps = -(-rows.shard_ends(42, 0) // 16)
    return [int(step) for step in steps if step <= STEPS]


def test_a_checkpoint_after_every_file_and_at_the_end(dropping, tokens):
    assert [step for step, _ in dropping.whole_checkpoints()] == sorted({*ends_of_files(tokens), STEPS})


def test_every_rank_drops_something_else(dropping):
    states = [torch.load(dropping.path / f"checkpoint-{STEPS}" / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in (0, 1)]
    assert not torch.equal(*states)


def test_two_ranks_killed_within_an_epoch_end_in_the_same_bits(dropping, tokens, warm):
    home = dropping.path.parent
    command = flags(tokens, *QUIETLY, *DROPPING, "--resume-from-checkpoint", "auto")
    processes, run = ranks(warm, home, "killed", command), RunDirectory(home / "killed")
    first = run.path / f"checkpoint-{ends_of_files(tokens)[0]}"
    deadline = time.monotonic() + 240
    while not manifest.exists(first) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        process.kill()
    assert [process.wait(60) for process in processes] == [-9, -9]
    assert manifest.exists(first) and not manifest.exists(run.path / f"checkpoint-{STEPS}")
    processes = ranks(warm, home, "killed", command)
    said = home / "killed.log"
    assert [process.wait(300) for process in processes] == [0, 0], said.read_text()
    assert "resuming from checkpoint-" in said.read_text()
    assert digest(run.final_model) == digest(dropping.final_model)
    resumed = int(said.read_text().split("resuming from checkpoint-")[1].split()[0])
    whole, again = losses(dropping), losses(run)
    assert {step: again[step] for step in range(resumed + 1, STEPS + 1)} == {step: whole[step] for step in range(resumed + 1, STEPS + 1)}


def test_a_run_that_is_over_is_finished_again(ran, tokens, warm):
    before = digest(ran.run.final_model)
    shutil.rmtree(ran.run.final_model)
    command = flags(tokens, *QUIETLY[:4], "--resume-from-checkpoint", "auto")
    found = train(ran.run.path.parent, *command, name="one", recipe="gpt_pretrain", warm=warm)
    assert found.returncode == 0 and "nothing is left to train" in found.output, found.output
    assert digest(ran.run.final_model) == before


def digest(directory):
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_another_recipe_fine_tunes_it(ran, tmp_path, warm):
    """QLoRA by llama32_qlora.py, with its plan and its merge, of such a model with positions for a chat."""
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    shutil.copytree(ran.run.final_model, model)
    shape = gpt.Shape(400, 256, 64, 2, 2)
    gpt_export.save(gpt.GPT(shape).to(torch.bfloat16).state_dict(), shape, model, 399)
    rows.write_text("".join(json.dumps({"question": f"What is {n}?", "answer": f"{n} is {n}."}) + "\n" for n in range(40)))
    command = ["--model-name", str(model), "--target-modules", "c_attn,c_proj,c_fc", "--train-files", f"{rows}=1"]
    command += ["--max-seq-length", "256", "--max-steps", "4", "--save-steps", "4", "--eval-steps", "4", "--split-by", "id", *QUIETLY[:2]]
    found = train(tmp_path, *command, name="tuned", warm=warm)
    assert found.returncode == 0, found.output
    adapter = 2 * 16 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)
    assert f"{adapter:,} of" in found.output and "logits within" in found.output
    assert "[[" in found.output and "<|endoftext|>]]" in found.output  # where an answer ends is learned


# Bad input: a sentence, exit code 2, nothing loaded. What is wrong with files of tokens is tested with common/token_data.py.


@pytest.fixture(scope="module")
def main():
    with imported("gpt_pretrain") as main:
        yield partial(main, tiny=True)


def test_without_tokens_the_command_says_how_to_make_them(tmp_path):
    code, output = call(["python", str(ROOT / "recipes/gpt_pretrain.py"), "--output-dir", str(tmp_path)], tmp_path)
    assert code == 2 and "data/tokens, and there is no such file or directory; python prepare/pretrain_tokens.py writes" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"num_attention_heads": 3}, "HIDDEN_SIZE = 128 is no multiple of NUM_ATTENTION_HEADS = 3"),
        ({"train_batch_size": 20}, "but PER_DEVICE_TRAIN_BATCH_SIZE = 8 x GRADIENT_ACCUMULATION_STEPS = 2 x 1 rank(s) = 16 rows; take"),
        ({"gradient_accumulation_steps": 3}, "= 24 rows; take TRAIN_BATCH_SIZE = 24, or leave GRADIENT_ACCUMULATION_STEPS out where"),
        ({"precision": "fp16"}, "fp16 is asked for, which is for GPUs older than bf16, and there is no GPU here"),
        ({"attention": "flash", "dropout": 0.1}, 'ATTENTION is "flash", and this machine cannot compute it for heads of width 32'),
        ({"train_batch_size": 2**16, "per_device_train_batch_size": 2**16}, "step takes TRAIN_BATCH_SIZE = 65536; bring"),
        ({"validation_files": 10_000}, "leaves nothing to train on"),
        ({"max_seq_length": "many"}, "it must be a whole number above 0"),
    ],
)
def test_constants_that_do_not_go_together(main, tokens, tmp_path, keywords, said):
    from common.refusal import Refusal

    with pytest.raises(Refusal, match=said.replace("(", r"\(").replace(")", r"\)")):
        main(train_files=[str(tokens)], output_dir=str(tmp_path), **keywords)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu = 4, the constants say 8"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = True, the constants say False"),
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5, the constants say 1.0"),
        ({"optimizer": {"type": "Lamb"}}, 'has its own "optimizer"'),
        ({"zero_optimization": {"stage": 3}}, "this recipe saves the weights that every rank has whole, up to stage 2"),
        ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage = \"two\"; it must be 0, 1, 2 or 3"),
    ],
)
def test_a_zero_json_that_contradicts_the_constants(main, tokens, tmp_path, change, said):
    from common.refusal import Refusal

    config = read_json(ROOT / "ds_configs" / "gpt_pretrain.json") | change
    (tmp_path / "zero.json").write_text(json.dumps(config))
    with pytest.raises(Refusal, match=said):
        main(train_files=[str(tokens)], output_dir=str(tmp_path / "out"), ds_config=str(tmp_path / "zero.json"))


def test_a_resume_with_other_tokens_is_refused(main, two_ranks, tokens, tmp_path):
    """Files of the same names in the same place, and a token of one changed, with what its JSON says."""
    from common.refusal import Refusal

    here, run = tmp_path / "tokens", tmp_path / "two"
    shutil.copytree(tokens, here)
    shutil.copytree(two_ranks.path, run)
    changed = next(path for path in sorted(here.glob("*.bin")))
    found = np.fromfile(changed, dtype="<u2")
    found[100] = (found[100] + 1) % 300
    ends = np.load(changed.with_suffix(".docs.npy"))
    facts = read_json(changed.with_suffix(".json"))
    said = {key: facts[key] for key in ("text_bytes", "tokenizer", "vocab_size", "end_of_text", "sources")}
    shards.write(here, changed.stem, found, ends, **said)
    constants = read_json(run / f"checkpoint-{STEPS}" / "constants.json")
    with pytest.raises(Refusal, match="the training rows are not those of"):
        resume.changed_constants(
            two_ranks.path / f"checkpoint-{STEPS}", constants, token_data.read([str(here)], None, 64, 1, None, 4000, 42).key, 2, True, False
        )
    same = token_data.read([str(tokens)], None, 64, 1, None, 4000, 42).key
    assert resume.changed_constants(two_ranks.path / f"checkpoint-{STEPS}", constants, same, 2, True, False) == []


@pytest.mark.soak
def test_the_whole_tiny_run_on_pythons_own_sources(tmp_path):
    found = train(tmp_path, name="tiny", recipe="gpt_pretrain", timeout=1200)
    assert found.returncode == 0, found.output
    judged = [line for line in lines(found.run) if "eval_loss" in line]
    assert judged[-1]["eval_bits_per_byte"] < 2.4 < judged[0]["eval_bits_per_byte"]
    assert len(found.run.whole_checkpoints()) == 3
