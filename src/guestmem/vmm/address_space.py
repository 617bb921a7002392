"""An address space: a region as somebody's memory, its flat view, and who is told of changes."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from ..errors import UsageError
from .flatview import FlatView
from .listener import Listener

if TYPE_CHECKING:
    from .map import MemoryMap
    from .region import MemoryRegion

__all__ = ["AddressSpace"]


class AddressSpace:
    """What sees a region as its memory, from address 0 on: CPUs, SMM, I/O ports, a device's DMA."""

    __slots__ = ("listeners", "map", "name", "root", "view")

    def __init__(self, memory_map: MemoryMap, name: str, root: MemoryRegion) -> None:
        self.map, self.name, self.root = memory_map, name, root
        self.view = FlatView(None, [])
        """The flat view; another object after each change."""
        self.listeners: list[Listener] = []
        """By ascending priority; equal ones in order of registration."""

    def register(self, listener: Listener) -> None:
        """Tell ``listener`` of all there is (``begin``, ranges, ``commit``), then of each change.

        If it raises it is not registered.
        """
        if not isinstance(listener, Listener):
            raise UsageError(f"listener: {listener!r} is not derived from Listener")
        self.map.outside_a_transaction("register a listener")
        insort(self.listeners, listener, key=lambda each: each.priority)
        insort(self.map.listeners, (listener, self), key=lambda pair: pair[0].priority)
        try:
            listener.begin(self)
            if self.map.global_log:
                listener.log_global_start(self)
            for each in self.view:
                listener.region_add(self, each)
                if each.dirty_log_mask:
                    listener.log_start(self, each, 0, each.dirty_log_mask)
            listener.commit(self)
        except BaseException:
            self._forget(listener)
            raise

    def unregister(self, listener: Listener) -> None:
        """Tell ``listener`` that all is gone, and nothing more."""
        self.map.outside_a_transaction("unregister a listener")
        if listener not in self.listeners:
            raise UsageError(f"listener: {listener!r} is not registered with {self.name}")
        listener.begin(self)
        for each in self.view:
            if each.dirty_log_mask:
                listener.log_stop(self, each, each.dirty_log_mask, 0)
            listener.region_del(self, each)
        listener.commit(self)
        self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        self.listeners.remove(listener)
        self.map.listeners.remove((listener, self))

    def __repr__(self) -> str:
        return f"AddressSpace {self.name} of {self.root.name}: {len(self.view)} ranges"
