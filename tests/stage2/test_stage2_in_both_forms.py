"""Random operations leave the same words, bit by bit, in the compiled and in the interpreted form."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.errors import Stage2Error
from guestmem.explore import load
from guestmem.stage2.table import DISCIPLINES

IPA_BITS = 20


class Room:
    """One copy of the package: a small table in it."""

    def __init__(self, find: Callable[[str], Any], kind: str, discipline: str) -> None:
        geometry, annotations = find("geometry").Geometry, find("format").Annotations.LINUX_7_1
        if kind == "arm":
            self.format = find("arm").ArmFormat(geometry(12, 3, 1, 22), 48, annotations)
        else:
            self.format = find("npt").NptFormat(geometry(12, 3, 0, 24), 48, annotations)
        self.pool = find("pool").Pool(100, base=0x1000_0000)
        self.rights = find("descriptor").Rights
        self.table = find("table").PageTable(self.format, self.pool, discipline=discipline, walkers=2, cache=8)

    def cells(self) -> list[bytes]:
        arrays = [self.pool.words, self.pool.pages, self.table.mmu, self.table.shape, *self.table.desks]
        return [bytes(memoryview(getattr(each, "cells", each))) for each in arrays]

    def step(self, rng: random.Random) -> object:
        """One random operation; what it returned or raised."""
        table, shared, walker = self.table, rng.random() < 0.6, rng.randrange(2)
        shift = rng.choice([12, 12, 15, 18])
        ipa, size = rng.getrandbits(IPA_BITS) >> shift << shift, rng.randrange(1, 4) << shift
        rights = self.rights(rng.choice([1, 3, 15]))
        level = rng.choice([None, 2, 3])
        kind = rng.randrange(10)
        try:
            match kind:
                case 0 | 1 | 2:
                    return table.map(ipa, size, 0x4000_0000 + ipa, rights, level=level, shared=shared, walker=walker)
                case 3:
                    return table.unmap(ipa, size)
                case 4:
                    return table.write_protect(ipa, size)
                case 5:
                    return table.relax(ipa, rights, shared=shared, walker=walker)
                case 6:
                    return table.young(ipa, size, clear=rng.random() < 0.5), table.lookup(ipa)
                case 7:
                    return table.split(ipa, size, level=level, chunk=2)
                case 8:
                    return table.collapse(ipa, size, level=level, shared=shared, walker=walker), table.reclaim()
                case _:
                    return table.annotate(ipa, min(size, 0x8000), self.format.owned(2, 3))
        except Stage2Error as error:
            return str(error)


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("kind", ["arm", "npt"])
def test_same_words(kind: str, discipline: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    program = rng.getrandbits(64)
    with load() as twin:
        real = Room(lambda name: importlib.import_module(f"guestmem.stage2.{name}"), kind, discipline)
        copy = Room(lambda name: twin.room(f"stage2.{name}"), kind, discipline)
        assert type(copy.table) is not type(real.table)
        first, second = random.Random(program), random.Random(program)
        for step in range(sized(300, 150)):
            done, twice = real.step(first), copy.step(second)
            assert str(done) == str(twice), step
            assert real.cells() == copy.cells(), step
        real.table.check()
        copy.table.check()
