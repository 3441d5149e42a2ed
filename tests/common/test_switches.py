"""Switches: accepted as flags and as keywords of main(), checked like constants, refused where they contradict each other or do nothing."""

import shlex
import sys

import pytest

from common import constants
from common.refusal import Refusal

RECIPE = '''\
"""A recipe."""

MODEL_NAME: str = "owner/model"
LEARNING_RATE: float = 2e-4

TINY = {"LEARNING_RATE": 1e-2}
'''
PREPARATION = '''\
"""A script that has constants and trains nothing."""

SEED: int = 42
'''
NOTHING = {
    "tiny": False, "prefetch": False, "config": None, "plan": False, "gpus": None, "usd_per_gpu_hour": None, "tokens": None,
    "json": False, "no_plan": False,
}  # fmt: skip


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """`resolve("--plan")` is a typed command; with keywords only, a call from Python."""
    path = tmp_path / "example.py"

    def call(*argv, source=RECIPE, **overrides):
        path.write_text(source)
        monkeypatch.setattr(sys, "argv", [str(path), *argv])
        namespace = {"__name__": "example" if overrides else "__main__", "__file__": str(path)}
        exec(compile(source, str(path), "exec"), namespace)
        return constants.resolve(namespace, overrides)

    return call


def given(settings):
    return {name: getattr(settings, name) for name in NOTHING}


@pytest.mark.parametrize(
    ("command", "keywords", "wanted"),
    [
        ("", {"learning_rate": 1.0}, {}),
        ("--plan", {"plan": True}, {"plan": True}),
        ("--plan --tiny --json", {"plan": True, "tiny": True, "json": True}, {"plan": True, "tiny": True, "json": True}),
        ("--no-plan", {"no_plan": True}, {"no_plan": True}),
        ("--no-plan --prefetch", {"NO_PLAN": True, "prefetch": True}, {"no_plan": True, "prefetch": True}),
        ("--plan --gpus 8xH200", {"plan": True, "gpus": "8xH200"}, {"plan": True, "gpus": "8xH200"}),
        ("--plan --usd-per-gpu-hour 3.5", {"plan": True, "usd_per_gpu_hour": 3.5}, {"plan": True, "usd_per_gpu_hour": 3.5}),
        ("--plan --usd_per_gpu_hour=3", {"plan": True, "usd_per_gpu_hour": 3}, {"plan": True, "usd_per_gpu_hour": 3.0}),
        ("--plan --tokens 1.4e9", {"plan": True, "tokens": 1.4e9}, {"plan": True, "tokens": 1_400_000_000}),
        ("--plan --tokens 2E6", {"plan": True, "tokens": "2e+6"}, {"plan": True, "tokens": 2_000_000}),
        ("--plan --tokens 1_400_000_001", {"plan": True, "tokens": "1_400_000_001"}, {"plan": True, "tokens": 1_400_000_001}),
        ("--plan --tokens 9007199254740993", {"plan": True, "tokens": 9007199254740993}, {"plan": True, "tokens": 9007199254740993}),
        ("", {"plan": False, "json": False, "gpus": None, "tokens": None, "tiny": None}, {}),
    ],
)
def test_flags_and_keywords_say_the_same(resolve, command, keywords, wanted):
    for settings in (resolve(*command.split()), resolve(**keywords)):
        assert given(settings) == NOTHING | wanted
        assert [type(value) for value in given(settings).values()] == [type(value) for value in (NOTHING | wanted).values()]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--gpus 8xTPU --plan", ["--gpus '8xtpu' names no GPU", "H200", "1x12GB"]),
        ("--gpus 0xH200 --plan", ["--gpus '0xH200' asks for 0 GPUs"]),
        ("--gpus= --plan", ["--gpus '' names no GPU"]),
        ("--gpus none --plan", ["--gpus 'none' names no GPU"]),
        ("--plan --gpus", ["--gpus", "expected one argument"]),
        ("--usd-per-gpu-hour 0 --plan", ["--usd-per-gpu-hour is '0'", "a number above 0", "--usd-per-gpu-hour 3.5"]),
        ("--usd-per-gpu-hour -1 --plan", ["--usd-per-gpu-hour is '-1'"]),
        ("--usd-per-gpu-hour inf --plan", ["--usd-per-gpu-hour is 'inf'", "finite"]),
        ("--usd-per-gpu-hour nan --plan", ["--usd-per-gpu-hour is 'nan'"]),
        ("--usd-per-gpu-hour '$3' --plan", ["--usd-per-gpu-hour is '$3'"]),
        ("--usd-per-gpu-hour= --plan", ["--usd-per-gpu-hour is ''"]),
        ("--tokens 0 --plan", ["--tokens is '0'", "a whole number above 0", "--tokens 1.4e9"]),
        ("--tokens -5 --plan", ["--tokens is '-5'"]),
        ("--tokens 1.5 --plan", ["--tokens is '1.5'"]),
        ("--tokens 1.25e1 --plan", ["--tokens is '1.25e1'"]),
        ("--tokens 1e999 --plan", ["--tokens is '1e999'"]),
        ("--tokens inf --plan", ["--tokens is 'inf'"]),
        ("--tokens 1.4B --plan", ["--tokens is '1.4B'"]),
        ("--tokens none --plan", ["--tokens is 'none'"]),
        ("--plan=perhaps", ["--plan", "'perhaps'"]),
        ("--plann", ["no flag --plann", "--plan"]),
    ],
)
def test_wrong_values_are_refused(resolve, command, said):
    with pytest.raises(Refusal) as refused:
        resolve(*shlex.split(command))
    for part in said:
        assert part.lower() in str(refused.value).lower()


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"plan": "perhaps"}, "--plan is 'perhaps'; it must be true or false"),
        ({"plan": 1}, "--plan is 1, an int; it must be true or false"),
        ({"plan": True, "gpus": 8}, "--gpus is 8, an int; it must be text"),
        ({"plan": True, "tokens": True}, "--tokens is True, a bool; it must be a whole number above 0"),
        ({"plan": True, "tokens": 1.5}, "--tokens is 1.5, a float; it must be a whole number above 0"),
        ({"plan": True, "tokens": float("inf")}, "--tokens is inf"),
        ({"plan": True, "usd_per_gpu_hour": float("nan")}, "--usd-per-gpu-hour is nan"),
        ({"plna": True}, "main() has no argument 'plna', which is no constant of this recipe; the nearest is PLAN"),
    ],
)
def test_wrong_keywords_are_refused(resolve, keywords, said):
    with pytest.raises(Refusal) as refused:
        resolve(**keywords)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--plan --no-plan", ["--plan and --no-plan", "leave one out"]),
        ("--plan --prefetch", ["--plan and --prefetch", "one after the other"]),
        ("--gpus 8xH200", ["--gpus is given without --plan", "add --plan, or leave it out"]),
        ("--usd-per-gpu-hour 3.5", ["--usd-per-gpu-hour is given without --plan"]),
        ("--tokens 5", ["--tokens is given without --plan"]),
        ("--json --no-plan", ["--json is given without --plan"]),
        ("--tokens 5 --gpus H200 --tiny", ["--gpus and --tokens are given without --plan", "leave them out"]),
    ],
)
def test_switches_that_contradict_each_other_or_do_nothing(resolve, command, said):
    with pytest.raises(Refusal) as refused:
        resolve(*command.split())
    for part in said:
        assert part in str(refused.value)


def test_the_command_types_them_again(resolve):
    typed = ["--plan", "--gpus", "8xH200", "--tokens", "1.4e9", "--learning-rate", "1e-3"]
    settings = resolve(*typed)
    assert shlex.split(settings.command) == ["python", "recipes/example.py", *typed]
    called = resolve(plan=True, gpus="8xH200", tokens=1.4e9, learning_rate=1e-3)
    assert called.command == "example.main(plan=True, gpus='8xH200', tokens=1400000000, learning_rate=0.001)"
    assert resolve(tiny=True).command == "example.main(tiny=True)"
    assert resolve(learning_rate=1e-3).command == "example.main(learning_rate=0.001)"


def test_they_are_neither_constants_nor_keys_of_a_config_file(resolve, tmp_path):
    assert set(resolve("--plan", "--gpus", "H100").values) == {"MODEL_NAME", "LEARNING_RATE"}
    (tmp_path / "run.yaml").write_text("plan: true\n")
    with pytest.raises(Refusal, match="'plan', which is no constant of this recipe"):
        resolve("--config", str(tmp_path / "run.yaml"))


def test_what_trains_nothing_has_no_plan(resolve, capsys):
    def switches_in_help(source):
        with pytest.raises(SystemExit):
            resolve("--help", source=source)
        text = capsys.readouterr().out.split("switches:")[1]
        flags = ("--tiny", "--config", "--prefetch", "--plan", "--gpus", "--usd-per-gpu-hour", "--tokens", "--json", "--no-plan")
        return [flag for flag in flags if f"  {flag}" in text]

    assert len(switches_in_help(RECIPE)) == 9
    assert switches_in_help(PREPARATION) == ["--tiny", "--config"]
    with pytest.raises(Refusal, match="there is no flag --plan"):
        resolve("--plan", source=PREPARATION)
    with pytest.raises(Refusal, match="no argument 'plan'"):
        resolve(plan=True, source=PREPARATION)
    assert resolve(seed=1, source=PREPARATION).values == {"SEED": 1}
