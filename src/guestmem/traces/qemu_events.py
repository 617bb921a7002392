"""What QEMU's trace events mean, whichever backend printed them: see ``qemu``."""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING

from .columns import Plain
from .evidence import Irqchip
from .qemu_prefix import Prefix
from .requests import request_name
from .timeline import DirtyLogClear, DmaChange, GlobalDirtyChange

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .event_pieces import EventChanges
    from .recording import Recording

__all__ = ["FIELDS_BY_NAME", "QemuEvents", "carry_out", "is_one_vm", "threads_of"]

FIELDS_BY_NAME = {
    "kvm_set_user_memory": ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr", "ret"),
    "kvm_clear_dirty_log": ("slot", "start", "size"),
    "global_dirty_changed": ("bitmask",),
    "kvm_run_exit": ("cpu_index", "reason"),
    "kvm_vcpu_ioctl": ("cpu_index", "type"),
    "kvm_vm_ioctl": ("type",),
    "vfio_listener_region_add_ram": ("iova_start", "iova_end"),
    "vfio_listener_region_del": ("start", "end"),
}
"""Arguments of each event by the names that ``trace-events`` gives them, which simpletrace.py and LTTng print."""
GUEST_MEMFD_FLAGS = {"4", "5", "6", "7"}
"""Flags, in hex, that have KVM_MEM_GUEST_MEMFD."""
GUEST_MEMFD = re.compile(
    r"\b(?:guest_memfd|restricted_fd|fd)=(\d{1,10}|0x[0-9a-f]{1,8})\b.*?_offset=(0x[0-9a-f]{1,16})"
)


class QemuEvents:
    """What QEMU's events mean, whichever backend printed them."""

    __slots__ = ("_began", "_recording", "_saw_number")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._began: dict[int | None, float] = {}
        """When each thread issued the memslot ioctl of which the change is still to come (``kvm_vm_ioctl``)."""
        self._saw_number: set[int] = set()

    @property
    def is_told_of_calls(self) -> bool:
        """Whether the trace has ``kvm_vm_ioctl`` or ``kvm_vcpu_ioctl`` too."""
        return bool(self._began or self._saw_number)

    def may_take(self, changes: EventChanges) -> bool:
        """Whether plain changes of QEMU's log say no more than themselves."""
        threads = threads_of(changes)
        outside = self._saw_number.intersection(threads)
        return not self._began and outside == set(changes.outside) and is_one_vm(self._recording, threads)

    def change(self, number: int, text: str, fields: Sequence[str], prefix: Prefix) -> None:
        """A kvm_set_user_memory: address space, slot, flags, gpa, size, ua (without 0x), ret."""
        as_id, slot, flags, gpa, size, hva, ret = fields
        key = int(slot)
        if as_id is not None:
            if key > 0xFFFF or int(as_id) > 0xFFFF:
                self._recording.bad_line("AddrSpace# and Slot# have 16 bits each", number, text)
            key |= int(as_id) << 16
        time, thread = prefix.time, prefix.thread
        recording = self._recording
        if recording.format != "qemu":
            recording.claim("qemu", number, text)
        if prefix.cpu is not None:
            recording.changes_in_ftrace = True
        if prefix.why:
            recording.note(prefix.why, number)
        recording.machines.change(
            number,
            text,
            key=prefix.process,
            slot=key,
            flags=int(flags, 16),
            gpa=int(gpa, 16),
            size=int(size, 16),
            hva=int(hva, 16),
            ret=int(ret),
            time=time,
            thread=thread,
            began=self._began.pop(thread, None) if self._began else None,
            ended=time,
            hides_delete=True,
        )
        if time is not None and self._saw_number:
            self._elsewhere(thread, time)
        if flags in GUEST_MEMFD_FLAGS and (bound := GUEST_MEMFD.search(text)) is not None:
            fd = int(bound[1], 0)
            if fd < 1 << 31:  # -1 as the simple backend prints it
                recording.guest_memfds[number] = fd, int(bound[2], 16)

    def vcpu_ioctl(self, index: int, request: int, prefix: Prefix) -> None:
        """A kvm_vcpu_ioctl, which is about to be made."""
        if prefix.time is None or not self._is_ours(prefix):
            return
        run = self._recording.run
        thread = _vcpu_thread(prefix.thread, index)
        if request_name(request) == "KVM_RUN":
            if thread not in self._saw_number:
                self._saw_number.add(thread)
                self._recording.tells_calls = True
                run.number(thread, index)
                run.source = "QEMU's kvm_vcpu_ioctl and kvm_run_exit"
                run.run_begin(thread, prefix.time)
            else:
                run.run_begins_again(thread, prefix.time)
        else:
            run.saw(prefix.time)
            self._elsewhere(thread if prefix.thread is None else prefix.thread, prefix.time)

    def run_exit(self, index: int, reason: int, prefix: Prefix) -> None:
        """A kvm_run_exit: KVM_RUN has returned."""
        if prefix.time is None or not self._is_ours(prefix):
            return
        run = self._recording.run
        thread = _vcpu_thread(prefix.thread, index)
        if thread not in self._saw_number:
            self._saw_number.add(thread)
            self._recording.tells_calls = True
            run.number(thread, index)
            run.source = run.source or "QEMU's kvm_run_exit"
        run.run_end(thread, prefix.time, reason=reason)

    def vm_ioctl(self, request: int, prefix: Prefix) -> None:
        """A kvm_vm_ioctl, which is about to be made."""
        if prefix.time is None:
            return
        name = request_name(request)
        if name.startswith("KVM_SET_USER_MEMORY_REGION"):
            self._began.setdefault(prefix.thread, prefix.time)
            self._recording.tells_calls = True
        elif name == "KVM_CREATE_IRQCHIP":
            self._recording.run.irqchip = Irqchip.KERNEL
        if self._saw_number:
            self._elsewhere(prefix.thread, prefix.time)

    def by_name(self, number: int, text: str, event: str, values: dict[str, int], prefix: Prefix) -> None:
        """An event of which the arguments stand there by name."""
        missing = [name for name in FIELDS_BY_NAME.get(event, ()) if name not in values]
        if missing and not (event == "vfio_listener_region_add_ram" and "start" in values):
            self._recording.bad_line(f"{event}: no {missing[0]}= can be read", number, text)
        if event == "kvm_set_user_memory":
            as_id = values.get("as", values.get("as_id"))
            hexadecimal = [f"{values[name] & ((1 << 64) - 1):x}" for name in FIELDS_BY_NAME[event][1:5]]
            fields = (
                None if as_id is None else str(as_id),
                str(values["slot"]),
                *hexadecimal,
                str(_int32(values["ret"])),
            )
            self.change(number, text, fields, prefix)  # type: ignore[arg-type]  # None: the slot has it
        elif event == "kvm_clear_dirty_log":
            self.clear_dirty_log(number, text, values["slot"], values["start"], values["size"], prefix)
        elif event == "global_dirty_changed":
            self.global_dirty(number, text, values["bitmask"], prefix)
        elif event == "kvm_run_exit":
            self.run_exit(values["cpu_index"], values["reason"], prefix)
        elif event == "kvm_vcpu_ioctl":
            self.vcpu_ioctl(values["cpu_index"], values["type"], prefix)
        elif event == "kvm_vm_ioctl":
            self.vm_ioctl(values["type"], prefix)
        elif event == "vfio_listener_region_add_ram":
            start = values.get("iova_start", values.get("start", 0))
            end = values.get("iova_end", values.get("end", 0))
            self.dma(number, start, end, values.get("vaddr", 0), prefix)
        elif event == "vfio_listener_region_del":
            self.dma(number, values["start"], values["end"], None, prefix)

    def clear_dirty_log(self, number: int, text: str, slot: int, start: int, npages: int, prefix: Prefix) -> None:
        """A kvm_clear_dirty_log."""
        self._recording.claim("qemu", number, text)
        self._recording.dirty_log_clears.append(
            DirtyLogClear(slot >> 16, slot & 0xFFFF, start, npages, number, prefix.time, prefix.thread)
        )

    def global_dirty(self, number: int, text: str, bitmask: int, prefix: Prefix) -> None:
        """A global_dirty_changed."""
        self._recording.claim("qemu", number, text)
        self._recording.global_dirty_changes.append(GlobalDirtyChange(bitmask, number, prefix.time, prefix.thread))

    def dma(self, number: int, start: int, last: int, hva: int | None, prefix: Prefix) -> None:
        """A vfio_listener_region_add_ram, or with ``hva`` None a vfio_listener_region_del; ``last`` is included."""
        size = max(last - start + 1, 0)
        self._recording.dma_changes.append(DmaChange(start, size, hva, number, prefix.time, prefix.thread))

    def _elsewhere(self, thread: int | None, time: float) -> None:
        if thread in self._saw_number:
            assert thread is not None
            self._recording.run.elsewhere(thread, time)

    def knows(self, thread: int) -> bool:
        """Whether ``thread`` runs a vCPU of the VM that is read, and its number was told."""
        return thread in self._saw_number and self._recording.machines.is_chosen(None, thread)

    def _is_ours(self, prefix: Prefix) -> bool:
        return self._recording.machines.is_chosen(prefix.process, prefix.thread)


def threads_of(changes: EventChanges) -> set[int]:
    """The threads that made changes of a piece."""
    return set(array("q", changes.columns[5]))


def is_one_vm(recording: Recording, threads: Iterable[int]) -> bool:
    """Whether changes that these threads make, as the log tells, are certainly of the VM that is read."""
    if not recording.wants_changes or recording.format != "qemu":
        return False
    return recording.machines.current_of(None, threads) is not None


def carry_out(recording: Recording, number: int, changes: EventChanges) -> int:
    """Carry out the changes of a piece, of which the first line has ``number``; how many were carried out."""
    replay = recording.machines.current_of(None, threads_of(changes))
    assert replay is not None
    return replay.take([number + row for row in changes.rows], Plain.of_bytes(changes.columns))


def _vcpu_thread(thread: int | None, index: int) -> int:
    """The thread of a vCPU; where the trace does not tell, a number below 0 that stands for vCPU ``index``."""
    return -1 - index if thread is None else thread


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
