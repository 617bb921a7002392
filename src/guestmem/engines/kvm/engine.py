"""The kernel engine: a VM of ``/dev/kvm`` behind the Engine protocol, for designs that this kernel can carry out.

Designs that edit several slots before one swap (``batch``, ``atomic``) need a kernel that has such a call; none has.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from ...errors import CapabilityError, GuestmemError, MemslotError
from ...interrupts import Section
from ...memslots import Change, ChangeKind, Slot, SlotKey, classify
from ...units import PAGE_SHIFT, format_size
from ..protocol import Capability, Counts, Update
from . import layout as at
from .address_map import SPACE_SHIFT
from .vm import KvmVm

__all__ = ["KvmEngine"]

_clock = time.perf_counter_ns
_LARGE_PAGES = 1 << 24
_BYTES_A_PAGE = 12
"""What the kernel keeps for each page of a slot without TDP: reverse map, tracking, large pages."""


def _afford(change: Change) -> None:
    """CapabilityError for a slot whose bookkeeping alone could take the machine's memory."""
    needs = change.npages * _BYTES_A_PAGE
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    if needs > available // 2:
        raise CapabilityError(
            f"engine kvm: slot {change.slot} of {format_size(change.memory_size)} takes the kernel some "
            f"{format_size(needs >> 20 << 20)}; {format_size(available >> 20 << 20)} are available"
        )


class KvmEngine:
    """A VM of ``vcpus`` vCPUs on the real kernel. ``vm`` is the VM itself: registers, exits, logs, rings.

    Slots are changed through ``set_memory_region``, so that the engine knows what memory answers an exit. Closed by
    ``close()`` or as a context manager. CapabilityError where there is no usable ``/dev/kvm``.
    """

    name = "kvm"
    capabilities = Capability.SET_MEMORY_REGION | Capability.PAUSE | Capability.ANSWER_MMIO | Capability.RETRY_EXITS
    entries_at_once = 0
    arch = "x86"

    def __init__(self, vcpus: int = 1, *, ring_bytes: int = 0) -> None:
        self.vcpus = vcpus
        self.vm = KvmVm(vcpus, ring_bytes=ring_bytes)
        self.cores = len(os.sched_getaffinity(0))
        self.host = str(self.vm.host)
        self.counts = Counts()
        self._slots: dict[SlotKey, Slot] = {}
        self.unsure: set[SlotKey] = set()
        """Slots whose last change ended by an exception within: the kernel may have carried it out, or not."""
        self._lock = Section()
        self._held = 0
        self._retries = False
        self._holes = at.REPORT

    # -- memory ----------------------------------------------------------------------------------------------------

    def set_memory_region(self, change: Change) -> ChangeKind:
        """One change by KVM_SET_USER_MEMORY_REGION; MemslotError with the kernel's errno."""
        begun = _clock()
        with self._lock:
            got = _clock()
            self.counts.lock_ns += got - begun
            if self._retries and not self._held:  # the map below is what vCPUs answer exits from
                with self.exits_held():
                    return self._set_memory_region(change)
            return self._set_memory_region(change)

    def _set_memory_region(self, change: Change) -> ChangeKind:
        """All that can fail is before the kernel is asked; after it, words and dictionaries only."""
        key = change.key
        old, space = self._slots.get(key), change.as_id << int(SPACE_SHIFT)
        if old is None and change.npages >= _LARGE_PAGES:
            _afford(change)
        logs = not change.deletes and change.as_slot().logs_dirty_pages
        begins = logs and self.vm.answered.begin(key, change.npages)
        begun = _clock()
        error: BaseException | None = None
        self.unsure.add(key)
        try:
            self._ask_kernel(change)
        except BaseException as raised:
            if isinstance(raised, GuestmemError) or not self._is_done(change):
                self.unsure.discard(key)
                if begins:
                    self.vm.answered.end(key)
                raise
            error = raised
        self.counts.edit_ns += _clock() - begun
        if change.deletes:  # what is on record agrees with the kernel before anything else is done
            self._slots.pop(key, None)
        else:
            self._slots[key] = change.as_slot()
        kind = ChangeKind.DELETE if change.deletes else classify(change, old)
        answers = not (change.guest_memfd if old is None else old.guest_memfd)  # what is private is not ours to read
        if old is not None and answers and kind in {ChangeKind.DELETE, ChangeKind.MOVE}:
            self.vm.map_remove(old.base_gfn << PAGE_SHIFT | space)
        if answers and kind in {ChangeKind.CREATE, ChangeKind.MOVE}:
            self.vm.map_insert(change.guest_phys_addr | space, change.memory_size, change.userspace_addr, change.flags)
        if kind is ChangeKind.DELETE:
            self.vm.answered.end(key)
        elif logs or (old is not None and old.logs_dirty_pages):
            self.vm.map_log(change.guest_phys_addr | space, change.npages, key, logs=logs)
        self.unsure.discard(key)
        if error is not None:
            raise error
        return kind

    def _ask_kernel(self, change: Change) -> None:
        """KVM_SET_USER_MEMORY_REGION; MemslotError if it is refused, and then nothing was done.

        ``guest_memfd`` is the VM's file, and one more: 0 is none.
        """
        if change.guest_memfd:
            self.vm.set_user_memory_region2(
                change.slot,
                change.guest_phys_addr,
                change.memory_size,
                change.userspace_addr,
                change.flags,
                change.as_id,
                guest_memfd=change.guest_memfd - 1,
                guest_memfd_offset=change.guest_memfd_offset,
            )
            return
        self.vm.set_user_memory_region(
            change.slot,
            change.guest_phys_addr,
            change.memory_size,
            change.userspace_addr,
            change.flags,
            change.as_id,
        )

    def _is_done(self, change: Change) -> bool:
        """After an exception that does not say whether the kernel did it: asked once more, it has, unless it refuses.

        A slot that is as asked for already is left alone; one that is gone already is EINVAL.
        """
        try:
            self._ask_kernel(change)
        except MemslotError as error:
            return bool(change.deletes and error.errno == errno.EINVAL and change.key in self._slots)
        return True

    def slot(self, slot: int, as_id: int = 0) -> Slot | None:
        """The slot that has this id now."""
        return self._slots.get(SlotKey(as_id, slot))

    def slots(self) -> list[Slot]:
        """All slots, by address space and id."""
        return sorted(self._slots.values())

    # -- vCPUs -----------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop all vCPUs; returns when none is in KVM_RUN."""
        begun = _clock()
        self.counts.slept += self.vm.pause()  # Ctrl-C meanwhile: there is no pause, and it is raised
        self.counts.acks_ns += _clock() - begun
        self.counts.kicks += self.vcpus
        self.counts.pauses += 1

    def resume(self) -> None:
        """End one pause."""
        self.vm.resume()

    def kick(self) -> None:
        """Kick all vCPUs once and wait until each has left the guest."""
        begun = _clock()
        self.counts.slept += self.vm.kick()
        self.counts.acks_ns += _clock() - begun
        self.counts.kicks += self.vcpus

    def answer_mmio(self, answer: bool) -> None:
        """Whether MMIO in a hole is answered at once from the memory behind it (a load guest's; else by the caller)."""
        self._set_holes(at.ANSWER, answer)

    def retry_exits(self, retry: bool, *, fetches_only: bool = False) -> None:
        """Whether exits that fall into ``exits_held()`` wait for its end and are answered from what is there then."""
        if fetches_only:
            raise CapabilityError("engine kvm: it holds all exits that fall into an update, not those of fetches alone")
        self._set_holes(at.RETRY, retry)

    def _set_holes(self, what: int, on: bool) -> None:
        """Switch one way of answering on, or off if it is the one that is on."""
        if on or self._holes == what:
            self._holes = what if on else at.REPORT
            self.vm.set_holes(self._holes)
            self._retries = self._holes == at.RETRY

    @contextmanager
    def exits_held(self) -> Iterator[None]:
        """An update: exits wait for its end, vCPUs that have none run on. Updaters exclude each other; it nests.

        Signals are held off until its end.
        """
        begun = _clock()
        with self._lock:
            self.counts.lock_ns += _clock() - begun
            if self._held or not self._retries:
                yield
                return
            self._held += 1
            try:
                with self.vm.exits_held():
                    yield
            finally:
                self._held -= 1

    def update(self, as_id: int = 0, *others: int) -> AbstractContextManager[Update]:
        """CapabilityError: no kernel has an update in phases."""
        raise CapabilityError(
            f"engine kvm: no kernel can carry out an update in phases (address space {(as_id, *others)})"
        )

    def at_once(self, changes: Sequence[Change], *, wait: bool = True) -> bool:
        """No kernel can."""
        del changes, wait
        return False

    def close(self) -> None:
        """Stop the vCPUs and close the VM."""
        self.vm.close()

    def __enter__(self) -> KvmEngine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
