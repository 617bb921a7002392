"""KVM_MEM_GUEST_MEMFD asked away from a slot that has bound a file, while a hole is punched in the file.

The answer is production's (``memslots.checks``), and so is the file's lock. Until December 2025, Linux took such a
change of flags: the new slot had no file, so nothing unbound the old one, which was freed; the next hole walked to it.
Source: ``kvm_set_memory_region()``, ``kvm_gmem_unbind()``, ``virt/kvm``, Linux 6.18.
"""

from __future__ import annotations

from typing import Any

from ...compiled import Words
from ..scene import Model, Scene
from ..small_file import SMALL_FILE, SmallFile

__all__ = ["MODELS"]

_BOUND, _SLOT = 0, 1
"""Words: whether the file's page is bound to the slot; and the old slot's memory, 1 while it is not freed."""
_GUEST_MEMFD = 1 << 2


def toggle(scene: Scene) -> None:
    """The updater asks for the slot without the flag, and, where that is refused, deletes it: unbind, wait, free."""
    file = SmallFile(scene)
    checks, changes, slots = scene.room("memslots.checks"), scene.room("memslots.changes"), scene.room("memslots.slot")
    atomics, lock = file.atomics, scene.room("gmem.invalidate_lock")
    srcu = scene.room("rcu.srcu")
    domain = srcu.Srcu(1)
    scene.words("srcu", domain.words)
    shared = scene.words("slot", scene.room("compiled").words(2), lambda index: ("bound", "old slot")[index])
    atomics.poke(shared, _BOUND, 1)
    atomics.poke(shared, _SLOT, 1)
    was: Any = slots.Slot(0, 0, 1, 1, 0, flags=_GUEST_MEMFD, guest_memfd=1)
    asked: Any = changes.Change(0, 1, 1, 0)

    def updater(shared: Words, inode: Words) -> int:
        kind: int = checks.kind_of(asked, was)
        refused = kind >= checks.FIRST_REASON
        if refused:  # the slot can only be deleted: step 18 of a delete
            lock.write_lock(inode)
            atomics.store_relaxed(shared, _BOUND, 0)
            lock.write_unlock(inode)
        srcu.srcu_synchronize(domain.words, 0, 1)
        atomics.store_relaxed(shared, _SLOT, 0)  # freed, and used for something else
        return kind

    def vmm(shared: Words, inode: Words) -> bool:
        lock.write_lock(inode)
        bound: bool = atomics.load_relaxed(shared, _BOUND) != 0
        if bound:
            assert atomics.load_relaxed(shared, _SLOT), "a hole walks to a slot that was freed"
        lock.write_unlock(inode)
        return bound

    scene.thread("updater", updater, shared, file.words)
    scene.thread("VMM", vmm, shared, file.words)
    scene.final("nothing is bound to a slot that is gone", lambda view: not view.word("slot", _BOUND))


MODELS = (
    Model(
        "gmem-toggle",
        "no hole walks to a slot that was freed",
        "1 slot with a file, 1 change of its flags or delete, 1 hole",
        toggle,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
)
