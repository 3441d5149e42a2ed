"""Caches: where they lie, and how a directory is built once, whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path

from common import child_process


def root():
    """Where caches live: $RECIPES_CACHE, else .cache/ of the repository."""
    return Path(os.environ.get("RECIPES_CACHE") or Path(__file__).resolve().parents[1] / ".cache")


def build_once(path, build):
    """(True, value of `build(directory)`) where `path` had to be built, (False, None) where it is there already.

    One process builds, in a child of its own; others that come meanwhile wait for its lock, without a process group that
    could time out. Nothing half-built is ever found: the directory gets its name last. What a killed builder left is
    removed by the next one.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_dir():
            return False, None
        for killed in path.parent.glob(f".building-{path.name}-*"):  # whoever holds the lock is alone
            shutil.rmtree(killed, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix=f".building-{path.name}-", dir=path.parent))
        try:
            value = child_process.run(build, directory)
            directory.rename(path)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return True, value
