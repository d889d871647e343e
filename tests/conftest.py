"""Configuration of every test."""

import pytest
from hypothesis import settings

from tests.faults import FAULTS

# On a busy machine an example is slow, not wrong.
settings.register_profile("chorus", deadline=None)
settings.load_profile("chorus")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Records the kind of each `fault` mark as a property of its test, and rejects unknown kinds."""
    for item in items:
        for mark in item.iter_markers("fault"):
            if len(mark.args) != 1 or mark.args[0] not in FAULTS:
                raise pytest.UsageError(f"{item.nodeid}: unknown fault {mark.args}: see tests/faults.py")
            item.user_properties.append(("fault", mark.args[0]))
