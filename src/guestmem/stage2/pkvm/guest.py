"""What the compiled transitions with guests stand on: both locks, a VM's state, a guest's entry.

Locks in mainline's order: the host's, then the guest's. Both tables lie in one pool, in one format, and a CPU uses its
one desk for both. Linux: ``arch/arm64/kvm/hyp/nvhe/mem_protect.c``.
"""

from __future__ import annotations

from ...atomics import load_relaxed, store_relaxed
from ...compiled import ONE, U64, Own, Words, compiled, u64
from ..layout import (
    EINVAL,
    ENOENT,
    EPERM,
    FIND,
    LAST_LEVEL,
    LEAF,
    LOCK_BASE,
    OK,
    OLD,
    PAGE_SHIFT,
    SOFTWARE_MASK,
    VALID,
    VCPUS,
)
from ..map import map_range
from ..rwlock import write_lock, write_unlock
from ..walk import DONE, lookup, walk_begin, walk_step
from ..words import Table
from .layout import (
    E2BIG,
    EHWPOISON,
    GUEST_OWNED,
    GUEST_SHARED,
    NOPAGE,
    OWNED,
    POISON,
    SHARED_BORROWED,
    SHARED_OWNED,
    VM_BASE,
    VM_LIVE,
    VM_NONE,
    VM_STATE,
    VMS,
)

__all__ = [
    "check_live",
    "count_pages",
    "guest_leaf",
    "guest_state",
    "is_empty",
    "lock_both",
    "map_guest",
    "set_vm_state",
    "unlock_both",
    "vm_state",
]


@compiled(nogil=True)
def lock_both(host: Words, guest: Words) -> None:
    """Take the host's lock, then the guest's, for writing."""
    write_lock(host, load_relaxed(host, LOCK_BASE), load_relaxed(host, VCPUS))
    write_lock(guest, load_relaxed(guest, LOCK_BASE), load_relaxed(guest, VCPUS))


@compiled
def unlock_both(host: Words, guest: Words) -> None:
    """Drop both."""
    write_unlock(guest, load_relaxed(guest, LOCK_BASE))
    write_unlock(host, load_relaxed(host, LOCK_BASE))


@compiled
def vm_state(el2: Words, handle: U64) -> U64:
    """VM_NONE, VM_LIVE or VM_DYING."""
    if handle == 0 or handle > load_relaxed(el2, VMS):
        return VM_NONE
    return load_relaxed(el2, load_relaxed(el2, VM_BASE) + (handle << 3) + VM_STATE)


@compiled
def check_live(el2: Words, handle: U64) -> U64:
    """OK; ENOENT: no such VM; EINVAL: it is dying."""
    state = vm_state(el2, handle)
    if state == VM_NONE:
        return ENOENT
    return OK if state == VM_LIVE else EINVAL


@compiled(nogil=True)
def set_vm_state(host: Words, el2: Words, handle: U64, old: U64, new: U64) -> bool:
    """Change a VM's state under the host's lock; False, and nothing is changed, if it was not ``old``."""
    lock = load_relaxed(host, LOCK_BASE)
    write_lock(host, lock, load_relaxed(host, VCPUS))
    right = vm_state(el2, handle) == old
    if right:
        store_relaxed(el2, load_relaxed(el2, VM_BASE) + (handle << 3) + VM_STATE, new)
    write_unlock(host, lock)
    return right


@compiled
def count_pages(el2: Words, handle: U64, what: U64, more: U64, less: U64) -> None:
    """Count pages that a VM owns or borrows (``what``: OWNED_PAGES, BORROWED_PAGES)."""
    word = load_relaxed(el2, VM_BASE) + (handle << 3) + what
    store_relaxed(el2, word, load_relaxed(el2, word) + more - less)


@compiled
def guest_leaf(table: Table, gfn: U64) -> U64:
    """Look up a guest's frame: OK; ERANGE; EHWPOISON: taken by force; ENOENT: nothing. Then FIND is in the desk.

    Also E2BIG, with FIND in the desk: in a block.
    """
    shape, desk = table.shape, table.desk
    status = lookup(table, gfn << shape[PAGE_SHIFT])
    if status == ENOENT and desk[FIND] == POISON:
        return EHWPOISON
    if status == OK and desk[FIND + ONE] != shape[LAST_LEVEL]:
        return E2BIG
    return status


@compiled
def guest_state(shape: Own, el2: Words, descriptor: U64) -> U64:
    """A guest's state of a page, by its descriptor."""
    if descriptor & shape[VALID] == 0:
        return NOPAGE
    software = (descriptor ^ load_relaxed(el2, GUEST_OWNED)) & shape[SOFTWARE_MASK]
    if software == 0:
        return OWNED
    software = (descriptor ^ load_relaxed(el2, GUEST_SHARED)) & shape[SOFTWARE_MASK]
    return SHARED_OWNED if software == 0 else SHARED_BORROWED


@compiled
def is_empty(table: Table, gfn: U64, count: U64) -> U64:
    """Whether a guest has nothing at ``count`` frames: OK; EPERM: it has something; ERANGE. O(count)."""
    shape, desk = table.shape, table.desk
    size = count << shape[PAGE_SHIFT]
    status = walk_begin(table, gfn << shape[PAGE_SHIFT], size, LEAF)
    while status == OK and walk_step(table) != DONE:
        if desk[OLD] != 0:
            return EPERM
    return status


@compiled
def map_guest(table: Table, gfn: U64, page: U64, count: U64, attributes: U64) -> U64:
    """Map ``count`` pages (1, or a block's) in a guest, or give one that is mapped another state."""
    shape = table.shape
    level = shape[LAST_LEVEL]
    if count > 1:
        level -= ONE
    to = shape[PAGE_SHIFT]
    size = count << to
    return map_range(table, gfn << to, size, page << to, attributes, level, u64(0))
