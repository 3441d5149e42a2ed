"""The figures of one judgement against what a person would compute by hand, and against each other."""

import json
import math
import shutil
import sys

import pytest


def judge(run, name, options, output=None):
    import judging

    path = dict(judging.saved_models(run)).get(name)
    return judging.Judge(run, options)(name, path, output or run.eval / f"{name}.json")


def figures(result):
    """All that must not depend on how the model came into memory."""
    return {key: result[key] for key in ("metrics", "examples", "rows", "groups")}


@pytest.fixture(scope="module")
def trained(made):
    """checkpoint-10 as plain PEFT loads it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(made.path.parent / "base")
    model = PeftModel.from_pretrained(base, made.path / "checkpoint-10").eval()
    return model, AutoTokenizer.from_pretrained(made.path / "checkpoint-10")


def test_loss_is_the_mean_over_answer_and_end_of_turn_tokens_computed_row_by_row(run, options, trained):
    import torch

    model, tokenizer = trained
    nats, tokens, per_row = 0.0, 0, []
    for row in map(json.loads, run.test.read_text().splitlines()):
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
        whole = prompt + tokenizer(row["messages"][-1]["content"] + "<|eot_id|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_probabilities = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        row_nats = -sum(log_probabilities[n - 1, whole[n]].item() for n in range(len(prompt), len(whole)))
        nats, tokens = nats + row_nats, tokens + len(whole) - len(prompt)
        per_row.append((row_nats, len(whole) - len(prompt)))
    metrics = judge(run, "checkpoint-10", options())[0]["metrics"]
    assert metrics["loss"]["mean"] == pytest.approx(nats / tokens, rel=1e-5)
    assert metrics["loss"]["mean"] != pytest.approx(sum(n / t for n, t in per_row) / len(per_row), rel=1e-5)  # weighted by tokens
    assert metrics["perplexity"]["mean"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert metrics["loss"]["low"] < metrics["loss"]["mean"] < metrics["loss"]["high"]


@pytest.mark.parametrize("first_stage", [64, 5])  # with 5 the batch is made anew twice before an answer of 24 tokens ends
def test_answers_and_their_scores_are_those_of_plain_generate_row_by_row(run, options, trained, first_stage, monkeypatch):
    import answers
    import torch
    from rouge_score.rouge_scorer import RougeScorer

    monkeypatch.setattr(answers, "FIRST_STAGE", first_stage)
    model, tokenizer = trained
    result, _ = judge(run, "checkpoint-10", options())
    rows = {row["id"]: row for row in map(json.loads, run.test.read_text().splitlines())}
    truth, ended = RougeScorer(["rougeL"], use_stemmer=True), 0
    for example in result["examples"]:
        messages = rows[example["id"]]["messages"]
        ids = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=False)
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        ended += found[-1].item() == tokenizer.eos_token_id
        assert example["answer"] == tokenizer.decode(found, skip_special_tokens=True).strip()
        assert example["question"] == messages[-2]["content"] and example["reference"] == messages[-1]["content"]
        assert example["rougeL"] == truth.score(messages[-1]["content"], example["answer"])["rougeL"].fmeasure
    assert ended  # some stopped by themselves
    assert len(result["examples"]) == 12 and len({example["group"] for example in result["examples"]}) == 5


def test_batches_change_no_greedy_answer(run, options):
    one, all_together = (judge(run, "checkpoint-10", options("--batch-size", size, "--force"))[0] for size in (1, 15))
    assert [e["answer"] for e in one["examples"]] == [e["answer"] for e in all_together["examples"]]
    assert one["metrics"]["loss"]["mean"] == pytest.approx(all_together["metrics"]["loss"]["mean"], rel=1e-5)
    assert one["settings_key"] == all_together["settings_key"]


def test_swapped_adapters_give_what_fresh_loads_give(run, options):
    import judging

    swapping = judging.Judge(run, options("--force"))
    swapped = {name: swapping(name, path, run.eval / "x.json")[0] for name, path in judging.saved_models(run)}
    again = swapping("checkpoint-5", run.path / "checkpoint-5", run.eval / "x.json")[0]
    base_again = swapping("base", None, run.eval / "x.json")[0]
    for name, result in swapped.items():
        assert figures(judge(run, name, options("--force"))[0]) == figures(result), name
    assert figures(again) == figures(swapped["checkpoint-5"]) and figures(base_again) == figures(swapped["base"])
    losses = {name: result["metrics"]["loss"]["mean"] for name, result in swapped.items()}
    assert losses["final_model"] == losses["checkpoint-10"] and len(set(losses.values())) == 3


def test_merged_and_full_models_give_what_the_adapter_gives(run, options, made):
    import judging
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(made.path.parent / "base")
    PeftModel.from_pretrained(base, run.final_model).merge_and_unload().save_pretrained(run.merged_model)
    AutoTokenizer.from_pretrained(run.final_model).save_pretrained(run.merged_model)
    adapter, merged = (judge(run, name, options())[0] for name in ("final_model", "merged_model"))
    assert merged["metrics"]["loss"]["mean"] == pytest.approx(adapter["metrics"]["loss"]["mean"], rel=1e-5)
    assert [e["answer"] for e in merged["examples"]] == [e["answer"] for e in adapter["examples"]]
    loss_only, fresh = judging.Judge(run, options("--force"))("merged_model", run.merged_model, run.eval / "x.json", answering=False)
    assert fresh and loss_only["metrics"] == {key: merged["metrics"][key] for key in ("loss", "perplexity", "validation_loss")}
    assert judging.Judge(run, options())("merged_model", run.merged_model, run.eval / "merged_model.json", answering=False) == (
        merged,
        False,
    )
    shutil.copytree(run.merged_model, run.path / "checkpoint-7")  # a run that saves whole models
    assert figures(judge(run, "checkpoint-7", options())[0]) == figures(merged)


def test_four_bit_weights_written_out_are_the_numbers_bitsandbytes_multiplies_with(made, options, run):
    import judging
    import saved_model
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = saved_model.Saved("base", "base", str(made.path.parent / "base"))
    ours = saved_model.Models("cpu", torch.float32).use(base, base, True)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    theirs = AutoModelForCausalLM.from_pretrained(base.source, quantization_config=nf4, dtype=torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(base.source)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        written_out, products, unquantised = (model(input_ids=ids).logits.float() for model in (ours, theirs, plain))
    rounding, quantising = (written_out - products).abs().mean(), (written_out - unquantised).abs().mean()
    assert rounding < quantising / 4  # bf16 products differ a little, 16 levels a weight a lot more
    for name in ("checkpoint-10", "base"):
        path = run.path / name if name != "base" else None
        result, _ = judging.Judge(run, options("--load-in-4bit", "true"))(name, path, run.eval / "x.json")
        assert result["settings"]["base_weights"] == "NF4, written out as float32 once" and result["settings"]["4bit"] is True


def test_four_bit_follows_the_constants_and_never_concerns_merged_models(run):
    import saved_model

    from common.run_directory import write_json

    write_json(run.constants, {"LOAD_IN_4BIT": True})
    write_json(run.path / "checkpoint-5" / "constants.json", {"LOAD_IN_4BIT": True})
    kinds = {name: saved_model.Saved(name, kind, str(run.path / name)) for name, kind in
             (("base", "base"), ("checkpoint-5", "adapter"), ("checkpoint-10", "adapter"), ("merged_model", "full"))}  # fmt: skip
    found = {name: saved_model.four_bit(run, "auto", saved) for name, saved in kinds.items()}
    assert found == {"base": True, "checkpoint-5": True, "checkpoint-10": False, "merged_model": False}
    assert saved_model.four_bit(run, "false", kinds["base"]) is False and saved_model.four_bit(run, "true", kinds["checkpoint-10"]) is True


def test_what_is_judged_is_judged_again_only_when_settings_rows_or_weights_change(run, options):
    first, fresh = judge(run, "checkpoint-5", options())
    assert fresh and judge(run, "checkpoint-5", options("--batch-size", 3)) == (first, False)
    assert judge(run, "checkpoint-5", options("--force"))[1]
    assert judge(run, "checkpoint-5", options("--max-new-tokens", 5))[1]
    assert judge(run, "checkpoint-5", options())[1]  # its file now holds the short answers
    shutil.copy(run.path / "checkpoint-10" / "adapter_model.safetensors", run.path / "checkpoint-5")
    other, fresh = judge(run, "checkpoint-5", options())
    assert fresh and other["metrics"] != first["metrics"] and other["settings_key"] == first["settings_key"]
    run.test.write_text("".join(run.test.read_text().splitlines(keepends=True)[:-1]))
    assert judge(run, "checkpoint-5", options())[1]


def test_sampling_repeats_itself_with_its_seed_and_differs_with_another(run, options):
    def answers_of(*flags):
        return [e["answer"] for e in judge(run, "base", options("--force", "--temperature", 1.5, *flags))[0]["examples"]]

    first = answers_of("--seed", 1)
    assert answers_of("--seed", 1) == first and answers_of("--seed", 2) != first


def test_rows_are_spread_over_the_file_and_examples_over_the_groups(run):
    import held_out

    rows = held_out.read(run.test, 5)
    assert [row.id for row in rows] == ["q2_1", "q2_4", "q2_7", "q2_10", "q2_13"]
    rows = held_out.read(run.test)
    assert held_out.read(run.test, 99) == rows
    assert len({rows[n].group for n in held_out.examples(rows, 5)}) == 5 and held_out.examples(rows, 99) == list(range(15))


def test_one_command_judges_a_checkpoint_and_the_base_beside_it(run, capsys, monkeypatch):
    import eval_checkpoint

    monkeypatch.setattr(sys, "argv", ["eval_checkpoint.py", "--checkpoint", str(run.final_model), "--max-new-tokens", "16"])
    eval_checkpoint.main()
    said = capsys.readouterr().out
    for word in ("base  ", "final_model", "question ", "reference ", "answer ", "ROUGE-L", "written to"):
        assert word in said
    found = {path.name for path in run.eval.iterdir()}
    assert found == {"base.json", "final_model.json"}
    result = json.loads((run.eval / "final_model.json").read_text())
    assert result["step"] is None and result["path"] == "final_model" and result["speed"]["tokens_per_second"] > 0


def test_of_several_answers_the_last_is_judged_and_a_long_row_is_shortened_as_for_training(trained):
    import answers
    import held_out

    _, tokenizer = trained
    turns = [
        {"role": role, "content": f"{word} {n}"} for n in range(4) for role, word in (("user", "mean of"), ("assistant", "variance is"))
    ]
    row = held_out.Row("r", "g", turns)
    (whole,), note = answers.encode(tokenizer, [row], 500)
    assert note is None and whole.asked == turns[:-1] and whole.ids[: whole.answer_start] == whole.prompt_ids
    assert tokenizer.decode(whole.ids[whole.answer_start :]) == "variance is 3<|eot_id|>"
    assert "variance is 2<|eot_id|>" in tokenizer.decode(whole.prompt_ids)
    (short,), _ = answers.encode(tokenizer, [row], len(whole.ids) - 1)
    assert tokenizer.decode(short.ids[short.answer_start :]) == "variance is 3<|eot_id|>"
    assert "mean of 0" not in tokenizer.decode(short.prompt_ids) and "mean of 1" in tokenizer.decode(short.prompt_ids)
    assert short.prompt_ids == short.ids[: short.answer_start]


def test_a_tokenizer_that_joins_the_prompts_end_differently_is_named(trained):
    import copy

    import answers
    import held_out

    _, tokenizer = trained
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["\n\nrate"])  # one token over the end of the prompt and the start of the answer
    row = held_out.Row("r", "g", [{"role": "user", "content": "mean?"}, {"role": "assistant", "content": "rate"}])
    assert answers.encode(tokenizer, [row], 500)[1] is None
    assert answers.encode(other, [row], 500)[1].startswith("1 of 1 prompts give other tokens alone")
