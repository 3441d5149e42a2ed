"""Long prompts: batches that fit the memory, prompts read in pieces, stages that pay, and models on several GPUs."""

import argparse
from types import SimpleNamespace

import pytest

GB = 10**9
QWEN, THIRTY_TWO = "Qwen/Qwen3-4B-Instruct-2507", "qihoo360/TinyR1-32B"
H100, H200 = 80 * 1024**3 * 0.995, 139.8 * 1024**3


def needs(**changed):
    import room

    found = {"cache": 10, "appended": 1, "repeated": 2, "activations": 5, "mask": 3}
    return room.Needs(**(found | changed))


def test_what_tokens_need_is_what_the_dimensions_say():
    import room

    from common import dimensions

    found = room.Needs.of(dimensions.read(QWEN), 2)
    assert found.cache == 2 * 36 * 8 * 128 * 2 == 147_456  # 38.7 GB at 262,144 tokens
    assert (found.appended, found.repeated, found.mask) == (2 * 8 * 128 * 2, 2 * 32 * 128 * 2, 6)
    assert room.Needs.of(dimensions.read(QWEN), 2, share=0.5).cache == found.cache / 2
    one, two = needs().bytes(1, 100, 100), needs().bytes(2, 100, 100)
    assert one == 100 * (10 + 1) + 100 * 5  # a row alone has no mask
    assert two == 2 * (100 * (10 + 1 + 2) + 100 * 5 + 100 * 100 * 3)
    assert needs().bytes(1, 100, 20) == 100 * 13 + 20 * 5 + 20 * 100 * 3  # pieces look back
    assert needs().bytes(1, 100, 100, cached=False) == 100 * 1 + 100 * 5 and needs().bytes(1, 100, 20, cached=False) == 100 * 13 + 6100


def test_a_batch_has_as_many_rows_as_fit_and_at_least_one():
    import room

    of_row = needs().bytes(2, 120, 120) / 2
    assert room.Room(needs(), 64 * of_row).batch(64, 100, new=20) == (64, None)
    assert room.Room(needs(), 7.5 * of_row).batch(64, 100, new=20) == (7, None)
    assert room.Room(needs(), 7.5 * of_row).batch(3, 100, new=20) == (3, None)
    assert room.Room(needs(), 7.5 * of_row).batch(64, 100, new=20, beside=of_row) == (3, None)
    assert room.Room(needs(), -5).batch(64, 100, new=20) == (1, None)  # whether it fits is seen by trying
    assert room.Room(None, 0).batch(64, 1 << 14) == (64, None)  # a model whose arithmetic is not known


def test_long_prompts_are_read_in_pieces_where_the_whole_does_not_fit():
    import room

    from common import dimensions

    of = room.Needs.of(dimensions.read(QWEN), 2)
    free = room.OF_A_GPU * (H100 - 8 * GB) - room.FOR_THE_REST
    assert room.Room(of, free).batch(64, 262_144, new=512) == (1, room.READ)
    assert room.Room(of, free).batch(64, 100_000, new=512) == (1, None)  # alone and at once: without a mask, by the fastest attention
    assert room.Room(of, free).batch(64, 2_000, new=512) == (64, None)
    rows, read = room.Room(of, free).batch(64, 32_768, new=512)
    assert read == room.READ and 4 < rows < 16  # masks of 32,768 x 32,768 would leave fewer
    assert of.bytes(rows, 33_280, read) <= free < of.bytes(rows + 1, 33_280, read)
    tight = room.Room(of, free)
    assert tight.tighten() and not tight.tighten()
    assert tight.batch(64, 100_000, new=512)[1] == room.READ and tight.batch(64, 2_000)[1] is None


def test_memory_that_ends_halves_the_batch_then_reads_in_pieces_then_refuses():
    import answers
    import room
    import torch

    from common.refusal import Refusal

    done, tried = [], []

    def work(indices, read):
        tried.append((len(indices), read))
        if len(indices) > 2 or (0 in indices and read is None):
            raise torch.OutOfMemoryError("no more")
        done.extend(indices)

    sequences = [[0] * 5000] + [[0] * 5] * 6
    answers.halving(64, sequences, work, "fix", room.Room(None, 0))
    assert sorted(done) == list(range(7)) and tried[:5] == [(7, None), (3, None), (1, None), (1, room.READ), (1, None)]

    def hopeless(indices, read):
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(Refusal, match="one row of 5000 tokens does not fit the GPU's memory; take another"):
        answers.halving(64, sequences, hopeless, "take another", room.Room(None, 0))


def test_batches_are_cut_by_the_room_there_is():
    import answers
    import room

    sizes = []
    free = 2.5 * needs(mask=0).bytes(2, 110, 110) / 2
    sequences = [[0] * 100] * 4 + [[0] * 10] * 12
    answers.halving(64, sequences, lambda n, read: sizes.append(len(n)), "", room.Room(needs(mask=0), free), 10, cached=True)
    assert sizes == [2, 2, 12]  # of the long rows two at a time, of the short ones all


@pytest.fixture(scope="module")
def tuned(made):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(made.path.parent / "base")
    return PeftModel.from_pretrained(base, made.path / "checkpoint-10").eval(), AutoTokenizer.from_pretrained(made.path / "checkpoint-10")


@pytest.fixture(scope="module")
def encoded(tuned, made):
    import answers
    import held_out

    return answers.encode(tuned[1], held_out.read(made.test), 256)[0]


def ask(tuned, encoded, most=24, batch=64):
    import answers

    model, tokenizer = tuned
    return answers.generate(model, tokenizer, encoded, answers.end_ids(tokenizer, model, encoded), 2, most, batch, "greedy")


def test_reading_in_pieces_changes_neither_losses_nor_answers(tuned, encoded, monkeypatch):
    import answers
    import room

    plain, losses = ask(tuned, encoded), answers.losses(tuned[0], encoded, 64, 2)
    read = []
    original = answers.last_logits
    monkeypatch.setattr(answers, "last_logits", lambda *arguments: read.append(arguments[4]) or original(*arguments))

    def of(model):
        found = room.Room(None, 0)
        found.tighten()
        return found

    monkeypatch.setattr(answers, "Room", SimpleNamespace(of=of))
    monkeypatch.setattr(room, "READ", 7)
    for (ours, count), (theirs, wanted) in zip(answers.losses(tuned[0], encoded, 64, 2), losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5) and count == wanted
    assert read == [7]
    assert ask(tuned, encoded).texts == plain.texts


def calls_of_generate(tuned, monkeypatch):
    model, calls = tuned[0], []
    original = model.generate

    def generate(**given):
        calls.append((tuple(given["input_ids"].shape), model.generation_config.max_new_tokens))
        return original(**given)

    monkeypatch.setattr(model, "generate", generate)
    return calls


def test_stages_are_as_long_as_reading_again_is_dear(tuned, encoded, monkeypatch):
    import answers

    assert [answers.stage_of(written, 200) for written in (0, 64, 128, 256)] == [64, 64, 128, 256]
    assert answers.stage_of(0, 3_200) == 200 and answers.stage_of(400, 3_200) == 400
    monkeypatch.setattr(answers, "FIRST_STAGE", 4)
    calls = calls_of_generate(tuned, monkeypatch)
    together = ask(tuned, encoded)
    assert len(calls) > 2 and calls[0][1] == 4
    calls.clear()
    alone = ask(tuned, encoded[:3], batch=1)
    assert [shape[0] for shape, _ in calls] == [1, 1, 1] and {most for _, most in calls} == {24}  # each row is read once
    assert alone.texts == together.texts[:3]


def test_an_answer_stopped_by_itself_or_at_the_most_tokens(tuned, encoded):
    short, long = ask(tuned, encoded, most=3), ask(tuned, encoded, most=48)
    assert short.stopped == [False] * 15 and short.tokens == 45 and any(long.stopped)
    model, tokenizer = tuned
    for text, stopped in zip(long.texts, long.stopped, strict=True):
        assert stopped or len(tokenizer(text)["input_ids"]) >= 40


def with_positions(made, tmp_path, **changed):
    """The base of the run, its config changed."""
    import json
    import shutil

    from transformers import AutoModelForCausalLM

    place = shutil.copytree(made.path.parent / "base", tmp_path / "changed")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changed))
    return AutoModelForCausalLM.from_pretrained(place).eval()


def rows_of(*documents, answer="rate", before=()):
    import held_out

    return [
        held_out.Row(str(n), "g", [*before, {"role": "user", "content": text}, {"role": "assistant", "content": answer}])
        for n, text in enumerate(documents)
    ]


def test_a_model_whose_positions_are_scaled_by_yarn_answers_beyond_those_its_config_declares(made, tuned, tmp_path):
    import answers

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 10_000.0}
    model = with_positions(made, tmp_path, rope_parameters=yarn)
    encoded, _ = answers.encode(tuned[1], rows_of("The mean of the sample was tested. " * 60), 1024)
    assert model.config.max_position_embeddings == 256 and 256 < len(encoded[0].prompt_ids) < 800
    given = answers.generate(model, tuned[1], encoded, {1}, 2, 16, 4, "greedy")
    assert given.tokens > 0
    assert answers.positions_of(model) == 1024 and answers.positions_of(tuned[0]) == 256


@pytest.mark.parametrize("declared", [None, 0])
def test_a_model_whose_config_names_no_positions_has_no_limit(declared):
    import answers

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(to_dict=lambda: {"max_position_embeddings": declared}))
    assert answers.positions_of(SimpleNamespace(config=config)) == answers.NO_LIMIT


def test_documents_are_shortened_so_that_answers_have_room_whatever_their_reference(run, options, monkeypatch):
    """MAX_SEQ_LENGTH is all that the model has: a full row would have left an answer as many tokens as its reference."""
    import json

    import answers
    import judging

    text = "".join(f"The mean of week {n} was tested. " for n in range(60))
    references = ["rate", "The rate of the test is the mean of the sample, and its size is the size of the group."]
    rows = [{"id": str(n), "group": str(n), "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": reference}]}
            for n, reference in enumerate(references)]  # fmt: skip
    run.test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, original = [], answers.generate
    monkeypatch.setattr(answers, "generate", lambda *given: asked.append(given[2]) or original(*given))
    judge = judging.Judge(run, options("--max-new-tokens", 60))
    for name in ("checkpoint-5", "checkpoint-10"):
        judge(name, run.path / name, run.eval / f"{name}.json")
    for short, long in asked:
        assert short.prompt_ids == long.prompt_ids and 256 - 60 - 40 < len(short.prompt_ids) <= 256 - 60
        assert all(len(row.ids) > 256 - 40 for row in (short, long)) and short.ids[: len(short.prompt_ids)] != short.prompt_ids
    assert judge.notes == [
        "2 of 2 prompts were shortened more than for training, to leave 60 of the model's 256 positions for an answer, "
        "whatever its reference"
    ]


def test_prompts_without_room_for_an_answer_are_counted(tuned):
    import answers

    rules = {"role": "system", "content": "mean of the sample " * 60}
    rows = [*rows_of("What is the mean?"), *rows_of("What is the mean?", before=[rules])]
    encoded, _ = answers.encode(tuned[1], rows, 512)
    full = len(encoded[1].prompt_ids)
    assert full > 200
    found, notes = answers.with_room(tuned[1], rows, encoded, 1024, 512)
    assert found == encoded and notes == []
    found, notes = answers.with_room(tuned[1], rows, encoded, full, 24)
    assert found == encoded and notes == [
        f"1 of 2 prompts leave nothing of the model's {full} positions for an answer and could not be shortened; "
        "their answers are empty and count as wrong"
    ]
    found, notes = answers.with_room(tuned[1], rows, encoded, full + 9, 24)
    assert found == encoded and notes == [
        f"1 of 2 prompts leave fewer than 24 tokens of the model's {full + 9} positions for an answer, which is cut off there"
    ]
    short = len(encoded[0].prompt_ids)  # however long answers may be, questions keep half of the positions
    assert answers.with_room(tuned[1], rows[:1], encoded[:1], 2 * short, 10 * short)[0] == encoded[:1]


@pytest.mark.parametrize(
    ("name", "four_bit", "length", "memory", "gpus", "wanted"),
    [
        (QWEN, False, 262_144 + 1024, H100, 4, 1),  # 8 GB and 39 of keys and values
        (QWEN, False, 2_560, H100, 4, 1),
        (QWEN, False, 262_144 + 1024, 24 * GB, 4, 4),
        (QWEN, True, 262_144 + 1024, 48 * GB, 2, 2),
        (THIRTY_TWO, False, 2_048 + 512, H100, 8, 1),  # 65 GB: it fits, hardly
        (THIRTY_TWO, False, 131_072, H100, 8, 2),  # and 34 GB of keys and values
        (THIRTY_TWO, False, 131_072, H200, 8, 1),
        (THIRTY_TWO, True, 131_072, H100, 8, 1),  # NF4: 19 GB
        (THIRTY_TWO, False, 131_072, 24 * GB, 8, 8),
        (THIRTY_TWO, False, 131_072, 8 * GB, 8, 8),  # not even on all of them: tried on all
    ],
)
def test_gpus_per_model(name, four_bit, length, memory, gpus, wanted):
    import placement

    from common import dimensions

    found = dimensions.read(name)
    weights = placement.weight_bytes(found, four_bit)
    assert placement.gpus_per_model(found, weights, length, memory, gpus) == wanted
    limits = placement.room_for_weights(found, weights, length, [memory] * wanted)
    assert sum(limits.values()) > weights and list(limits) == list(range(wanted))


def test_weights_are_what_models_take():
    import placement

    from common import dimensions

    assert placement.weight_bytes(dimensions.read(QWEN), False) == 2 * 4_022_468_096
    assert placement.weight_bytes(dimensions.read(THIRTY_TWO), False) == pytest.approx(65.5e9, rel=0.01)
    assert placement.weight_bytes(dimensions.read(THIRTY_TWO), True) == pytest.approx(19.7e9, rel=0.03)


def test_accelerate_divides_the_layers_evenly_with_the_room_it_is_told():
    """The very map that device_map="auto" makes, for a 32B model without weights, on two H100 that are not there."""
    import placement
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from common import dimensions

    found = dimensions.read(THIRTY_TWO)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(
            vocab_size=found.vocab_size, hidden_size=found.hidden_size, intermediate_size=found.intermediate_size, num_hidden_layers=64,
            num_attention_heads=40, num_key_value_heads=8, tie_word_embeddings=False,
        )).to(torch.bfloat16)  # fmt: skip
    limits = placement.room_for_weights(found, placement.weight_bytes(found, False), 131_072, [H100, H100])
    split = {"no_split_module_classes": ["Qwen2DecoderLayer"], "dtype": torch.bfloat16}
    places = infer_auto_device_map(model, get_balanced_memory(model, max_memory=limits, **split), **split)
    assert set(places.values()) == {0, 1}
    on_first = sum(1 for name, place in places.items() if name.startswith("model.layers.") and place == 0)
    assert 30 <= on_first <= 34 and places["model.embed_tokens"] == 0 and places["lm_head"] == 1


def test_a_model_on_several_devices_takes_adapters_and_gives_the_same(made, run, monkeypatch):
    """Accelerate's own hooks, as between GPUs: only that both devices are this CPU."""
    import saved_model
    import torch
    from accelerate.hooks import attach_align_device_hook_on_blocks
    from transformers import AutoModelForCausalLM

    base = saved_model.Saved("base", "base", str(made.path.parent / "base"))
    adapters = [saved_model.describe(run.path / name, name) for name in ("checkpoint-5", "checkpoint-10")]
    plain, ids = saved_model.Models("cpu", torch.float32), torch.arange(3, 60)[None]
    load, asked = AutoModelForCausalLM.from_pretrained, []

    def logits(models):
        with torch.no_grad():
            return [models.use(saved, base, False)(input_ids=ids).logits.clone() for saved in (base, *adapters, base, adapters[0])]

    def dispatched(source, device_map, max_memory, **settings):
        asked.append((device_map, max_memory))
        model, report = load(source, **settings)
        parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
        attach_align_device_hook_on_blocks(model, dict.fromkeys(["", *parts], torch.device("cpu")), dict.fromkeys(["", *parts], False))
        model.hf_device_map = {name: int(n > 1) for n, name in enumerate(parts)}
        return model, report

    wanted = logits(plain)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", dispatched)
    spread = saved_model.Models("cpu", torch.float32, {0: GB, 1: GB})
    for ours, theirs in zip(logits(spread), wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert asked[0] == ("auto", {0: GB, 1: GB}) and not torch.equal(wanted[0], wanted[2])


def test_a_model_that_came_to_lie_on_the_disk_is_refused(made, monkeypatch):
    import saved_model
    import torch
    from transformers import AutoModelForCausalLM

    from common.refusal import Refusal

    load = AutoModelForCausalLM.from_pretrained

    def offloaded(source, device_map, max_memory, **settings):
        model, report = load(source, **settings)
        model.hf_device_map = {"model": 0, "lm_head": "disk"}
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", offloaded)
    base = saved_model.Saved("base", "base", str(made.path.parent / "base"))
    with pytest.raises(Refusal, match="does not fit 2 GPUs beside its longest row: parts of it came to lie on the disk"):
        saved_model.Models("cpu", torch.float32, {0: GB, 1: GB}).use(base, base, False)


def machine(monkeypatch, count, gib=79.6):
    from common import hardware

    gpus = [hardware.Gpu("NVIDIA H100", gib, gib, "570", n) for n in range(count)]
    monkeypatch.setattr(hardware, "gpus", lambda *_: gpus)


def needed(run, options):
    import judging
    import placement

    return placement.needed(run, options, judging.Rows.of(run, None).all)


def test_a_run_takes_as_many_gpus_as_its_longest_row_needs(run, options, monkeypatch):
    import json

    import placement

    from common.refusal import Refusal
    from common.run_directory import read_json, write_json

    machine(monkeypatch, 4)
    for place in (run.final_model, *(path for _, path in run.checkpoints())):
        config = read_json(place / "adapter_config.json")
        write_json(place / "adapter_config.json", config | {"base_model_name_or_path": THIRTY_TWO})
    write_json(run.constants, read_json(run.constants) | {"MAX_SEQ_LENGTH": 131_072})
    assert needed(run, options()) == (1, None)  # its rows are short, whatever MAX_SEQ_LENGTH says
    row = json.loads(run.test.read_text().splitlines()[0])
    row["messages"][-2]["content"] = "word " * 100_000
    run.test.write_text(json.dumps(row) + "\n")
    count, limits = needed(run, options())
    assert count == 2 and set(limits) == {0, 1} and all(33 * GB < limit < 60 * GB for limit in limits.values())
    assert needed(run, options("--gpus-per-model", 1)) == (1, None)
    assert needed(run, options("--gpus-per-model", 4))[0] == 4
    assert needed(run, options("--load-in-4bit", "true"))[0] == 1
    with pytest.raises(Refusal, match="--gpus-per-model is 5, and there are 4 GPUs for it here"):
        needed(run, options("--gpus-per-model", 5))
    row["messages"][-1]["content"] = "word " * 20_000  # 100,000 bytes, so perhaps as many tokens
    run.test.write_text(json.dumps(row) + "\n")
    lengths = []
    monkeypatch.setattr(placement, "gpus_per_model", lambda found, weights, length, *rest: lengths.append(length) or 1)
    automatic = options()
    automatic.max_new_tokens = None
    assert needed(run, automatic) == needed(run, options()) == (1, None)
    assert lengths == [131_072 + 125_000, 131_072 + 24]  # as the answers may have: a quarter more than the longest reference
    machine(monkeypatch, 0)
    assert needed(run, options()) == (1, None)
    with pytest.raises(Refusal, match="there are no GPUs"):
        needed(run, options("--gpus-per-model", 2))


def test_workers_get_the_gpus_of_their_group(run, options, monkeypatch, tmp_path):
    import eval_all

    started = []

    class Started:
        def __init__(self, command, env):
            started.append((command, env))

        def wait(self):
            return 0

    assert eval_all.groups(["4", "5", "6", "7", "8"], 2) == ["4,5", "6,7"]
    machine(monkeypatch, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(eval_all.subprocess, "Popen", Started)
    names = ["base", "checkpoint-5", "checkpoint-10", "final_model"]
    assert eval_all.default_workers(run, names, 2) == 2 and eval_all.default_workers(run, names) == 4
    eval_all.judge_in_workers(run, names, 2, [], 2)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in started] == ["4,5", "6,7"]
    assert all(command[-2:] == ["--gpus-per-model", "2"] for command, _ in started)


def test_the_flag_is_a_number_or_auto(options):
    assert options().gpus_per_model == "auto" and options("--gpus-per-model", 2).gpus_per_model == 2
    with pytest.raises((SystemExit, argparse.ArgumentTypeError)):
        options("--gpus-per-model", 0)
