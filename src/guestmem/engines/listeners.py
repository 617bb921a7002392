"""Other maps of guest memory beside the vCPUs': vhost's, VFIO's. Told of changes at their instant, or late.

A device goes by a map of its own. One whose accesses can be made to wait for a moment (vhost takes the mutexes of its
virtqueues to exchange its table) takes part in the instant of an update in phases: its accesses wait from before the
slots are published until its map says the same. Any other, and any with a design that is no update in phases, is told
when the slots have changed: until it has done so, the device sees old memory, and how long that was is reported.
Source of the two ways: ``vhost_set_memory()``, Linux ``drivers/vhost/vhost.c``; ``vfio_listener_commit()``, QEMU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..clock import stopwatch as _clock
from ..memslots import KVM_MEM_READONLY, Action, Effect, Slot

__all__ = ["Attached", "MapListener", "difference"]


class MapListener:
    """A map that follows the slots: derive from it. Effects are of frames, with the slot before and after; none stays.

    ``waits``: accesses through this map can be made to wait (``stall``, ``resume``); else it is told late.
    """

    waits = True

    def prepare(self, effects: Sequence[Effect]) -> None:
        """The effects are about to happen, at one instant: MemslotError refuses them, and nothing changes."""

    def stall(self, effects: Sequence[Effect]) -> None:
        """From its return on until ``resume``, no access goes through this map."""

    def commit(self, effects: Sequence[Effect]) -> None:
        """The map says what the slots say now. What it raises is kept (``Attached.errors``): there is no way back."""

    def resume(self) -> None:
        """Accesses go on; without a ``commit`` since ``stall``, nothing has changed."""


class Attached:
    """A listener, and what became of it: how often it had the instant of an update, and how often it was late."""

    def __init__(self, listener: MapListener) -> None:
        self.listener = listener
        self.instants = self.waited_ns = 0
        """Updates whose instant was its own, too; how long its accesses waited for them in all."""
        self.windows = self.window_ns = self.worst_ns = 0
        """Updates that it was told of late; how long vCPUs may have seen the new, its device the old: in all, most."""
        self.errors: list[Exception] = []
        self._begun = 0
        self._committed = False

    def stall(self, effects: Sequence[Effect]) -> None:
        """Its accesses wait."""
        self._begun, self._committed = _clock(), False
        self.listener.stall(effects)

    def commit(self, effects: Sequence[Effect]) -> None:
        """Its map is the new one."""
        self._committed = True
        self._tell(effects)

    def _tell(self, effects: Sequence[Effect]) -> None:
        try:
            self.listener.commit(effects)
        except Exception as error:  # noqa: BLE001 - the change stands, whatever it was
            self.errors.append(error)

    def resume(self) -> None:
        """Its accesses go on."""
        self.listener.resume()
        if self._committed:
            self.instants += 1
            self.waited_ns += _clock() - self._begun

    def late(self, effects: Sequence[Effect], begun: int) -> None:
        """The slots have changed since ``begun``, and it hears of it now."""
        waits = self.listener.waits
        if waits:
            self.listener.stall(effects)
        try:
            self._tell(effects)
        finally:
            if waits:
                self.listener.resume()
        took = _clock() - begun
        self.windows += 1
        self.window_ns += took
        self.worst_ns = max(self.worst_ns, took)

    def __repr__(self) -> str:
        late = f"{self.windows} late, in all {self.window_ns / 1e3:.0f} µs, at most {self.worst_ns / 1e3:.0f} µs"
        waited = f"{self.instants} updates with one instant, waited {self.waited_ns / 1e3:.0f} µs"
        return f"{type(self.listener).__name__}: {waited}; {late}"


def _runs(slots: Iterable[Slot]) -> set[Slot]:
    """Memory as a map sees it: neighbours that go on with the same memory and rights are one; no ids, no logs. O(n)."""
    made: list[Slot] = []
    for slot in sorted(slots, key=lambda each: (each.as_id, each.base_gfn)):
        last, plain = made[-1] if made else None, slot._replace(id=0, flags=slot.flags & KVM_MEM_READONLY)
        if (
            last is not None
            and last.end_gfn == plain.base_gfn
            and last._replace(base_gfn=plain.base_gfn, npages=plain.npages, userspace_addr=last.hva(last.end_gfn))
            == plain
        ):
            made[-1] = last._replace(npages=last.npages + plain.npages)
        else:
            made.append(plain)
    return set(made)


def difference(before: Iterable[Slot], after: Iterable[Slot]) -> list[Effect]:
    """Memory that went and came, as effects: first all that went. Whose slot it is, is no matter. O(n log n).

    >>> old, new = Slot(0, 1, 8, 4, 0x10000), Slot(0, 1, 8, 2, 0x10000)
    >>> [(each.action.name, each.end_gfn) for each in difference([old], [new])]
    [('STALL', 12), ('FILL', 10)]
    >>> difference([old], [new, Slot(0, 2, 10, 2, 0x12000)])
    []
    """
    were, now = _runs(before), _runs(after)
    gone = [Effect(slot.base_gfn, slot.end_gfn, Action.STALL, slot, None) for slot in sorted(were - now)]
    return gone + [Effect(slot.base_gfn, slot.end_gfn, Action.FILL, None, slot) for slot in sorted(now - were)]
