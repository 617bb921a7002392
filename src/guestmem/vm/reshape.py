"""Split, merge, grow, truncate on the software engine without a transaction around them, where nobody else has a part.

A primitive changes slots only: each frame that stays keeps its memory and its rights. So nothing that a transaction
takes care of has to be done, unless the slots log, have a guest_memfd, or another map follows them: then it goes by a
transaction, as does whatever is refused, which that says in its own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..abi.model import ModelSlot
from ..memslots import KVM_MEM_READONLY, Slot, SlotKey
from ..units import PAGE_SHIFT

if TYPE_CHECKING:
    from .backends import SoftBackend
    from .slot_memory import HostPiece

__all__ = ["reshape"]

_new = tuple.__new__
_BESIDE = ~KVM_MEM_READONLY


def reshape(backend: SoftBackend, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
    """Put slots ``made`` in the place of ``gone``, by ascending frame and host address; under ``section``.

    False: nothing is changed, and it is for a transaction to do, or to refuse. O(k log n).
    """
    model, engine, owned = backend.model, backend.engine, backend.owned
    slots, accounting = model.slots, model.accounting
    with backend.alone, model.lock:
        try:
            if model.userfaults or not engine.exits_plainly or backend.design != "atomic":
                return False
            ids = model.host.user_slots
            went = came = 0
            words: list[int] = []
            before: list[tuple[Slot, ModelSlot | None]] = []
            for slot in gone:
                as_id, name, base_gfn, npages, hva, flags, file, _, attributes = slot
                held = slots.get((as_id, name))  # type: ignore[call-overload] # as a SlotKey
                if held is None or held.slot != slot or flags & _BESIDE or file or attributes:
                    return False
                words += (name, 0, 0, 0, 0, as_id, 0, 0, 0, 0)
                before.append((slot, held))
                went += npages
            end_gfn = base_gfn + npages
            comes: dict[SlotKey, ModelSlot] = {}
            for slot in made:
                as_id, name, base_gfn, npages, hva, flags, _, _, _ = slot
                if name >= ids or (base_gfn + npages > end_gfn and not model.allows(slot)):
                    return False
                words += (name, base_gfn, npages, hva, flags, as_id, 0, 0, 0, 0)
                key = _new(SlotKey, (as_id, name))
                before.append((slot, slots.get(key)))
                comes[key] = ModelSlot(slot)
                came += npages
            if came - went > accounting.largest - accounting.pages:
                return False
            start = made[0][4]
            pieces = owned.reaching(start, hva + (npages << PAGE_SHIFT) - start)  # named here, they stay
        except MemoryError:
            return False
        pages = accounting.pages
        try:
            if not engine.reshape(words):
                return False
            for slot in gone:
                del slots[slot[:2]]  # type: ignore[arg-type] # as a SlotKey
            slots.update(comes)
            if went != came:
                accounting.change(went, came)
            if model.dirty.writable:
                model.dirty.zapped()
            owned.reshaped(gone, made, pieces)
        except BaseException as error:
            _follow(backend, before, pages, made, pieces)
            if not isinstance(error, MemoryError):
                raise
            last = made[-1]
            return engine.slot(last.id, last.as_id) == last
    return True


def _follow(
    backend: SoftBackend,
    before: Sequence[tuple[Slot, ModelSlot | None]],
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
            for slot, held in before:
                if held is None:
                    model.slots.pop(slot.key, None)
                else:
                    model.slots[slot.key] = held
            model.accounting.pages = pages
            for slot in made:
                backend.owned.expect(slot.key, pieces)
            model.changed_by_a_design([slot.key for slot, _ in before])
            for slot, _ in before:
                backend.settle(slot.key)
            return  # noqa: TRY300 - nothing of it can fail any more
        except MemoryError:
            if last:
                raise
