"""What all tests share: seeds that are printed on failure, sizes by form, and skips that say why."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator

import pytest

from slices import WHOLE

DEFAULT_SEED = 20220923
INTERPRETED = os.environ.get("GUESTMEM_INTERPRET") == "1"


def _seed() -> int:
    text = os.environ.get("GUESTMEM_SEED", str(DEFAULT_SEED))
    try:
        return int(text)
    except ValueError:
        raise pytest.UsageError(f"GUESTMEM_SEED: {text!r} is not a number") from None


def pytest_report_header() -> str:
    form = "interpreted" if INTERPRETED else "compiled"
    return f"guestmem: {form} form, GUESTMEM_SEED={_seed()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not WHOLE:
        left_out = [item for item in items if item.get_closest_marker("night")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("night")]
    if INTERPRETED:
        skip = pytest.mark.skip(reason="needs the compiled form")
        for item in items:
            if item.get_closest_marker("compiled_only"):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """No collection during the tests is to look through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the generator's result is the report
    report = yield
    if report is not None and report.failed and "seed" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"run again with GUESTMEM_SEED={_seed()}"))
    return report


@pytest.fixture
def seed() -> int:
    """The seed of a random test: fixed, unless GUESTMEM_SEED says otherwise; printed when the test fails."""
    return _seed()


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Random numbers of the test's seed."""
    return random.Random(seed)


@pytest.fixture(scope="session")
def interpreted() -> bool:
    """Whether the suite runs in the interpreted form (GUESTMEM_INTERPRET=1)."""
    return INTERPRETED


@pytest.fixture(scope="session")
def sized() -> Callable[[int, int], int]:
    """``sized(a, b)``: ``a`` in the compiled form, ``b`` in the interpreted one, which is some 100 times slower."""
    return lambda compiled, interpreted: interpreted if INTERPRETED else compiled
