"""GPU_PRESETS: every row fits the GPU it is for, with both models; the row of a GPU, what a user sets, and what a resumed run had."""

import re
import sys
from types import SimpleNamespace

import pytest
from user_commands import ROOT

from common import accelerators, constants, footprint, hardware, hub, sizing
from common.job import Job
from common.refusal import Refusal

sys.path.insert(0, str(ROOT / "recipes"))
import qwen25_7b_lora as recipe  # noqa: E402

PRESETS = recipe.GPU_PRESETS
MODELS = ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-14B-Instruct")


def needed(model, row, gpu, **changed):
    """GiB of the plan for a row on a GPU, and whether that is well below what it has."""
    found = {**vars(recipe), **dict(zip(PRESETS["GPU"], row, strict=True)), **changed, "EVAL_STEPS": 100}
    job = Job.of(hub.known_dimensions(model, None), found | {"LORA_ALPHA": 2 * found["LORA_R"]}, kernels="unsloth", loss="unsloth")
    taken = footprint.of(job, accelerators.parse(gpu)[1].memory_gib)
    return taken.total / 2**30, taken.fits_well


def comments():
    """{GPU: what stands behind its row}"""
    lines = (ROOT / "recipes/qwen25_7b_lora.py").read_text().splitlines()
    return {found[1]: found[2] for line in lines if (found := re.match(r' {4}"([^"]+)": \(.*\),  # (.*)', line))}


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "GPU"])
def test_every_row_fits_with_both_models_and_says_what_they_take(name):
    gpu = accelerators.parse(name)[1]
    both = [needed(model, PRESETS[name], name) for model in MODELS]
    assert all(well for _, well in both), both
    said = comments()[name]
    assert said.startswith(f"{both[0][0]:.1f} and {both[1][0]:.1f} of {gpu.memory_gib:.1f}"), f"{both}: {said}"
    row = dict(zip(PRESETS["GPU"], PRESETS[name], strict=True))
    weights, rows = "4 bit" if row["LOAD_IN_4BIT"] else "16 bit", f"{row[sizing.BATCH[0]]} x {row[sizing.BATCH[1]]}"
    checkpointing = {"unsloth": "with offloading", "true": "yes", "none": "no"}[row["GRADIENT_CHECKPOINTING"]]
    told = f"{row['MAX_SEQ_LENGTH']:,} | {checkpointing}"
    sizes = f"{both[0][0]:.1f} and {both[1][0]:.1f} of {gpu.memory_gib:.1f} |"
    assert f"| {weights} | {row['LORA_R']} | {rows} | {told} | {sizes}" in (ROOT / "README.md").read_text()
    assert row["PER_DEVICE_TRAIN_BATCH_SIZE"] * row["GRADIENT_ACCUMULATION_STEPS"] == 16


def test_the_common_advice_for_an_a100_does_not_fit_and_the_comment_has_its_figures():
    advice = (False, 64, 8, 2, 4096, "none")
    both = [needed(model, advice, "A100-80GB") for model in MODELS]
    assert not any(well for _, well in both)
    assert f"{both[0][0]:.1f} and {both[1][0]:.1f}" in comments()["A100-40GB"]
    for name, row in (("RTX 4090", (True, 16, 2, 8, 2048, "true")), ("A40", (False, 32, 4, 4, 2048, "true"))):
        assert PRESETS[name] == row, "as commonly advised"


FOUND = [  # what nvidia-smi says, MiB, and the row
    ("NVIDIA GeForce RTX 4090", 24564, "RTX 4090"),
    ("NVIDIA A40", 46068, "A40"),
    ("NVIDIA A100-SXM4-40GB", 40960, "A100-40GB"),
    ("NVIDIA A100-PCIE-40GB", 40536, "A100-40GB"),
    ("NVIDIA A100 80GB PCIe", 81920, "A100-80GB"),
    ("NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"),
    ("NVIDIA L4", 23034, "L4"),
    ("NVIDIA GeForce RTX 3060", 12288, "RTX 3060"),
    ("NVIDIA H100 80GB HBM3", 81559, "H100"),
    ("NVIDIA H200", 143771, "H200"),
    ("NVIDIA GeForce RTX 3090", 24576, "RTX 4090"),
    ("NVIDIA A10G", 23028, "L4"),
    ("NVIDIA GeForce RTX 4080", 16376, "RTX 3060"),
    ("NVIDIA RTX A6000", 49140, "A40"),
    ("NVIDIA L40S", 46068, "A40"),
    ("NVIDIA GeForce RTX 5090", 32607, "RTX 4090"),
    ("NVIDIA H100 NVL", 95830, "A100-80GB"),
    ("NVIDIA B200", 183359, "H200"),
    ("NVIDIA GeForce RTX 3050", 8192, "RTX 3060"),
]


@pytest.mark.parametrize(("name", "memory", "row"), FOUND, ids=[name for name, *_ in FOUND])
def test_the_row_of_a_gpu(name, memory, row):
    gpu = accelerators.recognise(name, memory / 1024)
    found, why = sizing.row_for(gpu, PRESETS)
    assert found == row and row in why
    assert ("less memory than any row" in why) == (memory < 12000)
    assert all(well for _, well in (needed(model, PRESETS[row], f"{memory / 1024:.2f}GB") for model in MODELS)) or memory < 12000


@pytest.fixture
def decided(monkeypatch):
    """What the recipe's constants become on a GPU that nvidia-smi calls so: (namespace, settings, sentence)."""

    def decide(gpu=("NVIDIA A40", 46068), checkpoint=None, **overrides):
        gpus = [hardware.Gpu(gpu[0], gpu[1] / 1024, gpu[1] / 1024, "580.1")] if gpu else []
        monkeypatch.setattr(hardware, "gpus", lambda: gpus)
        settings = constants.resolve(vars(recipe), overrides)
        return recipe, settings, sizing.decide(settings, vars(recipe), PRESETS, "RTX 4090", checkpoint)

    yield decide
    constants.resolve(vars(recipe), {})


def test_what_is_none_comes_from_the_row_and_says_so(decided):
    found, settings, said = decided()
    assert [settings.values[name] for name in PRESETS["GPU"]] == list(PRESETS["A40"]) and found.LOAD_IN_4BIT is False
    assert said == "A40, 45.0 GiB: the row A40 of GPU_PRESETS"
    assert re.search(r'LORA_R +32 +<- GPU_PRESETS\["A40"\]', settings.show())


def test_what_the_user_sets_stays(decided):
    found, settings, _ = decided(load_in_4bit=True, lora_r=8)
    assert (found.LOAD_IN_4BIT, found.LORA_R, found.MAX_SEQ_LENGTH) == (True, 8, 2048) and settings.origins["LORA_R"] == "flag"
    everything = dict(zip(PRESETS["GPU"], (True, 4, 2, 2, 256, "none"), strict=True))
    assert decided(gpu=None, **everything)[2] is None, "no GPU is asked for where nothing is left to decide"


@pytest.mark.parametrize(("given", "batch"), [({"per_device_train_batch_size": 1}, (1, 16)), ({"per_device_train_batch_size": 32}, (32, 1)),
                                              ({"per_device_train_batch_size": 3}, (3, 5)), ({"gradient_accumulation_steps": 2}, (8, 2))],
                         ids=str)  # fmt: skip
def test_with_one_of_the_batch_given_a_step_keeps_its_rows(decided, given, batch):
    found, settings, _ = decided(**given)
    assert batch == (found.PER_DEVICE_TRAIN_BATCH_SIZE, found.GRADIENT_ACCUMULATION_STEPS)
    assert f'{batch[0] * batch[1]} rows a step on a GPU, 16 in GPU_PRESETS["A40"]' in settings.origins.values()


def test_without_a_gpu(decided):
    with pytest.raises(Refusal, match="no GPU was found here, by which LOAD_IN_4BIT, LORA_R, .* would be chosen; --tiny runs"):
        decided(gpu=None)
    assert decided(gpu=None, plan=True)[2].startswith("RTX 4090, 24.0 GiB: ")
    assert decided(gpu=None, prefetch=True)[2], "a login node has none"
    assert decided(gpu=None, plan=True, gpus="2xH200")[0].MAX_SEQ_LENGTH == 4096


def test_a_part_of_a_gpu_is_not_sized_by_the_whole(decided, monkeypatch):
    monkeypatch.setattr(hardware, "is_mig", lambda: True)
    with pytest.raises(Refusal, match=r"the GPU is divided \(MIG\).*; set LOAD_IN_4BIT, "):
        decided()


def manifest(constants, step, world_size=1):
    return {"constants": constants, "step": step, "world_size": world_size, "sharded": world_size > 1}


def test_more_ranks_take_less_accumulation(decided):
    had = dict(zip(PRESETS["GPU"], (False, 64, 1, 16, 4096, "none"), strict=True))
    found, _, _ = decided(checkpoint=manifest(had, 50, world_size=2), gradient_accumulation_steps=8)
    assert (found.PER_DEVICE_TRAIN_BATCH_SIZE, found.GRADIENT_ACCUMULATION_STEPS) == (1, 8), "on four GPUs in place of two"


def test_a_run_that_goes_on_keeps_what_it_had_on_another_gpu(decided):
    had = dict(zip(PRESETS["GPU"], PRESETS["A40"], strict=True))
    found, settings, said = decided(("NVIDIA H200", 143771), manifest(had, 200))
    assert said is None and found.LORA_R == 32 and settings.origins["LORA_R"] == "checkpoint-200"
    shrunk = had | {"PER_DEVICE_TRAIN_BATCH_SIZE": 1, "GRADIENT_ACCUMULATION_STEPS": 16}
    asked = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    found, settings, _ = decided(checkpoint=manifest(shrunk, 200), **asked)
    assert (found.PER_DEVICE_TRAIN_BATCH_SIZE, found.GRADIENT_ACCUMULATION_STEPS) == (1, 16)
    assert settings.origins["PER_DEVICE_TRAIN_BATCH_SIZE"] == "checkpoint-200, shrunk for lack of memory"
    had = manifest(had | {"PER_DEVICE_TRAIN_BATCH_SIZE": 4, "GRADIENT_ACCUMULATION_STEPS": 4}, 10)
    for one in ({"per_device_train_batch_size": 8}, {"gradient_accumulation_steps": 2}):  # of a run that was started with that alone
        found, _, _ = decided(checkpoint=had, **one)
        assert (found.PER_DEVICE_TRAIN_BATCH_SIZE, found.GRADIENT_ACCUMULATION_STEPS) == (4, 4)
    for other in (asked | {"auto_batch": False}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}):
        found, _, _ = decided(checkpoint=manifest(shrunk, 200), **other)
        assert found.PER_DEVICE_TRAIN_BATCH_SIZE == 4, "another batch is another run, which resume refuses"


@pytest.mark.parametrize(("name", "memory", "row"), FOUND, ids=[name for name, *_ in FOUND])
def test_the_example_config_leaves_the_sizes_to_the_table(decided, name, memory, row):
    found, settings, _ = decided((name, memory), config=ROOT / "recipes/qwen25_7b_lora.yaml")
    assert [settings.values[constant] for constant in PRESETS["GPU"]] == list(PRESETS[row])


def test_an_example_config_line_is_a_line_of_the_recipe_when_it_is_no_comment(decided, tmp_path):
    text = (ROOT / "recipes/qwen25_7b_lora.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(r"^  # ([a-z0-9_]+: )", r"  \1", text, flags=re.MULTILINE))
    _, settings, _ = decided(gpu=None, config=tmp_path / "config.yaml")
    assert [settings.values[constant] for constant in PRESETS["GPU"]] == list(PRESETS["RTX 4090"]), "nothing is left to a GPU"
    assert all(settings.origins[constant] == "config" for constant in (*PRESETS["GPU"], "LORA_ALPHA"))


def test_bf16_is_asked_of_the_gpu_that_is_planned_for(decided, monkeypatch):
    _, settings, _ = decided(("Tesla T4", 15360))
    with pytest.raises(Refusal, match="BF16 is True, and Tesla T4 has no bf16; set BF16 = False and FP16 = True"):
        sizing.require_precision(True, False, settings)
    sizing.require_precision(False, True, settings)
    sizing.require_precision(True, False, decided(("Tesla T4", 15360), plan=True, gpus="A40")[1])
    for both in (True, False):
        with pytest.raises(Refusal, match=f"BF16 and FP16 are both {both}"):
            sizing.require_precision(both, both, settings)


def test_several_kinds_are_sized_for_the_smallest(monkeypatch):
    gpus = [hardware.Gpu("NVIDIA A40", 45.0, 45.0, "580.1"), hardware.Gpu("NVIDIA L4", 22.5, 22.5, "580.1")]
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    assert sizing.row_for(accelerators.found()[1], PRESETS)[0] == "L4"
    assert sizing.row_for(SimpleNamespace(name="6 GiB", memory_gib=6.0), PRESETS)[0] == "RTX 3060"
