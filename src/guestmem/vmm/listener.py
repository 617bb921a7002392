"""Who is told of changes, and in which order: QEMU's ``MemoryListener`` and ``address_space_update_topology_pass()``.

Source: QEMU 10.2 ``system/memory.c``, ``include/system/memory.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .flatview import FlatRange, FlatView, same_range

if TYPE_CHECKING:
    from .address_space import AddressSpace
    from .incremental import Slice

__all__ = ["PRIORITY_ACCEL", "PRIORITY_DEV_BACKEND", "PRIORITY_MIN", "Listener", "Recorder", "tell", "topology_pass"]

PRIORITY_MIN = 0
PRIORITY_ACCEL = 10
PRIORITY_DEV_BACKEND = 10


class Listener:
    """A listener that does nothing: derive from it. Lower ``priority`` is earlier for adds, later for deletes.

    In a transaction: ``begin`` of every listener; then for each address space that changed all ``region_del``, then for
    each range by ascending address ``region_add``, or ``region_nop`` and then ``log_start``, ``log_stop``; then
    ``commit`` of every listener. While it is told, ``space.view`` is still the old one.

    ``prepare`` is not QEMU's: it is asked before anyone is told, and what it raises undoes the whole transaction. What
    any other callback raises comes out when all listeners have been told of all, and the change stands.
    """

    priority = PRIORITY_MIN

    def prepare(self, space: AddressSpace, view: FlatView, slices: Sequence[Slice]) -> None:
        """``space`` is about to show ``view``, which differs in ``slices`` (ranges that go, and those that come)."""

    def undone(self, space: AddressSpace) -> None:
        """After ``prepare`` somebody else refused: ``space`` stays as it is."""

    def begin(self, space: AddressSpace) -> None:
        """A transaction ends."""

    def commit(self, space: AddressSpace) -> None:
        """All was told."""

    def region_add(self, space: AddressSpace, section: FlatRange) -> None:
        """A range is new."""

    def region_del(self, space: AddressSpace, section: FlatRange) -> None:
        """A range is gone."""

    def region_nop(self, space: AddressSpace, section: FlatRange) -> None:
        """A range stays. Whoever implements this hears of every range of the view in every transaction."""

    def log_start(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        """A range that stays is logged for more clients than before."""

    def log_stop(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        """A range that stays is logged for fewer clients than before."""

    def log_global_start(self, space: AddressSpace) -> None:
        """All memory is logged from now on."""

    def log_global_stop(self, space: AddressSpace) -> None:
        """Only what asked for it is logged from now on."""


def wants_nops(listener: Listener) -> bool:
    """Whether ``region_nop`` is more than nothing."""
    return type(listener).region_nop is not Listener.region_nop


def topology_pass(
    space: AddressSpace,
    old: Sequence[FlatRange],
    new: Sequence[FlatRange],
    listeners: Sequence[Listener],
    *,
    adding: bool,
    errors: list[BaseException] | None = None,
) -> None:
    """One of two passes over two views of the same bytes: first the deletes, then (``adding``) all else.

    ``listeners`` by ascending priority. Where starts differ the lower one is taken first, so a range that only shrank
    is a delete and an add. ``errors`` takes what listeners raise; None: the first ends it.
    """
    i = j = 0
    while i < len(old) or j < len(new):
        was = old[i] if i < len(old) else None
        now = new[j] if j < len(new) else None
        if was is not None and (
            now is None or was.start < now.start or (was.start == now.start and not same_range(was, now))
        ):
            if not adding:
                tell(reversed(listeners), "region_del", space, was, errors=errors)
            i += 1
        elif was is not None and now is not None and same_range(was, now):
            if adding:
                tell(listeners, "region_nop", space, now, errors=errors)
                if now.dirty_log_mask & ~was.dirty_log_mask:
                    tell(listeners, "log_start", space, now, was.dirty_log_mask, now.dirty_log_mask, errors=errors)
                if was.dirty_log_mask & ~now.dirty_log_mask:
                    tell(
                        reversed(listeners),
                        "log_stop",
                        space,
                        now,
                        was.dirty_log_mask,
                        now.dirty_log_mask,
                        errors=errors,
                    )
            i += 1
            j += 1
        else:
            if adding and now is not None:
                tell(listeners, "region_add", space, now, errors=errors)
            j += 1


def tell(
    listeners: Any, name: str, space: AddressSpace, *arguments: Any, errors: list[BaseException] | None = None
) -> None:
    """Call ``name`` of each; what one raises goes into ``errors``, so that the others are told all the same."""
    for listener in listeners:
        try:
            getattr(listener, name)(space, *arguments)
        except BaseException as error:
            if errors is None:
                raise
            errors.append(error)


class Recorder(Listener):
    """Notes what it is told, as tuples of the callback's name and its arguments; for tests and for looking.

    ``nops``: also ranges that stay.
    """

    def __init__(self, *, priority: int = PRIORITY_MIN, name: str = "") -> None:
        self.priority, self.name = priority, name
        self.calls: list[tuple[Any, ...]] = []

    def begin(self, space: AddressSpace) -> None:
        """Note it."""
        self.calls.append(("begin", space.name))

    def commit(self, space: AddressSpace) -> None:
        """Note it."""
        self.calls.append(("commit", space.name))

    def region_add(self, space: AddressSpace, section: FlatRange) -> None:
        """Note it."""
        self.calls.append(("region_add", space.name, section.start, section.end, section.region.name))

    def region_del(self, space: AddressSpace, section: FlatRange) -> None:
        """Note it."""
        self.calls.append(("region_del", space.name, section.start, section.end, section.region.name))

    def log_start(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        """Note it."""
        self.calls.append(("log_start", space.name, section.start, section.end, old, new))

    def log_stop(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        """Note it."""
        self.calls.append(("log_stop", space.name, section.start, section.end, old, new))

    def log_global_start(self, space: AddressSpace) -> None:
        """Note it."""
        self.calls.append(("log_global_start", space.name))

    def log_global_stop(self, space: AddressSpace) -> None:
        """Note it."""
        self.calls.append(("log_global_stop", space.name))


Callback = Callable[..., object]
