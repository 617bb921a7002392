"""Split, merge, grow, truncate on the software engine without a transaction around them, where nobody else has a part.

A primitive changes slots only: each frame that stays keeps its memory and its rights. So nothing that a transaction
takes care of has to be done, unless the slots log, have a guest_memfd, or another map follows them: then it goes by a
transaction, as does whatever is refused, which that says in its own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..abi.model import ModelSlot
from ..memslots import KVM_MEM_READONLY, Slot, SlotKey
from ..units import PAGE_SHIFT

if TYPE_CHECKING:
    from .backends import SoftBackend
    from .slot_memory import HostPiece

__all__ = ["reshape"]

_new = tuple.__new__
_BESIDE = ~KVM_MEM_READONLY


class _Asked(NamedTuple):
    """What a change of slots takes, and the records as they were and will be."""

    words: list[int]
    comes: dict[SlotKey, ModelSlot]
    went: int
    came: int
    pieces: tuple[HostPiece, ...]
    before: list[tuple[SlotKey, ModelSlot | None]]


def reshape(backend: SoftBackend, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
    """Put slots ``made`` in the place of ``gone``, by ascending frame and host address; under ``section``.

    False: nothing is changed, and it is for a transaction to do, or to refuse. O(k log n).
    """
    model, last = backend.model, made[-1]
    with backend.alone, model.lock:
        try:
            asked = _asked(backend, gone, made)
        except MemoryError:
            return False
        if asked is None:
            return False
        pages = model.accounting.pages
        try:
            if not backend.engine.reshape(asked.words):
                return False
            for slot in gone:
                del model.slots[slot[:2]]  # type: ignore[arg-type] # as a SlotKey
            model.slots.update(asked.comes)
            if asked.went != asked.came:
                model.accounting.change(asked.went, asked.came)
            if model.dirty.writable:
                model.dirty.zapped()
            backend.owned.reshaped(gone, made, asked.pieces)
        except BaseException as error:
            _follow(backend, asked.before, pages, made, asked.pieces)
            if not isinstance(error, MemoryError):
                raise
            return backend.engine.slot(last.id, last.as_id) == last
    return True


def _asked(backend: SoftBackend, gone: Sequence[Slot], made: Sequence[Slot]) -> _Asked | None:
    """None if it is for a transaction."""
    model = backend.model
    if model.userfaults or not backend.engine.exits_plainly or backend.design != "atomic":
        return None
    slots, ids = model.slots, model.host.user_slots
    words: list[int] = []
    went = came = 0
    for slot in gone:
        as_id, name, base_gfn, npages, _, flags, file, _, attributes = slot
        held = slots.get((as_id, name))  # type: ignore[call-overload] # as a SlotKey
        if held is None or held.slot != slot or flags & _BESIDE or file or attributes:
            return None
        words += (name, 0, 0, 0, 0, as_id, 0, 0, 0, 0)
        went += npages
    end_gfn = base_gfn + npages
    comes: dict[SlotKey, ModelSlot] = {}
    for slot in made:
        as_id, name, base_gfn, npages, hva, flags, _, _, _ = slot
        if name >= ids or (base_gfn + npages > end_gfn and not model.allows(slot)):
            return None
        words += (name, base_gfn, npages, hva, flags, as_id, 0, 0, 0, 0)
        came += npages
        comes[_new(SlotKey, (as_id, name))] = ModelSlot(slot)
    if went < came and came - went > model.accounting.largest - model.accounting.pages:
        return None
    start, end = made[0][4], hva + (npages << PAGE_SHIFT)
    pieces = backend.owned.reaching(start, end - start)  # named here, they stay
    return _Asked(words, comes, went, came, pieces, [(slot.key, slots.get(slot.key)) for slot in (*gone, *made)])


def _follow(
    backend: SoftBackend,
    before: Sequence[tuple[SlotKey, ModelSlot | None]],
    pages: int,
    made: Sequence[Slot],
    pieces: Sequence[HostPiece],
) -> None:
    """As after a transaction that was left: the records are those of the slots that there are now, whichever these are.

    Where memory fails, what it did can be done again.
    """
    for last in (False, True):
        try:
            model = backend.model
            for key, held in before:
                if held is None:
                    model.slots.pop(key, None)
                else:
                    model.slots[key] = held
            model.accounting.pages = pages
            for slot in made:
                backend.owned.expect(slot.key, pieces)
            model.changed_by_a_design([key for key, _ in before])
            for key, _ in before:
                backend.settle(key)
            return  # noqa: TRY300 - nothing of it can fail any more
        except MemoryError:
            if last:
                raise
