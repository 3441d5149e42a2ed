"""Which versions of its libraries the repository was tested with, and whether the ones installed here are those.

requirements.lock is the one place that names the tested versions; nothing heavy is imported to compare them.
"""

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

from common.refusal import Refusal

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SKIP = "RECIPES_SKIP_VERSION_CHECK"

# Those whose behaviour a training run depends on; the rest of the lock may drift without changing a figure.
THAT_MATTER = (
    "torch", "unsloth", "unsloth_zoo", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes",
    "deepspeed", "wandb", "rouge_score",
)  # fmt: skip


def tested(lock=LOCK):
    """{name: version} of every line in the lock, names as `normalised` writes them."""
    try:
        lines = Path(lock).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise Refusal(
            f"{lock} is missing, and it names the tested versions; run from a clone of the repository, installed with `make install`"
        ) from None
    pins = (re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()) for line in lines)
    return {normalised(pin.group(1)): pin.group(2) for pin in pins if pin}


def installed(names=THAT_MATTER):
    """{name: version} of what is installed here, Python included, for run.json; absent packages are left out."""
    found = {name: _installed(name) for name in names}
    return {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}


def check(environ=os.environ, lock=LOCK):
    """Refuse to run on other versions than the tested ones, naming each and the pip lines that install them."""
    if environ.get(SKIP, "0") not in ("", "0"):
        print(f"{SKIP} is set: versions are not compared with {Path(lock).name}", file=sys.stderr)  # programs read stdout
        return
    pins = tested(lock)
    wrong = {name: _installed(name) for name in THAT_MATTER if _public(_installed(name)) != pins[normalised(name)]}
    if not wrong:
        return
    listed = ", ".join(f"{name} {found or 'is not installed'} (tested: {pins[normalised(name)]})" for name, found in wrong.items())
    lines = []
    if "torch" in wrong:  # its CUDA libraries are dependencies that only its own metadata knows
        lines.append(f"pip install torch=={pins['torch']}")
    if others := [name for name in wrong if name != "torch"]:
        lines.append("pip install --no-deps " + " ".join(f"{name}=={pins[normalised(name)]}" for name in others))
    raise Refusal(
        f"installed versions differ from the tested ones: {listed}; install the tested ones with\n"
        + "\n".join(f"    {line}" for line in lines)
        + f"\nor set {SKIP}=1 to run with what is there"
    )


def normalised(name):
    """A package name as indexes compare it: rouge_score, Rouge-Score and rouge.score are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _public(version):
    """A version without its local label: 2.13.0+cpu and 2.13.0+cu126 are builds of the same 2.13.0."""
    return version and version.partition("+")[0]
