"""Memory of a job: its parts, what fits, and the smallest change with which it does."""

import pytest
from recipe_jobs import JOBS

from common import accelerators, footprint, memory

ON = {name: job.on(accelerators.parse(gpus)[0]) for name, (gpus, job) in JOBS.items()}
CAPACITY = {name: accelerators.parse(gpus)[1].memory_gib for name, (gpus, _) in JOBS.items()}


@pytest.mark.parametrize("name", JOBS)
def test_parts_add_up_and_the_worst_moment_is_the_one_that_is_shown(name):
    found = footprint.of(ON[name], CAPACITY[name])
    assert all(amount >= 0 for amount in found.parts.values())
    assert found.total == pytest.approx(sum(found.parts.values()))
    assert found.free == pytest.approx(found.capacity - found.total)
    assert found.allocated == pytest.approx(found.total - found.parts["context and libraries"] - found.parts["fragmentation"])
    at_work = sum(found.parts.get(part, 0) for part in ("activations", "logits and loss", "gradients in fp32", "an evaluation"))
    assert all(amount <= at_work for amount in found.not_together.values())


@pytest.mark.parametrize("name", JOBS)
def test_every_recipe_fits_the_gpus_it_is_meant_for(name):
    found = footprint.of(ON[name], CAPACITY[name])
    assert found.fits, found.parts


def test_32b_in_full_has_sixteen_bytes_a_parameter_spread_over_eight_gpus():
    parts = footprint.of(ON["mtg_full_32b"], 140).parts
    states = parts["weights"] + parts["gradients"] + parts["optimiser states"]
    assert states == pytest.approx(16 * 32_763_876_352 / 8, rel=0.001)


def test_what_the_guide_wants_of_an_a100_is_too_much():
    """8 rows of 4,096 tokens without checkpointing, rank 64: its own table says that it fits 80 GB."""
    job = ON["qwen25_7b_lora"].changed({
        "LOAD_IN_4BIT": False, "LORA_R": 64, "LORA_ALPHA": 128, "PER_DEVICE_TRAIN_BATCH_SIZE": 8, "GRADIENT_ACCUMULATION_STEPS": 2,
        "MAX_SEQ_LENGTH": 4096, "GRADIENT_CHECKPOINTING": "none",
    })  # fmt: skip
    assert not footprint.of(job, 80).fits
    (change,) = footprint.smallest_change(job, 80)
    assert change["PER_DEVICE_TRAIN_BATCH_SIZE"] * change["GRADIENT_ACCUMULATION_STEPS"] == 16


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama32_qlora", {"PER_DEVICE_TRAIN_BATCH_SIZE": 8}),
        ("llama32_qlora", {"MAX_SEQ_LENGTH": 8192}),
        ("llama32_qlora", {"LORA_R": 256}),
        ("llama32_qlora", {"LOAD_IN_4BIT": False}),
        ("llama32_qlora", {"GRADIENT_CHECKPOINTING": "none"}),
        ("llama32_qlora", {"OPTIM": "adamw_torch_fused"}),
        ("gpt_pretrain", {"PER_DEVICE_TRAIN_BATCH_SIZE": 16}),
        ("gpt_pretrain", {"LOSS": "whole"}),
        ("mtg_full_32b", {"GPUS": 4}),
        ("qwen3_4b_longctx", {"TILED_MLP": False}),
        ("qwen3_4b_longctx", {"GRADIENT_CHECKPOINTING": "true"}),
    ],
)
def test_what_costs_memory_costs_it(name, change):
    assert footprint.of(ON[name].changed(change), 80).total > footprint.of(ON[name], 80).total


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("gib", [3, 6, 12, 24, 40, 80])
def test_the_smallest_change_is_enough_and_no_smaller_one_is(name, gib):
    job = ON[name].changed({"PER_DEVICE_TRAIN_BATCH_SIZE": 16, "GRADIENT_CHECKPOINTING": "none"})
    if footprint.of(job, gib).fits_well:
        return
    found = footprint.smallest_change(job, gib)
    ladders = memory.ladders(job.constants())
    if found is None:
        for rungs in ladders:
            job = job.changed(rungs[-1])
        assert not footprint.of(job, gib).fits_well
        return
    changed = job
    for change in found:
        changed = changed.changed(change)
    assert footprint.of(changed, gib).fits_well
    assert changed.rows_per_step == job.rows_per_step
    for left_out in found:  # without any of them it does not fit
        rest = job
        for change in found:
            rest = rest if change is left_out else rest.changed(change)
        assert not footprint.of(rest, gib).fits_well
    if len(found) == 1:  # nor with a smaller step of the same constant, or with an earlier one
        for rungs in ladders:
            for change in rungs:
                if change == found[0]:
                    return
                assert not footprint.of(job.changed(change), gib).fits_well
        pytest.fail(f"{found} is on no ladder")


def test_the_fewest_gpus():
    job = ON["mtg_full_32b"].changed({"GPUS": 1})
    assert footprint.fewest_gpus(job, 60) == 16  # its states alone take 66 GB on eight; powers of two are tried
    assert not footprint.of(job.changed({"GPUS": 8}), 60).fits
    assert footprint.fewest_gpus(ON["qwen25_7b_lora"], 4) is None  # one GPU without ZeRO: more of them hold as much each
