"""What KVM checks before it changes a slot: one table, in the kernel's order; the first check that fails is the answer.

The steps are those of docs/abi.md, which has what is before (1, 2) and after. ``refused`` and ``kind_of`` are the only
judges: traces and the model of the ABI call them as they are, the updater of ``phases`` compiles them. Source, unless
said: ``kvm_set_memory_region()``, Linux 6.18, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from ..errors import MemslotError
from ..units import PAGE_SIZE, format_frames
from .changes import KINDS, Change, ChangeKind
from .slot import KVM_MEM_GUEST_MEMFD, KVM_MEM_READONLY, KVM_MEM_SLOTS_NUM, KVM_MEMSLOT_NR, KVM_MEMSLOT_NX, Slot

__all__ = ["CHECKS", "FIRST_REASON", "Check", "Limits", "classify", "kind_of", "refusal_of", "refused"]


U64 = int
"""As ``compiled.U64``: this module does without Numba."""


class Check(NamedTuple):
    """One check: its step, its number, what it answers, where the kernel has it, and the error's words.

    The words are a format of the fields that are asked for, of the limits, and of the slot that is there (``was``).
    """

    step: int
    reason: int
    errno: int
    words: str
    source: str = "kvm_set_memory_region()"


FIRST_REASON = 16
"""Smaller numbers are kinds of change."""
CHECKS: list[Check] = []


def _check(step: int, words: str, source: str = "kvm_set_memory_region()", *, number: int = errno.EINVAL) -> int:
    """The table's next line; returns its reason."""
    reason = FIRST_REASON + len(CHECKS)
    CHECKS.append(Check(step, reason, number, words, source))
    return reason


_FLAGS = "kvm_check_memory_region_flags()"
_ONLY = "; an existing slot can only be moved, or its logging changed"

NOT_V1 = _check(
    3,
    "slot {slot}: flags {flags:#x} are not of KVM_MEM_LOG_DIRTY_PAGES 0x1, KVM_MEM_READONLY 0x2",
    "kvm_vm_ioctl(): KVM_SET_USER_MEMORY_REGION",
)
ID_BAD = _check(4, "slot: {slot} is not in 0..{last_id}", "kvm_vm_ioctl_set_memory_region()")
FLAGS_BAD = _check(6, "slot {slot}: flags {flags:#x} are not of {legal:#x}", _FLAGS)
OWN_FLAGS = _check(6, "slot {slot}: flags {flags:#x}: KVM's own slots have none", "kvm_set_internal_memslot()")
SIZE_UNALIGNED = _check(7, "slot {slot}: memory_size {memory_size:#x} is not a multiple of 0x1000")
SIZE_NO_WORD = _check(7, "slot {slot}: memory_size {memory_size:#x} is no word of {word_bits} bits")
GPA_UNALIGNED = _check(8, "slot {slot}: guest_phys_addr {guest_phys_addr:#x} is not a multiple of 0x1000")
HVA_UNALIGNED = _check(9, "slot {slot}: userspace_addr {userspace_addr:#x} is not a multiple of 0x1000")
HVA_WRAPS = _check(9, "slot {slot}: userspace_addr {userspace_addr:#x} with size {memory_size:#x} passes {hva_end}")
OFFSET_BAD = _check(
    10,
    "slot {slot}: guest_memfd_offset {guest_memfd_offset:#x} is unaligned, or wraps with size {memory_size:#x}",
)
AS_ID_BAD = _check(11, "as_id: {as_id} is not in 0..{last_as_id}")
ID_PAST_ALL = _check(11, f"slot: {{slot}} is not in 0..{KVM_MEM_SLOTS_NUM - 1}")
GPA_WRAPS = _check(12, "slot {slot}: guest_phys_addr {guest_phys_addr:#x} with size {memory_size:#x} passes 2**64")
TOO_LARGE = _check(13, "slot {slot}: memory_size {memory_size:#x} is more than {pages:#x} pages")
NO_SLOT = _check(14, "slot {slot}: no such slot")
FILE_STAYS = _check(16, "slot {slot}: a slot with a guest_memfd can only be deleted")
HVA_DIFFERS = _check(16, "slot {slot}: userspace_addr {userspace_addr:#x} differs from {was.userspace_addr:#x}" + _ONLY)
NPAGES_DIFFER = _check(16, "slot {slot}: npages {npages:#x} differs from {was.npages:#x}" + _ONLY)
RIGHTS_DIFFER = _check(16, "slot {slot}: flags {flags:#x} differs from {was.flags:#x}" + _ONLY)
ATTRIBUTES_DIFFER = _check(
    16,
    "slot {slot}: attributes {attributes:#x} differs from {was.attributes:#x}" + _ONLY,
    "none: KVM has no such field",
)
OVERLAPS = _check(17, "slot {slot}: {frames} overlaps {was}", "kvm_check_memslot_overlap()", number=errno.EEXIST)
NO_FILE = _check(19, "slot {slot}: guest_memfd {guest_memfd} is not open", "kvm_gmem_bind()", number=errno.EBADF)
EXISTS = _check(0, "slot {slot}: it exists: {was}", "none: KVM would change it", number=errno.EEXIST)
OUT_OF_PHASE = _check(
    0, "slot {slot}: out of order: marks come first, and are published before anything is staged", "none: an update's"
)

ALLOWED = 0
_CREATE, _DELETE, _MOVE, _FLAGS_ONLY, _NOTHING = 1, 2, 3, 4, 5
_IN_PAGE = PAGE_SIZE - 1
_LARGEST = (1 << 64) - 1
_STAY = KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD | KVM_MEMSLOT_NR | KVM_MEMSLOT_NX


class Limits(NamedTuple):
    """What of the host, the VM's type and the form of the call decides steps 3 to 13."""

    ids: int
    """Slot ids are below."""
    not_v1: int
    """Flags that the first form of the call does not know; 0 for the second."""
    illegal: int
    """Flags that a slot without KVM_MEM_GUEST_MEMFD cannot have."""
    illegal_with_file: int
    size: int
    """The largest word that a size can be."""
    hva_end: int
    address_spaces: int
    pages: int


def refused(slot: U64, as_id: U64, flags: U64, gpa: U64, size: U64, hva: U64, offset: U64, limits: Limits) -> U64:
    """Steps 3 to 13, of a delete, too: the reason of the first that fails, or 0. Bytes, as the call has them. O(1)."""
    ids, not_v1, illegal, illegal_with_file, largest, hva_end, address_spaces, pages = limits
    if flags & not_v1 != 0:
        return NOT_V1
    if slot >= ids:
        return ID_BAD
    if flags != 0:
        if flags & KVM_MEM_GUEST_MEMFD != 0:
            if flags & illegal_with_file != 0:
                return FLAGS_BAD
        elif flags & illegal != 0:
            return OWN_FLAGS if illegal == _LARGEST else FLAGS_BAD
    if size & _IN_PAGE != 0:
        return SIZE_UNALIGNED
    if size > largest:
        return SIZE_NO_WORD
    if gpa & _IN_PAGE != 0:
        return GPA_UNALIGNED
    if hva & _IN_PAGE != 0:
        return HVA_UNALIGNED
    if hva > hva_end or size > hva_end - hva:
        return HVA_WRAPS
    if flags & KVM_MEM_GUEST_MEMFD != 0 and (offset & _IN_PAGE != 0 or size > _LARGEST - offset):
        return OFFSET_BAD
    if as_id >= address_spaces:
        return AS_ID_BAD
    if slot >= KVM_MEM_SLOTS_NUM:
        return ID_PAST_ALL
    if size > _LARGEST - gpa:
        return GPA_WRAPS
    if size >> 12 > pages:
        return TOO_LARGE
    return ALLOWED


def kind_of(asked: Change, was: Slot) -> U64:
    """Steps 14 to 16: the kind of a change (CREATE 1 to NOTHING 5), or the reason why not. O(1).

    ``was`` is the slot that has the id now, with ``npages`` 0 where there is none.
    """
    if asked.npages == 0:
        return NO_SLOT if was.npages == 0 else _DELETE
    if was.npages == 0:
        return _CREATE
    if asked.flags & KVM_MEM_GUEST_MEMFD != 0:
        return FILE_STAYS
    if asked.userspace_addr != was.userspace_addr:
        return HVA_DIFFERS
    if asked.npages != was.npages:
        return NPAGES_DIFFER
    if (asked.flags ^ was.flags) & _STAY != 0:
        return RIGHTS_DIFFER
    if asked.attributes != was.attributes:
        return ATTRIBUTES_DIFFER
    if asked.base_gfn != was.base_gfn:
        return _MOVE
    return _NOTHING if asked.flags == was.flags else _FLAGS_ONLY


_NONE = Slot(0, 0, 0, 0, 0)


def classify(change: Change, old: Slot | None) -> ChangeKind:
    """Which kind ``change`` is when ``old`` is the slot that has its id now. O(1).

    Raises MemslotError (EINVAL) for what KVM refuses: delete of no slot, resize, another host address, a read-only
    toggle. Overlap with other slots is not looked at here.

    >>> classify(Change(slot=1, base_gfn=5, npages=2), Slot(0, 1, 3, 2, 0))
    <ChangeKind.MOVE: 'move'>
    """
    kind = kind_of(change, _NONE if old is None else old)
    if kind >= FIRST_REASON:
        raise refusal_of(kind, change, old)
    return KINDS[kind]


def refusal_of(reason: int, asked: Any, was: object = None, limits: Limits | None = None) -> MemslotError:
    """The error for a reason: ``asked`` is a Change or, with ``slot`` as its id, the fields of a region."""
    check = CHECKS[reason - FIRST_REASON]
    fields: dict[str, Any] = dict(asked) if isinstance(asked, dict) else _fields_of(asked)
    if limits is not None:
        file = fields["flags"] & KVM_MEM_GUEST_MEMFD
        end = limits.hva_end
        fields |= {
            "last_id": limits.ids - 1,
            "last_as_id": limits.address_spaces - 1,
            "legal": ~(limits.illegal_with_file if file else limits.illegal) & 0xFFFF,
            "word_bits": limits.size.bit_length(),
            "hva_end": "2**64" if end == _LARGEST else f"{end:#x}",
            "pages": limits.pages,
        }
    return MemslotError(check.errno, check.words.format(**fields, was=was))


def _fields_of(change: Change) -> dict[str, Any]:
    return {
        **change._asdict(),
        "memory_size": change.memory_size,
        "guest_phys_addr": change.guest_phys_addr,
        "frames": format_frames(change.base_gfn, change.base_gfn + change.npages),
    }
