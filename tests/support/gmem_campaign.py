"""Random operations on a guest_memfd beside a dict per page; as a command: ``gmem_campaign.py COUNT SEED``."""

from __future__ import annotations

import random
from contextlib import suppress

from campaign_arguments import campaign_arguments
from guestmem.errors import GuestMemfdError, MemoryFaultError, SigbusError
from guestmem.gmem import GuestMemfd, Pin
from guestmem.memslots.slot import Slot

__all__ = ["campaign"]

PAGE, PAGES = 4096, 24


class Oracle:
    """Every page: whether it is private, and its first byte; the pins, each with the bytes that it sees."""

    def __init__(self) -> None:
        self.private = dict.fromkeys(range(PAGES), False)
        self.byte = dict.fromkeys(range(PAGES), 0)
        self.pins: list[tuple[Pin, dict[int, int | None]]] = []

    def pinned(self, page: int) -> bool:
        """Whether a pin holds the page that the file has now."""
        return any(pages.get(page, 0) is None for _, pages in self.pins)


def campaign(count: int, rng: random.Random, generation: str = "attributes") -> dict[str, int]:
    """``count`` operations, each compared; returns how many there were of each kind."""
    file = GuestMemfd(PAGES * PAGE, 3, states=generation)
    slot = Slot(0, 1, 0x100, PAGES, 0)
    file.bind(slot, 0)
    host, oracle, made = file.mmap(), Oracle(), dict[str, int]()
    for number in range(count):
        kind = rng.choice(("convert", "convert", "host", "host", "guest", "guest", "pin", "unpin", "punch"))
        first = rng.randrange(PAGES)
        pages = range(first, min(PAGES, first + rng.choice((1, 1, 2, 5, PAGES))))
        outcome = _one(file, slot, host, oracle, kind, pages, rng)
        made[outcome] = made.get(outcome, 0) + 1
        if number % 97 == 0:
            file.check()
            assert [file.state(page) == "private" for page in range(PAGES)] == list(oracle.private.values())
    for pin, _ in oracle.pins:
        pin.close()
    host.close()
    file.check()
    file.close()
    return made


def _one(file, slot, host, oracle, kind, pages, rng) -> str:  # type: ignore[no-untyped-def] # noqa: ANN001
    first, value = pages.start, rng.randrange(1, 256)
    offset, size = first * PAGE, len(pages) * PAGE
    if kind == "convert":
        private = rng.random() < 0.5
        stuck = [page for page in pages if oracle.pinned(page)]
        refused = private and stuck and not all(oracle.private[page] for page in pages)
        try:
            file.convert(offset, size, private=private)
        except GuestMemfdError as error:
            assert refused, f"{error}: nothing is pinned in {pages}"  # noqa: PT017 - drawn
            assert error.error_offset == stuck[0] * PAGE  # noqa: PT017
            return "convert, refused"
        assert not refused, f"{pages} was converted over the pins of {stuck}"
        oracle.private.update(dict.fromkeys(pages, private))
        return "convert"
    if kind == "host":
        try:
            seen = host[offset]
        except SigbusError as error:
            assert (error.page, oracle.private[first]) == (first, True)  # noqa: PT017
            return "host, SIGBUS"
        assert (seen, oracle.private[first]) == (oracle.byte[first], False)
        host[offset] = oracle.byte[first] = value
        return "host"
    if kind == "guest":
        private = rng.random() < 0.5
        try:
            page = file.guest_fault(slot, 0x100 + first, private=private).page
        except MemoryFaultError:
            assert private != oracle.private[first]
            return "guest, MEMORY_FAULT"
        assert (page, private) == (first, oracle.private[first])
        assert file.inode.backing.read(offset, 1)[0] == oracle.byte[first]
        file.inode.backing.write(offset, bytes([value]))
        oracle.byte[first] = value
        return "guest"
    if kind == "pin" and len(oracle.pins) < 4:
        with suppress(GuestMemfdError):
            oracle.pins.append((file.pin(offset, size), dict.fromkeys(pages)))
            assert not any(oracle.private[page] for page in pages)
            return "pin"
        assert any(oracle.private[page] for page in pages)
        return "pin, refused"
    if kind == "unpin" and oracle.pins:
        pin, held = oracle.pins.pop(rng.randrange(len(oracle.pins)))
        for page, byte in held.items():
            assert pin.read(page * PAGE, 1)[0] == (oracle.byte[page] if byte is None else byte)
        pin.close()
        return "unpin"
    if kind == "punch":
        file.punch(offset, size)
        for _, held in oracle.pins:
            for page in pages:
                if page in held and held[page] is None:
                    held[page] = oracle.byte[page]
        oracle.byte.update(dict.fromkeys(pages, 0))
        assert not any(file.inode.folio(page) for page in pages), "the pages are there still"
        return "punch"
    return "nothing"


if __name__ == "__main__":
    given = campaign_arguments(__doc__, count=None, seed=None)
    operations, seed = given.count, given.seed
    found = dict[str, int]()
    for generation_ in ("attributes", "shareability"):
        for kind_, times in campaign(operations // 2, random.Random(seed), generation_).items():
            found[kind_] = found.get(kind_, 0) + times
    print(f"{sum(found.values())} operations, seed {seed}: {found}")  # noqa: T201 - a command
