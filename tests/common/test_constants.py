"""Constants: where a value may come from, which source wins, what is refused, and that every constant of every recipe is read."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import constants
from common.refusal import Refusal

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.py"))

RECIPE = '''\
"""A recipe with a constant of every kind."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

# Model
MODEL_NAME: str = "owner/model"
MAX_SEQ_LENGTH: PositiveInt = 2048  # tokens; 100 % of them

# Data
TRAIN_FILES: dict[str, NonNegativeFloat] = {"a.jsonl": 1.0}
BAD_ROWS: Literal["stop", "skip"] = "stop"
PACKING: bool = True

# Adapter
LORA_R: PositiveInt = 16
LORA_ALPHA: PositiveInt = 32
TARGET_MODULES: list[str] = ["q_proj", "v_proj"]

# Optimisation
LEARNING_RATE: PositiveFloat = 2e-4
MAX_STEPS: int = -1
PATIENCE: PositiveInt | None = 3

TINY = {"MAX_SEQ_LENGTH": 256, "LORA_R": 4}
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run("--lora-r", "8")` executes the recipe as a script and resolves; returns (its namespace, the resolved constants)."""
    path = tmp_path / "recipes" / "example.py"
    path.parent.mkdir()

    def resolve(*argv, source=RECIPE, namespace=None, **overrides):
        path.write_text(source)
        monkeypatch.setattr(sys, "argv", [str(path), *argv])
        if namespace is None:
            namespace = {"__name__": "__main__", "__file__": str(path)}
            exec(compile(source, str(path), "exec"), namespace)
        return namespace, constants.resolve(namespace, overrides)

    return resolve


@pytest.fixture
def config(tmp_path):
    def write(text, name="run.yaml"):
        (tmp_path / name).write_text(text)
        return f"--config={tmp_path / name}"

    return write


def refusal(run, *argv, **overrides):
    with pytest.raises(Refusal) as refused:
        run(*argv, **overrides)
    return str(refused.value)


def test_a_flag_beats_the_config_beats_tiny_beats_the_file(run, config):
    file = config("lora_r: 8\nmax_seq_length: 512\nlora_alpha: 7\n")
    cases = [
        ([], {"LORA_R": 16, "MAX_SEQ_LENGTH": 2048, "LORA_ALPHA": 32}),
        (["--tiny"], {"LORA_R": 4, "MAX_SEQ_LENGTH": 256, "LORA_ALPHA": 32}),
        (["--tiny", file], {"LORA_R": 8, "MAX_SEQ_LENGTH": 512, "LORA_ALPHA": 7}),
        ([file, "--tiny", "--lora-r", "2"], {"LORA_R": 2, "MAX_SEQ_LENGTH": 512, "LORA_ALPHA": 7}),
    ]
    for argv, wanted in cases:
        namespace, resolved = run(*argv)
        assert {name: namespace[name] for name in wanted} == wanted, argv
        assert {name: resolved.values[name] for name in wanted} == wanted, argv
    assert resolved.origins["LORA_R"] == "flag"
    assert resolved.origins["MAX_SEQ_LENGTH"] == "config"
    assert resolved.origins["MODEL_NAME"] == "file"
    assert resolved.tiny
    assert resolved.default_run_name == "example_tiny"


def test_names_with_values_are_typed_as_their_refusal_shows(run):
    example = refusal(run, train_files=3).split("such as ")[1].rstrip(". ")
    assert run("--train-files", example)[0]["TRAIN_FILES"] == {"path": 1.0, "other": 0.5}
    assert run("--train-files", "one.jsonl,two.jsonl=0.5")[0]["TRAIN_FILES"] == {"one.jsonl": 1.0, "two.jsonl": 0.5}
    assert run(train_files=["one.jsonl"])[0]["TRAIN_FILES"] == {"one.jsonl": 1.0}


def test_keywords_of_main_are_flags_in_either_case(run):
    namespace, resolved = run(learning_rate=1e-3, LORA_R=2, tiny=True)
    assert (namespace["LEARNING_RATE"], namespace["LORA_R"], namespace["MAX_SEQ_LENGTH"]) == (1e-3, 2, 256)
    assert "no argument 'learning_rat'" in refusal(run, learning_rat=1e-3)
    assert "LEARNING_RATE" in refusal(run, learning_rat=1e-3)


def test_a_second_call_starts_from_the_file_again(run):
    namespace, _ = run("--lora-r", "2", "--tiny")
    assert (namespace["LORA_R"], namespace["MAX_SEQ_LENGTH"]) == (2, 256)
    namespace, resolved = run(namespace=namespace)
    assert (namespace["LORA_R"], namespace["MAX_SEQ_LENGTH"]) == (16, 2048)
    assert set(resolved.origins.values()) == {"file"}


def test_sections_of_a_config_file_are_joined_or_dropped(run, config):
    namespace, _ = run(config("lora:\n  r: 32\n  lora_alpha: 64\ntraining:\n  learning_rate: 1e-4\n  max_steps: 5\n"))
    assert (namespace["LORA_R"], namespace["LORA_ALPHA"], namespace["MAX_STEPS"]) == (32, 64, 5)
    assert namespace["LEARNING_RATE"] == 1e-4  # YAML reads 1e-4 as text
    assert isinstance(namespace["LEARNING_RATE"], float)


def test_a_json_config(run, config):
    text = json.dumps({"model_name": "b/c", "learning_rate": 1e-4, "lora": {"r": 32, "lora_alpha": 64}})
    namespace, _ = run(config(text, "run.json"))
    assert (namespace["MODEL_NAME"], namespace["LEARNING_RATE"], namespace["LORA_R"], namespace["LORA_ALPHA"]) == ("b/c", 1e-4, 32, 64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lora_rank: 8\n", ["lora_rank", "LORA_R"]),
        ("lora:\n  alpah: 8\n", ["'alpah' in 'lora'", "no constant"]),
        ("training:\n  learning_rte: 8\n", ["learning_rte", "LEARNING_RATE"]),
        ("lora_r: 8\nlora:\n  r: 9\n", ["LORA_R twice"]),
        ("lora_r: 8\nlora_alpha: 9\nlora_r: 9\n", ["lora_r twice"]),
        ("lora:\n  r: 8\n  r: 8\n", ["r twice"]),
        ("train_files:\n  a.jsonl: 1\n  a.jsonl: 2\n", ["a.jsonl twice"]),
        ("lora:\n  r: 8\nlora:\n  alpha: 9\n", ["lora twice"]),
        ("learning_rate: .inf\n", ["LEARNING_RATE is inf", "a number above 0", "finite"]),
        ("learning_rate: .nan\n", ["LEARNING_RATE is nan"]),
        ("train_files:\n  a.jsonl: .inf\n", ["TRAIN_FILES['a.jsonl'] is inf", "finite"]),
        ("train_files: 3\n", ["TRAIN_FILES is 3, an int; it must be names with values, each", "such as path=1.0"]),
        ("- 1\n- 2\n", ["a list", "names with values"]),
        ("lora_r: [\n", ["neither YAML nor JSON"]),
        ("lora_r: 1.5\n", ["LORA_R is 1.5", "a whole number above 0"]),
        ("lora_r: true\n", ["LORA_R is True, a bool"]),
        ("learning_rate: fast\n", ["LEARNING_RATE is 'fast'", "a number above 0"]),
        ("packing: 1\n", ["PACKING is 1, an int", "true or false"]),
    ],
)
def test_what_a_config_file_may_not_say(run, config, text, said):
    sentence = refusal(run, config(text))
    for part in said:
        assert part in sentence


def test_a_json_config_that_says_a_thing_twice(run, config):
    assert "lora_r twice" in refusal(run, config('{"lora_r": 8, "lora_r": 9}', "run.json"))
    assert "r twice" in refusal(run, config('{"lora": {"r": 8, "r": 9}}', "run.json"))
    assert "LEARNING_RATE is inf" in refusal(run, config('{"learning_rate": Infinity}', "run.json"))


def test_files_whose_names_differ_in_case_only_are_two(run, config):
    namespace, _ = run(config("train_files:\n  a.jsonl: 1\n  A.jsonl: 2\n"))
    assert namespace["TRAIN_FILES"] == {"a.jsonl": 1.0, "A.jsonl": 2.0}


def test_a_config_file_that_is_not_there(run, tmp_path):
    assert f"{tmp_path}/no.yaml cannot be read" in refusal(run, "--config", f"{tmp_path}/no.yaml")


def test_an_empty_config_file_changes_nothing(run, config):
    _, resolved = run(config("# nothing yet\n"))
    assert set(resolved.origins.values()) == {"file"}


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--packing", "false"], "PACKING", False),
        (["--packing=no"], "PACKING", False),
        (["--no-packing"], "PACKING", False),
        (["--no-packing", "--packing"], "PACKING", True),
        (["--packing", "true"], "PACKING", True),
        (["--learning_rate", "3e-4"], "LEARNING_RATE", 3e-4),
        (["--max-steps", "-1"], "MAX_STEPS", -1),
        (["--max-steps=7"], "MAX_STEPS", 7),
        (["--patience", "none"], "PATIENCE", None),
        (["--patience", "5"], "PATIENCE", 5),
        (["--bad-rows", "skip"], "BAD_ROWS", "skip"),
        (["--target-modules", "q_proj, o_proj"], "TARGET_MODULES", ["q_proj", "o_proj"]),
        (["--target-modules", '["k_proj"]'], "TARGET_MODULES", ["k_proj"]),
        (["--train-files", "a.jsonl=0.5,b=c.jsonl=2"], "TRAIN_FILES", {"a.jsonl": 0.5, "b=c.jsonl": 2.0}),
        (["--train-files", '{"a, b.jsonl": 1.5}'], "TRAIN_FILES", {"a, b.jsonl": 1.5}),
    ],
)
def test_flags_of_every_kind(run, argv, name, value):
    namespace, _ = run(*argv)
    assert namespace[name] == value
    assert type(namespace[name]) is type(value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--learning-rte", "1"], ["no flag --learning-rte", "--learning-rate", "--help"]),
        (["--learnig-rate=1"], ["no flag --learnig-rate", "--learning-rate"]),
        (["stray"], ["stray"]),
        (["--train-files", "a.jsonl=1", "--train-files=b.jsonl=1"], ["--train-files is given twice", "with commas: a,b"]),
        (["--lora-r"], ["--lora-r", "expected one argument"]),
        (["--learning-rate", "inf"], ["LEARNING_RATE is 'inf'", "finite"]),
        (["--learning-rate", "nan"], ["LEARNING_RATE is 'nan'"]),
        (["--train-files", "a.jsonl=inf"], ["TRAIN_FILES['a.jsonl'] is inf"]),
        (["--lora-r", "0"], ["LORA_R is '0'", "a whole number above 0"]),
        (["--lora-r", "8.5"], ["LORA_R is '8.5'", "a whole number above 0"]),
        (["--max-seq-length", "2048,"], ["MAX_SEQ_LENGTH is '2048,'", "a whole number above 0"]),
        (["--train-files", "a.jsonl=-1"], ["TRAIN_FILES['a.jsonl'] is -1.0", "a number of 0 or more"]),
        (["--train-files", "a.jsonl=much"], ["TRAIN_FILES['a.jsonl'] is 'much'", "a number of 0 or more"]),
        (["--bad-rows", "ignore"], ["BAD_ROWS is 'ignore'", "one of 'stop', 'skip'"]),
        (["--packing", "perhaps"], ["PACKING is 'perhaps'", "true or false"]),
        (["--patience", "0"], ["PATIENCE is '0'", "a whole number above 0, or none"]),
        (["--max-steps", "none"], ["MAX_STEPS is 'none'", "a whole number"]),
    ],
)
def test_flags_that_are_refused(run, argv, said):
    sentence = refusal(run, *argv)
    for part in said:
        assert part in sentence


def test_a_stray_comma_in_the_file_is_refused_by_name(run):
    sentence = refusal(run, source=RECIPE.replace("= 2048 ", "= 2048, "))
    assert sentence.startswith("MAX_SEQ_LENGTH is (2048,), a tuple; it must be a whole number above 0.")
    assert "write MAX_SEQ_LENGTH = 2048" in sentence


def test_a_negative_weight_in_the_file_is_refused(run):
    sentence = refusal(run, source=RECIPE.replace('{"a.jsonl": 1.0}', '{"a.jsonl": 1.0, "b.jsonl": -0.5}'))
    assert "TRAIN_FILES['b.jsonl'] is -0.5" in sentence
    assert "0 or more" in sentence


def test_a_constant_without_a_type_is_refused(run):
    sentence = refusal(run, source=RECIPE.replace("MAX_STEPS: int = -1", "MAX_STEPS = -1"))
    assert sentence.startswith("MAX_STEPS has no type")


def test_a_key_of_tiny_that_is_no_constant_is_refused(run):
    assert "LORA_RR" in refusal(run, "--tiny", source=RECIPE.replace('"LORA_R": 4', '"LORA_RR": 4'))


def test_whole_numbers_serve_as_numbers_but_not_the_other_way(run):
    namespace, _ = run(learning_rate=1)
    assert namespace["LEARNING_RATE"] == 1.0
    assert "LORA_R is 8.0, a float" in refusal(run, lora_r=8.0)
    assert "LORA_R is True, a bool" in refusal(run, lora_r=True)
    assert "LEARNING_RATE is True, a bool" in refusal(run, learning_rate=True)


@pytest.mark.parametrize("flag", ["--local_rank=1", "--local-rank=1"])
def test_what_launchers_append_is_accepted(run, flag):
    namespace, resolved = run(flag, "--lora-r", "8")
    assert namespace["LORA_R"] == 8
    assert "local_rank" not in resolved.values
    assert set(resolved.values) == set(constants.resolve(dict(namespace), {}).values)


def test_help_shows_every_flag_with_comment_and_value(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "tokens; 100 % of them [2048]" in " ".join(text.split())
    for flag in ("--model-name", "--train-files", "--packing", "--patience", "--tiny", "--config", "--prefetch"):
        assert flag in text


def test_the_table_says_where_values_come_from_and_the_command_can_be_typed_again(run, config):
    _, resolved = run("--tiny", "--lora-alpha", "8", config("max_steps: 3\n"))
    lines = {line.split()[0]: line for line in resolved.show().splitlines()[1:]}
    assert lines["LORA_ALPHA"].endswith("8   <- flag")
    assert lines["MAX_STEPS"].endswith("3   <- config")
    assert lines["LORA_R"].endswith("4   <- tiny")
    assert lines["PACKING"].endswith("True")
    assert resolved.command.startswith("python recipes/example.py --tiny --lora-alpha 8 --config=")


def test_the_file_is_not_changed_through_its_lists_and_mappings(run):
    namespace, resolved = run()
    resolved.values["TRAIN_FILES"]["b.jsonl"] = 9.0
    namespace["TARGET_MODULES"].append("x")
    namespace, _ = run(namespace=namespace)
    assert namespace["TRAIN_FILES"] == {"a.jsonl": 1.0}
    assert namespace["TARGET_MODULES"] == ["q_proj", "v_proj"]


# The recipes themselves


def declared(tree):
    return [node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id.isupper()]


def read_in_functions(tree):
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {n.id for f in functions for n in ast.walk(f) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def unread(source):
    tree = ast.parse(source)
    return [name for name in declared(tree) if name not in read_in_functions(tree)]


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_constant_is_read(path):
    source = path.read_text(encoding="utf-8")
    assert len(declared(ast.parse(source))) >= 5
    assert unread(source) == []
    assert unread(source.replace("\nTINY", "\nNOBODY_READS: int = 1\n\nTINY", 1)) == ["NOBODY_READS"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_key_of_tiny_is_a_constant_of_its_type(path):
    namespace = {"__name__": "example", "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    assert set(namespace["TINY"]) <= set(namespace["__annotations__"])
    resolved = constants.resolve(namespace, {"tiny": True})
    assert {n for n, o in resolved.origins.items() if o == "tiny"} == set(namespace["TINY"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--learning-rte=1", 2)])
def test_help_and_a_typo_load_nothing_heavy(path, flag, code):
    program = f"""
import runpy, sys
sys.argv = [{str(path)!r}, {flag!r}]
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except SystemExit as stopped:
    heavy = [m for m in ("torch", "transformers", "datasets", "unsloth", "trl", "peft", "numpy.random") if m in sys.modules]
    print("ENDED", stopped.code, heavy)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] == f"ENDED {code} []", run.stderr
    if code:
        assert "there is no flag --learning-rte; the nearest is --learning-rate" in run.stderr


# Other names, and words for yes and no

ALIASED = RECIPE + '''
GRADIENT_CHECKPOINTING: Literal["unsloth", "true", "none"] | None = None
EVAL_STRATEGY: Literal["no", "steps"] = "steps"
LOAD_IN_4BIT: bool | None = None
REPORT_TO: list[Literal["tensorboard", "wandb"]] = ["wandb"]
ALIASES = {"USE_QLORA": "LOAD_IN_4BIT", "LORA_RANK": "LORA_R", "TRAIN_FILE": "TRAIN_FILES"}
'''


def test_other_names_are_keys_flags_and_keywords(run, config):
    namespace, _ = run(config("model: {use_qlora: false}\nlora: {rank: 8}\ndata: {train_file: my.jsonl}\n"), source=ALIASED)
    assert (namespace["LOAD_IN_4BIT"], namespace["LORA_R"], namespace["TRAIN_FILES"]) == (False, 8, {"my.jsonl": 1.0})
    for flags, wanted in ((["--use-qlora"], True), (["--no-use-qlora"], False), (["--no-load-in-4bit"], False), ([], None)):
        assert run(*flags, source=ALIASED)[0]["LOAD_IN_4BIT"] is wanted
    assert run("--lora-rank", "2", source=ALIASED)[0]["LORA_R"] == run(lora_rank=2, source=ALIASED)[0]["LORA_R"] == 2
    with pytest.raises(Refusal, match="sets LORA_R twice"):
        run(config("lora_rank: 8\nlora_r: 8\n"), source=ALIASED)
    with pytest.raises(Refusal, match="the nearest is LORA_RANK"):
        run(config("lora_ranks: 8\n"), source=ALIASED)
    with pytest.raises(Refusal, match="--train-files is given twice"):
        run("--train-files", "a.jsonl", "--train-file", "b.jsonl", source=ALIASED)


def test_yes_and_no_are_words_where_there_are_such(run, config):
    for given, wanted in (("true", "true"), ("false", "none"), ("none", "none"), ("unsloth", "unsloth")):
        assert run(config(f"gradient_checkpointing: {given}\n"), source=ALIASED)[0]["GRADIENT_CHECKPOINTING"] == wanted
        assert run("--gradient-checkpointing", given, source=ALIASED)[0]["GRADIENT_CHECKPOINTING"] == wanted
    assert run(gradient_checkpointing=False, source=ALIASED)[0]["GRADIENT_CHECKPOINTING"] == "none"
    assert run(config("eval_strategy: no\nreport_to: none\n"), source=ALIASED)[0]["EVAL_STRATEGY"] == "no"
    assert run(config("report_to: tensorboard\n"), source=ALIASED)[0]["REPORT_TO"] == ["tensorboard"]
    assert run("--report-to", "none", source=ALIASED)[0]["REPORT_TO"] == []


def test_what_is_decided_later_fills_what_is_none(run):
    namespace, resolved = run(source=ALIASED)
    resolved.decide(namespace, "the GPU's row", LOAD_IN_4BIT=True, LORA_R=64)
    assert namespace["LOAD_IN_4BIT"] is resolved.values["LOAD_IN_4BIT"] is True and namespace["LORA_R"] == 16
    assert re.search(r"LOAD_IN_4BIT +True +<- the GPU's row", resolved.show())


def test_what_belongs_to_the_files_rows_goes_where_others_are_named(run):
    source = RECIPE + 'VALIDATION_FILE: str | None = "v.jsonl"\n'
    for given, wanted in ((["--train-files", "b.jsonl"], None), (["--train-files", "a.jsonl"], "v.jsonl"), ([], "v.jsonl"),
                          (["--train-files", "b.jsonl", "--validation-file", "w.jsonl"], "w.jsonl")):  # fmt: skip
        namespace, resolved = run(*given, source=source)
        resolved.beside_others(namespace, "TRAIN_FILES", VALIDATION_FILE=None)
        assert namespace["VALIDATION_FILE"] == resolved.values["VALIDATION_FILE"] == wanted
