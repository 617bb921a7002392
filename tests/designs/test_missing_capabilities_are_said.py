"""A design says what an engine lacks before it touches it; names that are none are refused with those that are."""

from __future__ import annotations

import pytest

from guestmem.designs import BROKEN, DESIGNS, Design, find
from guestmem.engines import Capability, Counts, Engine
from guestmem.errors import CapabilityError, UsageError


class Stub:
    """An engine that has nothing but a name and what it says it can do; any call of it fails."""

    name = "stub"
    vcpus = 1

    def __init__(self, capabilities: Capability) -> None:
        self.capabilities, self.counts = capabilities, Counts()


def engine(capabilities: Capability) -> Engine:
    return Stub(capabilities)  # type: ignore[return-value]  # deliberately not one


EVERYTHING = ~Capability(0)


@pytest.mark.parametrize("design", DESIGNS, ids=[design.name for design in DESIGNS])
def test_each_missing_capability_is_named(design: Design) -> None:
    assert design.needs
    for lacking in design.needs:
        with pytest.raises(CapabilityError, match=f"design {design.name}: engine stub cannot {lacking.name}"):
            design.prepare(engine(EVERYTHING & ~lacking))
    with pytest.raises(CapabilityError, match=f"design {design.name}: engine stub cannot "):
        design.prepare(engine(Capability(0)))


def test_designs_need_no_more_than_they_say() -> None:
    assert find("sequential").needs == Capability.SET_MEMORY_REGION
    assert find("atomic").needs == find("batch").needs == find(BROKEN).needs == Capability.UPDATE
    assert Capability.PAUSE in find("pause").needs & find("pause_if_overlap").needs


def test_unknown_names_are_refused_with_the_known() -> None:
    with pytest.raises(UsageError, match=r"design: 'Atomic' is not one of sequential, .*, atomic, "):
        find("Atomic")


def test_exactly_one_design_is_broken_and_each_has_a_file() -> None:
    assert [design.name for design in DESIGNS if design.broken] == [BROKEN]
    assert len({design.name for design in DESIGNS}) == len(DESIGNS)
    for design in DESIGNS:
        assert design.module.__name__.endswith(f"designs.{design.name}")
        assert {"NEEDS", "apply", "prepare"} <= set(design.module.__all__)
