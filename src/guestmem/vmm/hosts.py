"""Host memory for regions of which nobody said where it is: made up, the same for the same region of two recordings."""

from __future__ import annotations

__all__ = ["Hosts"]

_BASE = 0x7F00_0000_0000
_ALIGN = 1 << 21


class Hosts:
    """Hands out addresses, as far apart that no two pieces could be taken for one.

    ``begin`` starts another recording: what has the name, size and count of before gets the address of before.

    >>> hosts = Hosts()
    >>> hosts.begin(); first = hosts.take("pc.ram", 0x1000), hosts.take("pc.ram", 0x1000)
    >>> hosts.begin(); first == (hosts.take("pc.ram", 0x1000), hosts.take("pc.ram", 0x1000))
    True
    """

    def __init__(self) -> None:
        self._next = _BASE
        self._made: dict[tuple[str, int, int], int] = {}
        self._count: dict[tuple[str, int], int] = {}

    def begin(self) -> None:
        """Another recording."""
        self._count = {}

    def take(self, name: str, size: int) -> int:
        """An address for ``size`` bytes of region ``name``."""
        count = self._count[name, size] = self._count.get((name, size), 0) + 1
        key = name, size, count
        if key not in self._made:
            self._made[key], self._next = self._next, self._next + (size // _ALIGN + 2) * _ALIGN
        return self._made[key]
