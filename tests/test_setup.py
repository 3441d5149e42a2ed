"""The set-up agrees with itself: locks, environment, Makefile, README, rooms and floors."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from common import versions
from common.versions import normalised

ROOT = Path(__file__).resolve().parent.parent
LOCK = versions.tested(ROOT / "requirements.lock")
GPU_LOCK = versions.tested(ROOT / "requirements-gpu.lock")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
FLOORS = [
    [name.strip(" ()\n") for name in floor.split(":")]
    for floor in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]["layers"]
]
FACTS, DATA = FLOORS[-1], FLOORS[-2]
ROOMS = ("recipes", "prepare", "eval", "samples", "bench", "tests")

# Asked for by some package's metadata and left out on purpose: a CPU run imports none of them.
LEFT_OUT = {"torchvision", "xformers", "triton", "torchao", "diffusers"}
# Unsloth asks for a certifi one day newer than PyPI's newest; the one pinned serves.
OLDER = {("unsloth", "certifi"), ("unsloth-zoo", "certifi")}


# locks and environment


def test_the_environment_is_the_lock():
    wrong = {}
    for name, version in LOCK.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found != version:
            wrong[name] = f"{found}, locked {version}"
    assert not wrong, f"`make install` mends this: {wrong}"


def test_every_requirement_is_locked_or_left_out_on_purpose():
    """`pip check`, in its own words, knows of nothing but what the lock's head and this file explain."""
    said = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout.splitlines()
    unexplained = []
    for line in said:
        missing = re.fullmatch(r"(\S+) \S+ requires (\S+), which is not installed\.", line)
        other = re.fullmatch(r"(\S+) \S+ has requirement ([\w.-]+?)(?=[<>=!~\[ ;]).*, but you have .*", line)
        if missing and normalised(missing.group(1)) in LOCK:
            if normalised(missing.group(2)) not in LEFT_OUT:
                unexplained.append(line)
        elif other and normalised(other.group(1)) in LOCK and (normalised(other.group(1)), normalised(other.group(2))) not in OLDER:
            unexplained.append(line)
    assert not unexplained, "\n".join(unexplained)


def test_the_lock_pins_exactly_and_in_order():
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len(LOCK) == len(lines), "a package stands on two lines"
    assert lines == sorted(lines, key=str.lower)


def test_what_a_gpu_needs_fits_the_locked_torch():
    assert set(GPU_LOCK) <= LEFT_OUT
    minor = LOCK["torch"].split(".")[1]
    assert GPU_LOCK["torchvision"].split(".")[:2] == ["0", str(int(minor) + 15)], "torchvision 0.N goes with torch 2.(N - 15)"


def test_environment_yml_agrees_with_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pins = dict(line.split("=", 1) for line in environment["dependencies"] if "=" in line)
    assert environment["name"] == "recipes"
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    low, high = (tuple(map(int, part.split("."))) for part in re.fullmatch(r">=([\d.]+),<([\d.]+)", supported).groups())
    assert low <= tuple(map(int, pins.pop("python").split("."))) < high
    assert f"{low} <= sys.version_info < {high}" in MAKEFILE
    assert f"FOUND := cu{pins.pop('cuda-version').replace('.', '')}\n" in MAKEFILE
    assert {name: LOCK.get(normalised(name)) for name in pins} == pins


# make


def make(*arguments, path="", directory=ROOT, **environ):
    """Run make as a user would who is in no conda environment; `path` comes first on the PATH."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CONDA_PREFIX", "TORCH_BUILD")
    ours = {name: value for name, value in os.environ.items() if name not in outer}
    ours["PATH"] = f"{path}:{ours['PATH']}" if path else ours["PATH"]
    return subprocess.run(["make", "-s", *arguments], cwd=directory, env=ours | environ, capture_output=True, text=True)


def test_make_alone_lists_every_target():
    listed = make()
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()[1:]} == TARGETS


@pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
def test_every_make_target_a_document_names_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"^\s*(?:\$ )?make ([a-z]+)|`make ([a-z]+)", text, re.MULTILINE)
    assert {one or other for one, other in named} <= TARGETS


@pytest.mark.parametrize(
    ("driver", "build"),
    [("580.95.05", "cu130"), ("570.124.06", "cu126"), ("550.54.15", "cu126"), ("525.60.13", "cu126")],
)
def test_the_driver_decides_the_build_of_torch(tmp_path, driver, build):
    planned = make("-n", "-W", "requirements.lock", "install", path=fake_nvidia_smi(tmp_path, driver))
    assert planned.returncode == 0, planned.stderr
    assert f'--extra-index-url https://download.pytorch.org/whl/{build} "torch=={LOCK["torch"]}+{build}"' in planned.stdout
    assert f"--index-url https://download.pytorch.org/whl/{build} xformers=={GPU_LOCK['xformers']}" in planned.stdout
    assert f".installed-{build}" in planned.stdout


def test_without_a_gpu_torch_is_pypis():
    planned = make("-n", "-W", "requirements.lock", "install", "TORCH_BUILD=pypi")
    assert f'-c requirements.lock "torch=={LOCK["torch"]}"' in planned.stdout
    assert "download.pytorch.org" not in planned.stdout
    assert "xformers" not in planned.stdout


def test_a_driver_that_is_too_old_is_a_sentence(tmp_path):
    said = make("install", path=fake_nvidia_smi(tmp_path, "470.82.01"))
    assert said.returncode == 2
    assert "the NVIDIA driver here is 470" in said.stderr
    assert "525 or newer" in said.stderr


@pytest.fixture
def bare(tmp_path):
    """What make needs of a clone, nothing installed."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("Makefile", "requirements.lock", "requirements-gpu.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    return clone


def test_an_unfit_python_is_a_sentence(tmp_path, bare):
    """A python that says 3.9 and fails the range check as 3.9 would."""
    (tmp_path / "python3.9").write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2"\nexit 1\n')
    (tmp_path / "python3.9").chmod(0o755)
    said = make("install", f"PYTHON={tmp_path}/python3.9", "TORCH_BUILD=pypi", directory=bare)
    assert said.returncode == 2
    assert "is Python 3.9.2; the pinned packages need Python 3.11, 3.12 or 3.13" in said.stderr
    assert not (bare / ".venv").exists()


def test_a_missing_compiler_is_a_sentence(tmp_path, bare):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare / ".venv"], check=True)
    for name in ("bash", "sh", "make", "sed", "rm", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    said = make("install", "TORCH_BUILD=pypi", directory=bare, PATH=str(tmp_path), CXX="")
    assert said.returncode == 2
    assert "error: no C++ compiler found" in said.stderr


def test_a_step_that_fails_shows_why_and_is_not_taken_for_done(bare):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare / ".venv"], check=True)
    said = make("install", "TORCH_BUILD=pypi", directory=bare)
    assert said.returncode == 2
    assert "No module named pip" in said.stderr
    assert f"failed: installing torch {LOCK['torch']}" in said.stderr
    assert not list((bare / ".venv").glob(".installed-*"))


def test_in_the_conda_environment_recipes_packages_go_there(tmp_path):
    planned = make("-n", "install", "TORCH_BUILD=pypi", CONDA_PREFIX=str(tmp_path / "recipes"))
    assert f"{tmp_path}/recipes/bin/python -m pip install" in planned.stdout
    assert ".venv" not in planned.stdout
    elsewhere = make("-n", "-W", "requirements.lock", "install", "TORCH_BUILD=pypi", CONDA_PREFIX=str(tmp_path / "other"))
    assert ".venv/bin/python -m pip install" in elsewhere.stdout


def test_train_without_a_recipe_names_the_recipes():
    done = ("-o", ".venv/bin/python", "-o", ".venv/.installed-pypi")  # the set-up is not what is tested
    said = make("train", "RECIPE=no_such", "TORCH_BUILD=pypi", *done)
    assert said.returncode == 2
    assert "RECIPE='no_such' is no recipe; choose one of:" in said.stderr
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert recipe.stem in said.stderr


def fake_nvidia_smi(directory, driver):
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho {driver}\n")
    program.chmod(0o755)
    return str(directory)


# rooms and floors


def imported(path):
    """[(first name, whole name)] of everything a file imports, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module)
    return [(name.partition(".")[0], name) for name in found]


def test_rooms_import_only_common():
    """A recipe imports no other script; prepare/ and eval/ may share a module with their own room; common/ imports no room."""
    stems = {room: {path.stem for path in (ROOT / room).glob("*.py")} for room in ROOMS[:4]}
    wrong = []
    for room in ("common", "recipes", "prepare", "eval", "samples"):
        of_others = {stem for other, names in stems.items() if other != room or room == "recipes" for stem in names}
        for path in (ROOT / room).rglob("*.py"):
            wrong += [f"{path.relative_to(ROOT)}: {name}" for first, name in imported(path) if first in ROOMS or first in of_others]
    assert not wrong


def test_every_module_of_common_stands_on_a_floor():
    """`make lint` says the same; here it needs no cache and names the module."""
    there = {path.stem for path in (ROOT / "common").glob("*.py")} - {"__init__"}
    assert there - {name for floor in FLOORS for name in floor} == set()


def test_facts_never_import_torch():
    heavy = {"torch", "transformers", "unsloth", "trl", "peft", "deepspeed", "accelerate", "datasets"}
    assert {"manifest", "resume", "remote_runs", "storage", "signals", "zero"} <= set(FACTS)
    files = [ROOT / "common" / f"{name}.py" for name in FACTS]
    wrong = [f"{path.name}: {name}" for path in files if path.exists() for first, name in imported(path) if first in heavy]
    assert not wrong


def test_importing_facts_and_data_loads_no_torch():
    """One process imports them all; where that loads torch or a store's client, the first module after which it is loaded is named."""
    names = [name for name in (*FACTS, *DATA) if (ROOT / "common" / f"{name}.py").exists()]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module('common.' + name)\n"
        "    heavy = {'torch', 'transformers', 'gcsfs', 's3fs', 'aiohttp'} & set(sys.modules)\n"
        "    assert not heavy, f'importing common.{name} loads {heavy}'\n"
    )
    run = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
