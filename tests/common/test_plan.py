"""The plan: steps, time, what fits, the smallest change, and the recipes' own models on other hardware."""

import pytest
from recipe_jobs import JOBS

from common import accelerators, plan, plan_text
from common.plan import Workload

JOB = JOBS["llama32_qlora"][1].changed({"EVAL_STEPS": 100, "PACKING": True})
_, GPU = accelerators.parse("4090")


def test_steps_tokens_and_epochs_are_those_that_run():
    assert plan.steps_of(510, 107_903, 8, 2.0, -1) == {"steps": 128, "tokens_per_step": 1686, "epochs": 2.0}
    assert plan.steps_of(510, 107_903, 8, 2.0, 32) == {"steps": 32, "tokens_per_step": 1686, "epochs": 0.5}
    assert plan.steps_of(3, 90, 8, 3.0, -1) == {"steps": 3, "tokens_per_step": 90, "epochs": 3.0}


def test_samples_take_what_a_run_of_so_many_conversations_takes():
    padded = Workload(10_000, 4_120_000, 5_000_000.0, 500.0, 90_000, "", "", 10_000)
    ten = plan.samples_of(JOB, GPU, padded, 0.5)[1]
    own = plan.course_of(JOB, GPU, padded).time
    assert (ten["rows"], ten["tokens"]) == (10_000, 412)
    assert ten["hours"] == pytest.approx(own.hours - own.evaluating / 3600) and own.evaluating > 0
    assert ten["usd"] == pytest.approx(ten["gpu_hours"] * 0.5)
    assert plan.samples_of(JOB.changed({"MAX_STEPS": 7}), GPU, padded, 0.5)[1] == ten
    hours = [sample["hours"] for sample in plan.samples_of(JOB.on(2), GPU, padded)]
    assert hours[2] == pytest.approx(10 * hours[1], rel=0.01) == pytest.approx(100 * hours[0], rel=0.03)
    assert plan.samples_of(JOB.on(2), GPU, padded)[1]["gpu_hours"] == pytest.approx(2 * hours[1])


def test_conversations_that_are_not_known_are_taken_to_be_usual_ones_and_documents_to_fill_their_rows():
    whole = plan.full_rows(10_000_000, JOB.max_seq_length)
    assert [sample["tokens"] for sample in plan.samples_of(JOB, GPU, whole)] == [512] * 3
    assert plan.samples_of(JOB.changed({"MAX_SEQ_LENGTH": 256}), GPU)[0]["tokens"] == 256
    alone = plan.samples_of(JOB.changed({"PACKING": False}), GPU)[2]
    assert alone["tokens"] == 512 and alone["usd"] is None
    steps, per_step = -(-100_000 // JOB.rows_per_step) * 3, JOB.rows_per_step * 512
    assert alone["hours"] == pytest.approx(steps * plan.time_of(JOB, GPU, per_step, 512, steps).step / 3600)
    assert plan.samples_of(JOB.changed({"PACKING": False, "MAX_SEQ_LENGTH": 32_768}), GPU)[0]["tokens"] == 32_768


def test_few_steps_are_said():
    assert plan.few_steps(30, True, 16) is None
    assert plan.few_steps(3, True, 16).startswith("3 optimiser steps are few") and "PACKING = False, or" in plan.few_steps(3, True, 16)
    assert "PACKING" not in plan.few_steps(3, False, 16) and "than 16 (GRADIENT_ACCUMULATION_STEPS)" in plan.few_steps(3, False, 16)


def test_no_samples_of_pretraining_or_of_a_speed_that_is_not_known():
    assert plan.samples_of(JOBS["gpt_pretrain"][1], GPU) == []
    assert plan.samples_of(JOB.on(1, cpu=True), accelerators.cpu()) == []
    assert plan.samples_of(JOB, accelerators.parse("1x3GB")[1]) == []


def test_samples_at_a_measured_speed():
    said = "at the measured 3,210 tokens/s, 3 epochs of 412 tokens a conversation: 1,000 take 6 min, 10,000 64 min, 100,000 10.7 h"
    assert plan_text.measured_samples(3210.4, 412.3, 3.0) == said
    assert ", 1 epoch of 20 tokens a conversation: 1,000 take 20 s, " in plan_text.measured_samples(1000, 20, 1)
