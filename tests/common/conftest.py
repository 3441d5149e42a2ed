"""What several tests of the durable modules share: the warnings said, a store in a directory, a store over HTTP."""

from functools import partial

import pytest
from object_store import ObjectStore, environment

from common import log, storage
from common.buckets import Patience

HASTY = Patience(attempts=2, first_wait=0.01, longest_wait=0.02)  # a store that is a directory does not recover


@pytest.fixture
def said():
    """The warnings of the test."""
    log.close()
    yield log.warnings
    log.close()


@pytest.fixture
def uri(tmp_path, monkeypatch):
    """A store in a directory."""
    monkeypatch.setattr(storage, "open_store", partial(storage.open_store, patience=HASTY))
    return f"file://{tmp_path}/store"


@pytest.fixture(scope="module")
def server():
    """A store over HTTP, with a proxy in front of it that can break requests."""
    with ObjectStore() as running, environment(**running.environment):
        yield running
