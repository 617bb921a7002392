"""Before exit_retry is taken, every page table of the guest is found, in each form of x86 paging."""

from __future__ import annotations

import ctypes
import random
import struct

import pytest

from guestmem.engines.kvm import Host
from guestmem.engines.kvm.safety import _emulated, _tables
from guestmem.memslots import Slot

pytestmark = pytest.mark.no_kvm

PG, PE, PSE, PAE, LA57, LMA = 1 << 31, 1, 1 << 4, 1 << 5, 1 << 12, 1 << 10
FRAMES = 64
FORMS = {
    "4 levels": (PAE, LMA, 4, "<Q", 512),
    "5 levels": (PAE | LA57, LMA, 5, "<Q", 512),
    "PAE": (PAE, 0, 3, "<Q", 4),
    "32 bits": (0, 0, 2, "<I", 1024),
    "32 bits, PSE": (PSE, 0, 2, "<I", 1024),
}


def sregs(cr0: int, cr3: int, cr4: int, efer: int, *, cpl: int = 3) -> bytes:
    made = bytearray(0x138)
    struct.pack_into("<Q", made, 224, cr0)
    struct.pack_into("<2Q", made, 240, cr3, cr4)
    struct.pack_into("<Q", made, 264, efer)
    made[24 * 5 + 16] = cpl
    return bytes(made)


class Memory:
    """Guest frames in two slots with other memory between them; frame 0 and the last one are in none."""

    def __init__(self) -> None:
        self.bytes = ctypes.create_string_buffer(FRAMES << 12)
        address = ctypes.addressof(self.bytes)
        half = FRAMES // 2
        self.slots = [Slot(0, 7, 1, half - 1, address + 0x1000), Slot(0, 3, half, half - 1, address + (half << 12))]

    def entry(self, frame: int, form: str, index: int, value: int, begin: int = 0) -> None:
        struct.pack_into(form, self.bytes, (frame << 12) + begin + struct.calcsize(form) * index, value)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_a_random_tree(form: str, memory: Memory, rng: random.Random) -> None:
    cr4, efer, levels, entry, root_entries = FORMS[form]
    for _ in range(20):
        ctypes.memset(memory.bytes, 0, FRAMES << 12)
        frames = list(range(1, FRAMES - 1))
        rng.shuffle(frames)
        begin = 32 * rng.randrange(128) if form == "PAE" else 0
        root = frames.pop()
        found, last = {root}, [(root, levels)]
        while frames and last:
            table, level = rng.choice(last)
            is_root = table == root
            count = root_entries if is_root else 4096 // struct.calcsize(entry)
            index, below = rng.randrange(count), frames.pop()
            value = below << 12 | 0x67
            kind = rng.choice(("table", "table", "absent", "large"))
            place = begin if is_root else 0
            if struct.unpack_from(entry, memory.bytes, (table << 12) + place + struct.calcsize(entry) * index)[0]:
                continue
            if kind == "absent":
                value &= ~1
            elif kind == "large" and level > 1 and not (is_root and levels > 2) and form != "32 bits":
                value |= 0x80
            elif level > 1:
                found.add(below)
                last.append((below, level - 1))
            memory.entry(table, entry, index, value, place)
        state = sregs(PG | PE, root << 12 | begin, cr4, efer)
        assert sorted(_tables(memory.slots, state)) == sorted(found)


def test_without_paging_there_are_none(memory: Memory) -> None:
    assert list(_tables(memory.slots, sregs(PE, 0x5000, 0, 0))) == []


def test_a_root_in_no_slot_and_a_table_that_names_itself(memory: Memory) -> None:
    assert list(_tables(memory.slots, sregs(PG | PE, (FRAMES + 9) << 12, PAE, LMA))) == [FRAMES + 9]
    memory.entry(5, "<Q", 0, 5 << 12 | 0x67)
    assert list(_tables(memory.slots, sregs(PG | PE, 5 << 12 | 0x18, PAE, LMA))) == [5]


@pytest.mark.parametrize(
    ("module", "unrestricted", "cr0", "cpl", "why"),
    [
        ("kvm_pvm", True, 0, 0, "real mode"),
        ("kvm_pvm", True, PE, 3, "without paging"),
        ("kvm_pvm", True, PE | PG, 0, "kernel mode"),
        ("kvm_pvm", True, PE | PG, 3, ""),
        ("kvm_intel", True, 0, 0, ""),
        ("kvm_intel", False, 0, 0, "real mode"),
        ("kvm_intel", False, PE | PG, 0, ""),
        ("kvm_amd", True, 0, 0, ""),
    ],
)
def test_guests_that_the_host_emulates_throughout(
    module: str, unrestricted: bool, cr0: int, cpl: int, why: str
) -> None:
    host = Host("6.18", module, tdp=False, tdp_mmu=False, mmio_caching=False, unrestricted_guest=unrestricted)
    said = _emulated(sregs(cr0, 0, 0, 0, cpl=cpl), host)
    assert bool(said) == bool(why)
    assert why in said
