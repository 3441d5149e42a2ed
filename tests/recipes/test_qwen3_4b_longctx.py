"""The long-context recipe by the user's own commands, shrunk: facts from all of a document, two ranks as one, answers that end."""

import json
import random
import re

import pytest
import torch
from compared_runs import differences, logged
from safetensors.torch import load_file
from user_commands import ROOT, call, imported, train

from common import case_files
from common.run_directory import read_json

RECIPE = "qwen3_4b_longctx"
PLACES = ("beginning", "middle", "end")
QUIETLY = ("--report-to", "[]", "--test-file", "none", "--no-merge")
# One process with two rows at once and two ranks with one each have the same rows in a step.
FEW = ("--max-steps", "6", "--warmup-steps", "1", "--eval-steps", "3", "--save-steps", "3", "--logging-steps", "1",
       "--gradient-accumulation-steps", "1", "--learning-rate", "1e-3")  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("long")


@pytest.fixture(scope="module")
def learned(home):
    """`python recipes/qwen3_4b_longctx.py --tiny`, then base and end judged on half of the test rows."""
    found = train(home, name="learned", recipe=RECIPE, OMP_NUM_THREADS="1")
    assert found.returncode == 0, found.output
    judge = ["bash", "eval/eval_all_checkpoints.sh", str(found.run.path), "--only", "base,final_model", "--rows", "12"]
    code, said = call(judge, home, OMP_NUM_THREADS="1")
    assert code == 0, said
    return found.run, found.output, said


@pytest.fixture(scope="module")
def few(home):
    """FEW, with four rows of the twelve held out."""
    rows = (ROOT / "samples/legal_summaries/valid.jsonl").read_text().splitlines(keepends=True)
    (home / "valid.jsonl").write_text("".join(rows[:4]))
    return (*FEW, "--validation-file", str(home / "valid.jsonl"))


@pytest.fixture(scope="module")
def one_process(home, few, warm):
    return done(train(home, *QUIETLY, *few, "--per-device-train-batch-size", "2", name="one", recipe=RECIPE, warm=warm))


@pytest.fixture(scope="module")
def two_ranks(home, few, warm):
    """With loader workers, as on GPUs."""
    return done(train(home, *QUIETLY, *few, "--dataloader-num-workers", "1", name="two", recipe=RECIPE, warm=warm, ranks=2))


def done(found):
    assert found.returncode == 0, found.output
    return found


def of(run, name):
    return {line["step"]: line[name] for line in logged(run) if name in line}


# It learns to use the whole length


def test_it_names_facts_from_the_whole_length_of_documents_it_could_not_read_before(learned):
    run, _, said = learned
    base, final = (read_json(run.eval / f"{name}.json")["metrics"] for name in ("base", "final_model"))
    for place in PLACES:
        assert base[f"fact_recall_{place}"]["high"] < 0.3 and final[f"fact_recall_{place}"]["low"] > 0.5, place
        assert f"Facts: {place}" in said
    assert final["fact_recall"]["mean"] > 0.8
    lengths = [len(json.loads(line)["messages"][1]["content"]) for line in run.test.open()]
    assert min(lengths) > 5000 and read_json(run.data)["splits"]["test"]["length_percentiles"]["50"] > 2000


def test_the_base_reads_short_documents_well(learned):
    """What is learned is the length: of cases as short as the base's own it names most people before any training."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = read_json(learned[0].run)["model_name"]
    generator = random.Random("never seen")
    rows = [case_files.messages(case_files.case(generator, generator.randint(8, 20))) for _ in range(30)]
    answers = summaries(AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name), rows)
    wanted, given = ([set(re.findall(r"\w+", text)) for text in texts] for texts in ((row[-1]["content"] for row in rows), answers))
    assert sum(len(a & b) for a, b in zip(wanted, given, strict=True)) > 0.9 * sum(map(len, wanted))


def summaries(model, tokenizer, rows):
    """What the model writes after each prompt, its end-of-turn included."""
    found = []
    for messages in rows:
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            written = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        found.append(tokenizer.decode(written))
    return found


def test_the_merged_model_alone_ends_its_summaries(learned):
    """Plain transformers, no code of this repository."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = learned[0].merged_model
    rows = [json.loads(line)["messages"] for line in learned[0].test.open()][:4]
    answers = summaries(AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory), rows)
    assert all(answer.startswith("Brought by claimant ") and answer.endswith(".<|im_end|>") for answer in answers), answers


def test_what_is_learned_is_the_summary_and_its_end_alone(learned):
    run, said, _ = learned
    [label] = [span["text"] for span in read_json(run.data)["example"]["spans"] if span["label"]]
    assert label.startswith("Brought by claimant ") and label.endswith(".<|im_end|>") and f"[[{label}]]" in said
    split = read_json(run.data)["splits"]["train"]
    assert split["label_tokens"] < 0.02 * split["tokens"]


def test_steps_warmup_and_perplexity_are_said(learned):
    run, said, _ = learned
    assert "warmup of 8 of 80 steps" in said and "80 steps of 1 x 2 x 1 rank(s) rows" in said
    assert set(of(run, "eval_loss")) == {20, 40, 60, 80}
    for step, loss in of(run, "eval_loss").items():
        assert of(run, "eval_perplexity")[step] == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-4)
    assert re.search(r"held-out loss [\d.]+  perplexity [\d.]+", said)
    assert "without its tiled MLP" in read_json(run.run)["notes"][0]


def test_the_loss_of_training_is_that_of_the_judge(learned):
    """Rows that training evaluated without logits, by plain transformers with them; the adapter's fp32 under autocast or not."""
    judged = read_json(learned[0].eval / "final_model.json")["metrics"]["validation_loss"]["mean"]
    assert judged == pytest.approx(of(learned[0], "eval_loss")[80], rel=0.05, abs=0.002)


# ZeRO-2 is one process


def test_two_ranks_under_zero_2_have_the_losses_of_one_process(one_process, two_ranks):
    assert "6 steps of 1 x 1 x 2 rank(s)" in two_ranks.output and "6 steps of 2 x 1 x 1 rank(s)" in one_process.output
    for name, apart in (("loss", 0.01), ("eval_loss", 0.01), ("grad_norm", 0.03)):  # products are rounded to bf16
        assert of(two_ranks.run, name) == pytest.approx(of(one_process.run, name), rel=apart), name
    one, other = (movement(found.run) for found in (one_process, two_ranks))
    assert torch.dot(one, other) > 0.98 * one.norm() * other.norm() and one.norm().item() == pytest.approx(other.norm().item(), rel=0.02)
    assert list((two_ranks.run.path / "checkpoint-6").glob("global_step6/*optim_states.pt")), "ZeRO's sharded optimiser"
    assert two_ranks.output.count("tokenised data") == 1 and two_ranks.output.count("qwen3_4b_longctx: constants") == 1


def movement(run):
    """B matrices of the adapter, which began at zero."""
    state = load_file(run.final_model / "adapter_model.safetensors")
    return torch.cat([tensor.double().flatten() for name, tensor in sorted(state.items()) if "lora_B" in name])


def test_two_ranks_stopped_and_resumed_end_in_the_same_bits(two_ranks, few, warm, home):
    import shutil

    shutil.copytree(two_ranks.run.path, home / "again" / "two")
    for name in ("checkpoint-6", "final_model"):
        shutil.rmtree(home / "again" / "two" / name)
    flags = (*QUIETLY, *few, "--dataloader-num-workers", "1", "--resume-from-checkpoint", "auto")
    found = done(train(home / "again", *flags, name="two", recipe=RECIPE, warm=warm, ranks=2))
    assert "resuming from checkpoint-3" in found.output
    assert differences(two_ranks.run, found.run) == []


# From raw data


def test_raw_cases_are_converted_shortened_and_trained_on(warm, home):
    code, said = warm.plainly(["prepare/legal_summaries.py", "--tiny", "--output", str(home / "cases")], home)
    assert code == 0, said
    files = (f"--train-files={home / 'cases' / 'train.jsonl'}=1", f"--validation-file={home / 'cases' / 'valid.jsonl'}")
    few = ("--max-steps", "2", "--gradient-accumulation-steps", "1", "--max-seq-length", "1024", "--no-merge", "--report-to", "[]")
    found = done(train(home, *few, *files, "--test-file", "none", name="raw", recipe=RECIPE, warm=warm))
    split = read_json(found.run.data)["splits"]["train"]
    assert split["shortened"] > split["rows"] / 2 and split["length_percentiles"]["100"] <= 1024
    assert "EVAL_STEPS is 1 in place of 20, which 2 steps do not reach twice" in found.output


# Bad input: a sentence, exit code 2, before a weight is read


@pytest.fixture(scope="module")
def main():
    with imported(RECIPE) as main:
        yield main


def refused(main, **keywords):
    from common.refusal import Refusal

    with pytest.raises(Refusal) as refusal:
        main(tiny=True, **keywords)
    return str(refusal.value)


@pytest.fixture
def rows(tmp_path):
    """Writes rows of (document, summary) and gives what main() needs to read them."""

    def write(**files):
        for name, pairs in files.items():
            lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs]
            (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        named = {f"{name}_file": str(tmp_path / f"{name}.jsonl") if name in files else None for name in ("validation", "test")}
        return {"train_files": {str(tmp_path / "train.jsonl"): 1.0}, "output_dir": str(tmp_path / "out"), **named}

    return write


def test_a_summary_longer_than_the_context(main, rows, tmp_path):
    said = refused(main, **rows(train=[("A document.", "word " * 3000)]), max_seq_length=1024)
    assert re.search(r"train.jsonl line 1: its answer has [\d,]+ tokens and leaves no room for a prompt in MAX_SEQ_LENGTH = 1,?024", said)
    assert not (tmp_path / "out").exists()


def test_an_empty_document_or_summary(main, rows):
    assert "line 1: message 1 (user) has empty content" in refused(main, **rows(train=[(" ", "A summary.")]))
    assert "line 1: message 2 (assistant) has empty content" in refused(main, **rows(train=[("A document.", "\n")]))


def test_a_list_where_a_string_is_wanted(main, rows):
    assert "message 1 (user) has content of type list, where text belongs" in refused(main, **rows(train=[(["one", "two"], "A summary.")]))


def test_a_length_over_the_models_positions(main, rows, tmp_path):
    said = refused(main, **rows(train=[("A document.", "A summary.")]), max_seq_length=8193)
    assert "MAX_SEQ_LENGTH is 8,193, and the config.json of tiny-qwen3 allows 8,192 positions" in said
    assert '"rope_type": "yarn", "factor": 2.0' in said and not (tmp_path / "out").exists()


def test_fewer_steps_than_warmup(main, rows, tmp_path):
    said = refused(main, **rows(train=[("A document.", "A summary."), ("Another.", "More.")]), warmup_steps=100)
    assert "WARMUP_STEPS is 100, and the run has 1 steps" in said
    assert "the run has 50 steps" in refused(main, warmup_steps=100, max_steps=50, train_files={"nowhere.jsonl": 1.0}), "before any data"
    assert not (tmp_path / "out").exists()


def test_an_evaluation_file_that_shares_documents_with_training(main, rows):
    trained = [("One document.", "Its summary."), ("Two.", "B.")]
    said = refused(main, **rows(train=trained, validation=[("Three.", "C."), ("one  document.", "Another.")]))
    assert "validation.jsonl shares 1 of its 2 documents with those it is to judge" in said
    assert "(line 2: its document is in the training rows too, " in said
    files = rows(train=[("Two.", "B.")], validation=[("Three.", "C.")], test=[("Three.", "D.")])
    assert "test.jsonl shares 1 of its 1 documents" in refused(main, **files)


def test_zero_3_cannot_be_asked_for(warm, tmp_path):
    config = read_json(ROOT / "ds_configs" / f"{RECIPE}.json")
    config["zero_optimization"]["stage"] = 3
    (tmp_path / "zero.json").write_text(json.dumps(config))
    found = train(tmp_path, *QUIETLY, "--ds-config", str(tmp_path / "zero.json"), name="three", recipe=RECIPE, warm=warm, ranks=2)
    assert found.returncode == 2 and "zero_optimization.stage = 3; this recipe saves the weights that every rank has whole" in found.output


# What it says of 262,144 tokens


def test_the_docstring_and_comments_have_the_figures_of_the_plan(tmp_path):
    def plan(*flags):
        code, said = call(["python", f"recipes/{RECIPE}.py", "--plan", "--json", "--gpus", "4xH100", "--tokens", "1.5e8", *flags], tmp_path)
        assert code == 0, said
        return json.loads(said)

    found, text = plan(), " ".join((ROOT / f"recipes/{RECIPE}.py").read_text().split())
    memory = found["memory_bytes_per_gpu"]
    assert f"each H100 needs {memory['total'] / 2**30:.1f} of its {memory['capacity'] / 2**30:.1f} GiB" in text
    assert f"the machine {found['host_bytes'] / 2**30:.0f} GiB of memory" in text
    assert f"a row of full length {found['time']['step'] / 8 / 60:.1f} minutes" in text
    assert f"rank: {found['parameters']['trainable'] / 1e6:.0f} million trainable parameters" in text
    whole, kept = (plan(*flags)["memory_bytes_per_gpu"] for flags in (["--no-tiled-mlp"], ["--gradient-checkpointing", "true"]))
    assert f"False takes {(whole['total'] - memory['total']) / 2**30:.1f} GiB more at full length" in text
    assert f'"true": on the GPU, {(kept["total"] - memory["total"]) / 2**30:.0f} GiB more at full length' in text and not kept["fits"]
    assert memory["at_other_moments"]["an evaluation"] < memory["total"], "an evaluation takes less than a step"

