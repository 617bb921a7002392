"""KVM_PRE_FAULT_MEMORY: a vCPU's stage-2 table is built for a range before the guest touches it.

Page by page, as read faults of the vCPU (``user_mem_abort``); what was done stays, and the range says what is left. A
slot that is INVALID just now is EAGAIN: the fault has left its read-side section by then, so the update that waits for
readers goes on. Until 6.18 KVM tried again inside the section, for ever. What the call answers: ``abi.pre_fault``.

A frame of a slot with a guest_memfd is mapped as its page is, private or shared, as x86 asks (``kvm_mem_is_private()``
in ``kvm_arch_vcpu_pre_fault_memory()``, Linux 6.18) and arm64's fault finds by itself (``gmem_abort()``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...abi.pre_fault import check_pre_fault, check_pre_fault_version, would_not_return
from ...abi.versions import LINUX_6_18, KernelVersion
from ...errors import CapabilityError, GuestmemError, MemslotError, UsageError
from ...gmem.checks import KVM_MEMORY_ATTRIBUTE_PRIVATE
from ...gmem.states import EHWPOISON
from ...stage2.words import Table
from ...units import PAGE_SHIFT, PAGE_SIZE
from . import layout as at
from .gmem_slot import MEMORY_FAULT, OTHER_FILE, Gmem, gmem_slot_fault
from .user_mem_abort import stage2_fault
from .vcpu import FILLED, IN_FILE, INVALID
from .words import Slots

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["PreFault", "pre_fault_memory"]

_FILLED, _INVALID, _IN_FILE = int(FILLED), int(INVALID), int(IN_FILE)
_MEMORY_FAULT, _OTHER_FILE, _EXIT_ERRNO = int(MEMORY_FAULT), int(OTHER_FILE), int(at.EXIT_ERRNO)
_TRIES = 64


class PreFault(NamedTuple):
    """What is left of a range: ``struct kvm_pre_fault_memory`` as the call leaves it. Bytes."""

    gpa: int
    size: int


def _refused(number: int, why: str) -> MemslotError:
    return MemslotError(number, f"pre-fault: {why}")


def pre_fault_memory(
    engine: SoftEngine,
    vcpu: int,
    gpa: int,
    size: int,
    flags: int = 0,
    *,
    version: KernelVersion = LINUX_6_18,
    interrupted: Callable[[], bool] = lambda: False,
) -> PreFault:
    """Map [gpa, gpa + size) in the stage-2 table of vCPU ``vcpu``, which does not run; returns what is left.

    Size 0 left: all done. Less was done if a signal came (``interrupted``) or a page was refused; an error is raised
    only if nothing was done: EINVAL (flags, alignment, size 0, wrap), ENOENT (no slot), EINTR, EAGAIN (the slot is
    INVALID; GuestmemError for a version that would not return), EFAULT (a guest_memfd that is closed, or a page that
    nobody may have), EHWPOISON (a poisoned page of one, 7.4; what earlier kernels answer was not read:
    CapabilityError). On arm64 the call is from 7.4 on; EINVAL before. O(pages).

    >>> from guestmem.engines.soft import SoftEngine
    >>> from guestmem.memslots import Change
    >>> engine = SoftEngine()
    >>> _ = engine.set_memory_region(Change(0, 0, 16, 0x7F0000000000))
    >>> pre_fault_memory(engine, 0, 0xE000, 0x4000)
    PreFault(gpa=65536, size=8192)
    >>> pre_fault_memory(engine, 0, 0x10000, 0x2000)
    Traceback (most recent call last):
    guestmem.errors.MemslotError: ENOENT: pre-fault: gpa 0x10000 is in no slot
    """
    if not 0 <= vcpu < engine.vcpus or engine.running:
        raise UsageError(f"vcpu: {vcpu} is not one of {engine.vcpus}, or runs")
    check_pre_fault_version(engine.arch, version)
    check_pre_fault(gpa, size, flags)
    engine.will_translate()
    first = gpa
    while size:
        number, why = (errno.EINTR, "a signal came") if interrupted() else _page(engine, vcpu, gpa, version)
        if number:
            if gpa == first:
                raise _refused(number, why)
            break
        gpa, size = gpa + PAGE_SIZE, size - PAGE_SIZE
    return PreFault(gpa, size)


def _page(engine: SoftEngine, vcpu: int, gpa: int, version: KernelVersion) -> tuple[int, str]:
    """Fault one page in: 0, or why not."""
    slots, _load = engine.vcpu_words(vcpu)
    table, tlb = engine.stage2.tables[0], engine.stage2.tlbs[0][vcpu].words
    words = table.at(1 + vcpu)
    for _ in range(_TRIES):
        if _is_mapped(engine, gpa):
            return 0, ""
        outcome = int(stage2_fault(slots, words, tlb, gpa // PAGE_SIZE, False, False))
        if outcome == _IN_FILE:
            outcome = _file_page(engine, vcpu, slots, words, gpa)
            if outcome == _MEMORY_FAULT:
                number, why = _unservable(engine, gpa, int(slots.own[_EXIT_ERRNO]), version)
                if number:
                    return number, why
            if outcome in {_MEMORY_FAULT, _OTHER_FILE}:
                continue
        if outcome == _INVALID:
            if version.prefault_retries:
                raise would_not_return(version)
            return errno.EAGAIN, f"the slot at gpa {gpa:#x} is being deleted or moved"
        if outcome != _FILLED:
            return errno.ENOENT, f"gpa {gpa:#x} is in no slot"
    return errno.EAGAIN, f"gpa {gpa:#x} was zapped {_TRIES} times"


def _is_mapped(engine: SoftEngine, gpa: int) -> bool:
    """Whether there is a leaf for the page, of either kind of access: it has one kind, and a conversion zaps it."""
    table, private = engine.stage2.tables[0], engine.stage2.private_gfn << PAGE_SHIFT
    return table.lookup(gpa) is not None or (private > gpa and table.lookup(gpa | private) is not None)


def _is_private(engine: SoftEngine, gpa: int) -> bool:
    """Of which kind an access to a frame of a slot with a guest_memfd has to be, as it looks now."""
    gfn = gpa // PAGE_SIZE
    slot = engine.memslots.find(gfn, 0)
    file = None if slot is None else engine.files.get(slot.guest_memfd)
    if slot is None or file is None:
        return False
    if file.attributes is not None:
        return bool(file.attributes.get(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE)
    page = gfn - slot.base_gfn + (slot.guest_memfd_offset >> PAGE_SHIFT)
    return bool(file.inode.states.get(page) & file.inode.generation.PRIVATE)


def _file_page(engine: SoftEngine, vcpu: int, slots: Slots, words: Table, gpa: int) -> int:
    """Fault in a page of a slot with a guest_memfd; what it came to. The state may change meanwhile: try again."""
    gmem, private = Gmem(*engine.file_words(vcpu)), _is_private(engine, gpa)
    return int(gmem_slot_fault(slots, words, gmem, gpa // PAGE_SIZE, private, False))


def _unservable(engine: SoftEngine, gpa: int, number: int, version: KernelVersion) -> tuple[int, str]:
    """Why a page of a file cannot be had: errno and words; 0 where it was converted just now."""
    if number == EHWPOISON:
        if not version.prefault_on_arm64:  # the same kernel's documentation says it first
            raise CapabilityError(f"pre-fault: what {version} answers for poisoned memory was not read")
        return number, f"the page at gpa {gpa:#x} is poisoned"
    slot = engine.memslots.find(gpa // PAGE_SIZE, 0)
    file = None if slot is None else engine.files.get(slot.guest_memfd)
    if slot is None or (file is not None and not file.closed):
        try:
            if slot is not None and file is not None:
                file.guest_fault(slot, gpa // PAGE_SIZE, private=_is_private(engine, gpa))
        except GuestmemError as error:
            return errno.EFAULT, f"gpa {gpa:#x}: {error}"
        return 0, ""
    return errno.EFAULT, f"gpa {gpa:#x} is of a guest_memfd that is closed"
