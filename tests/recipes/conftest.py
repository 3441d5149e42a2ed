"""What the tests of the recipes share: a process that has imported what they import."""

import pytest
from warm_start import WarmStart


@pytest.fixture(scope="session")
def warm():
    """Starts a recipe within a second; not for the first run of its kind, see warm_start.py."""
    with WarmStart() as started:
        yield started
