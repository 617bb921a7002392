"""Tests of the kernel engine: skipped, with the reason, where /dev/kvm cannot be used."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from guestmem.engines.kvm import unusable

HERE = Path(__file__).parent


@cache
def reason() -> str:
    return unusable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here but those that say they need no kernel."""
    for item in items:
        if HERE in item.path.parents and not item.get_closest_marker("no_kvm") and reason():
            item.add_marker(pytest.mark.skip(reason=reason()))
