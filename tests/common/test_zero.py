"""DeepSpeed's JSON against the constants."""

import json
from pathlib import Path

import pytest

from common import zero
from common.refusal import Refusal

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))


@pytest.fixture
def write(tmp_path):
    def config(**content):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(content))
        return path

    return config


def test_auto_and_absence_are_decided_by_the_constants(write):
    path = write(gradient_clipping="auto", bf16={"enabled": "auto"})
    found = zero.check(path, gradient_clipping=0.5, bf16__enabled=True, train_micro_batch_size_per_gpu=3, zero_optimization__stage=2)
    assert found == {"gradient_clipping": "auto", "bf16": {"enabled": "auto"}}


def test_the_same_value_is_no_contradiction(write):
    assert zero.check(write(gradient_clipping=1.0, bf16={"enabled": True}), gradient_clipping=1.0, bf16__enabled=True)


@pytest.mark.parametrize(
    ("content", "constant", "said"),
    [
        ({"gradient_clipping": 1.0}, {"gradient_clipping": 0.5}, ["gradient_clipping = 1.0", "0.5"]),
        ({"bf16": {"enabled": False}}, {"bf16__enabled": True}, ["bf16.enabled = False", "True"]),
        ({"zero_optimization": {"stage": 3}}, {"zero_optimization__stage": 2}, ["zero_optimization.stage = 3", "2"]),
    ],
)
def test_a_contradiction_names_file_and_both_values(write, content, constant, said):
    path = write(**content)
    with pytest.raises(Refusal) as refused:
        zero.check(path, **constant)
    for part in [str(path), *said, '"auto"']:
        assert part in str(refused.value)


def test_a_missing_and_a_broken_file(tmp_path):
    with pytest.raises(Refusal, match="which does not exist"):
        zero.check(tmp_path / "no.json")
    (tmp_path / "cut.json").write_text('{"bf16": ')
    with pytest.raises(Refusal, match="cut.json is not JSON"):
        zero.check(tmp_path / "cut.json")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_ones_leave_to_the_recipe_what_the_recipe_says(path):
    zero.check(path, gradient_accumulation_steps=7, gradient_clipping=0.123, train_micro_batch_size_per_gpu=11, bf16__enabled=True)
    assert (path.parents[1] / "recipes" / f"{path.stem}.py").is_file()


def test_there_are_shipped_ones():
    assert SHIPPED
