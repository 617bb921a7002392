"""In each state of each generation, host, guest, pin and hole find what the table of docs/gmem.md says."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from gmem_files import PAGE, whole
from guestmem.errors import GuestMemfdError, MemoryFaultError, SigbusError
from guestmem.gmem import GuestMemfd, VmMemoryAttributes
from guestmem.gmem.generations import GENERATIONS
from guestmem.memslots.slot import Slot

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "gmem.md").read_text()


class Row(NamedTuple):
    generation: str
    state: str
    host: str
    private: str
    shared: str
    pin: str
    hole: str


ROWS = [
    Row(*(cell.strip() for cell in line.strip("|").split("|")))
    for line in TEXT.splitlines()
    if re.match(rf"\| ({'|'.join(GENERATIONS)}) \|", line)
]


def in_state(row: Row) -> tuple[GuestMemfd, Slot]:
    """A file of four pages whose page 1 is in the row's state."""
    attributes = VmMemoryAttributes() if row.generation == "vm-attributes" else None
    flags = 1 if row.generation == "vm-attributes" and row.state == "private" else 3
    file = GuestMemfd(4 * PAGE, flags, states=row.generation, attributes=attributes)
    slot = whole(file)
    if attributes is not None and row.state == "private":
        attributes.set(0x100 * PAGE, 4 * PAGE, 8)
    elif row.state in {"private", "guest"}:
        file.convert(PAGE, PAGE, private=True)
    elif row.state == "none":
        file.pin(PAGE, PAGE)  # as long as the file lives
        file.convert(PAGE, PAGE, private=True)
    assert file.state(1) == row.state
    return file, slot


def guest(file: GuestMemfd, slot: Slot, *, private: bool) -> str:
    try:
        page = file.guest_fault(slot, 0x101, private=private).page
    except MemoryFaultError as error:
        assert (error.flags, error.gpa, error.size, error.errno) == (8 * private, 0x101 * PAGE, PAGE, errno.EFAULT)  # noqa: PT017 - or none
        return "MEMORY_FAULT"
    assert page == 1
    return "the page"


def test_the_table_has_every_state() -> None:
    assert [(row.generation, row.state) for row in ROWS] == [
        (name, state)
        for name in ("attributes", "shareability", "mappability", "vm-attributes")
        for state in GENERATIONS[name].NAMES.values()
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.generation}-{row.state}")
def test_each_row(row: Row) -> None:
    file, slot = in_state(row)
    with file.mmap() as host:
        try:
            touched = "the page" if host[PAGE] == 0 else "other bytes"
        except SigbusError as error:
            assert (error.page, error.state) == (1, row.state)  # noqa: PT017 - the row says whether
            touched = "SIGBUS"
        assert touched == row.host
        assert guest(file, slot, private=True) == row.private
        assert guest(file, slot, private=False) == row.shared
        try:
            file.pin(PAGE, PAGE).close()
            pinned = "taken"
        except GuestMemfdError as error:
            pinned = errno.errorcode[error.errno or 0]
        assert pinned == row.pin
        file.check()
        file.punch(PAGE, PAGE)
        assert file.state(1) == row.hole
        file.check()
    file.close()
