"""What recorders would have written of a true history, whole or with parts dropped, cut, lost and blurred.

Knows the formats from their sources (QEMU ``trace-events``, strace ``kvm.c``, Linux ``trace_output.c`` and
``include/trace/events/kvm.h``), and nothing of guestmem's readers. What is taken away leaves the traces that the real
recorder leaves: a marker, a header, a kind of event that is not there at all, a file that begins late or ends early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from true_histories import Call, Event, History, VcpuHistory

US = 1000
ORIGIN = 1000 * 10**9
"""The recorders' clock at time 0, in nanoseconds."""
EXIT_NAMES = {2: "KVM_EXIT_IO", 5: "KVM_EXIT_HLT", 6: "KVM_EXIT_MMIO"}
ERRNOS = {"EINTR": 4, "EAGAIN": 11}
GPA = {0: 0, 1: 0x100000, 5: 0x500000}


def stamp(time: int, places: int = 6) -> str:
    """Seconds, cut after so many places."""
    ns = ORIGIN + time
    if places == 0:
        return str(ns // 10**9)
    return f"{ns // 10**9}.{ns % 10**9 // 10 ** (9 - places):0{places}d}"


def rounded(time: int) -> str:
    """Seconds to six places, as ftrace rounds them."""
    return stamp(time + 500)


def qemu_log(history: History, rng: random.Random) -> str:
    """``-trace kvm_set_user_memory`` with stamps: the return of each call; thread and time, or ISO 8601."""
    iso = rng.random() < 0.2
    lines = []
    for call in sorted(history.calls, key=lambda call: call.ended):
        at = stamp(call.ended)
        if iso:
            seconds, micros = divmod((ORIGIN + call.ended) // 1000, 10**6)
            prefix = f"1970-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}.{micros:06d}Z "
        else:
            prefix = f"{call.thread}@{at}:"
        lines.append(prefix + qemu_event(call))
    if rng.random() < 0.05:
        lines.pop()
    return "\n".join(lines) + "\n"


def qemu_event(call: Call) -> str:
    size = 0 if call.what == "delete" else 0x8000
    return (
        f"kvm_set_user_memory AddrSpace#0 Slot#{call.slot} flags=0x0 gpa={GPA[call.slot]:#x} size={size:#x} "
        f"ua={0x7F0000000000 + GPA[call.slot]:#x} ret=0"
    )


class Tracepoints:
    """KVM's tracepoints in a shape: ``ftrace``, ``trace-cmd``, ``perf``, ``perf without CPU``; some kinds only."""

    def __init__(self, rng: random.Random, shape: str, kinds: set[str]) -> None:
        self.rng, self.shape, self.kinds = rng, shape, kinds
        self.with_reason = rng.random() < 0.8
        self.with_index = rng.random() < 0.8

    def line(self, vcpu: VcpuHistory, event: Event) -> str:
        name, fields = self.event(vcpu, event)
        comm = f"CPU {vcpu.index}/KVM"
        if self.shape == "ftrace":
            at = rounded(event.time)
            return f" {comm}-{vcpu.thread}    [{event.cpu:03d}] d..1. {at}: {name}: {fields}"
        if self.shape == "trace-cmd":
            at = rounded(event.time)
            return f" {comm}-{vcpu.thread}  [{event.cpu:03d}]  {at}: {name}:             {fields}"
        cpu = "" if self.shape == "perf without CPU" else f"[{event.cpu:03d}]  "
        return f" {comm}  {vcpu.thread} {cpu}{stamp(event.time)}:       kvm:{name}: {fields}"

    def event(self, vcpu: VcpuHistory, event: Event) -> tuple[str, str]:
        index = f"vcpu {vcpu.index}" if self.with_index else ""
        if event.kind == "entry":
            return "kvm_entry", f"{index}, rip 0xfff0 intr_info 0x00000000 error_code 0x00000000{event.reason}"
        if event.kind == "exit":
            reason = f" reason {event.reason}" if self.with_reason else ""
            return "kvm_exit", f"{index}{reason} rip 0xfff0 info1 0x0000000000000182".strip()
        if event.reason:
            return (
                "kvm_userspace_exit",
                f"reason {'restart' if event.reason == 'EINTR' else 'error'} (-{ERRNOS[event.reason]})",
            )
        return (
            "kvm_userspace_exit",
            f"reason {EXIT_NAMES[event.number]} ({event.number})" if event.number else "reason KVM_EXIT_UNKNOWN (0)",
        )


def tracepoints(history: History, rng: random.Random, changes: Sequence[Call] = ()) -> str:
    """A recording of KVM's tracepoints; with ``changes`` QEMU's ftrace backend wrote them into the same file."""
    shape = "ftrace" if changes else rng.choice(("ftrace", "ftrace", "trace-cmd", "perf", "perf without CPU"))
    kinds = {"entry", "exit", "user_exit"}
    if rng.random() < 0.25:
        kinds = set(
            rng.choice(
                (
                    ("exit",),
                    ("user_exit",),
                    ("entry",),
                    ("entry", "exit"),
                    ("entry", "user_exit"),
                    ("exit", "user_exit"),
                )
            )
        )
    points = Tracepoints(rng, shape, kinds)
    lines: list[tuple[int, int, str]] = []
    """Time, CPU, text."""
    dropped = {0} if len(history.vcpus) > 1 and points.with_index and rng.random() < 0.05 else set()
    for vcpu in history.vcpus:
        if vcpu.index not in dropped:
            lines += [(each.time, each.cpu, points.line(vcpu, each)) for each in vcpu.events if each.kind in kinds]
    for call in changes:
        cpu = rng.randrange(4)
        head = f" qemu-system-x86-{call.thread}    [{cpu:03d}] ..... {rounded(call.ended)}:"
        text = f"{head} tracing_mark_write: {qemu_event(call)}"
        lines.append((call.ended, cpu, text))
    lines.sort(key=lambda line: line[0])
    header = ["# tracer: nop"] if shape == "ftrace" else []
    damage = rng.random()
    if not changes:
        if damage < 0.12:
            lines = _overwrite(lines, rng)
            if shape == "ftrace":
                header.append(f"#\n# entries-in-buffer/entries-written: {len(lines)}/{len(lines) + 7}   #P:4\n#")
            else:
                lines = [line for line in lines if line[0] >= max((_first(lines, cpu) for cpu in range(4)), default=0)]
        elif damage < 0.24:
            lines = _lose(lines, rng, shape, history.missing)
        elif damage < 0.32:
            lines = (
                lines[rng.randrange(len(lines) + 1) :] if rng.random() < 0.5 else lines[: rng.randrange(len(lines) + 1)]
            )
    return "\n".join([*header, *(line[2] for line in lines)]) + "\n"


def _kinds(rng: random.Random) -> set[str]:
    """The kinds of event that were switched on: mostly all."""
    if rng.random() < 0.75:
        return {"entry", "exit", "user_exit"}
    alone = ({"exit"}, {"user_exit"}, {"entry"})
    return set(rng.choice((*alone, {"entry", "exit"}, {"entry", "user_exit"}, {"exit", "user_exit"})))


def _first(lines: list[tuple[int, int, str]], cpu: int) -> int:
    return next((line[0] for line in lines if line[1] == cpu), 0)


def _overwrite(lines: list[tuple[int, int, str]], rng: random.Random) -> list[tuple[int, int, str]]:
    """Each CPU has its newest events left; none has all of them overwritten."""
    kept = []
    for cpu in range(4):
        mine = [line for line in lines if line[1] == cpu]
        if mine:
            kept += mine[rng.randrange(len(mine)) if rng.random() < 0.6 else 0 :]
    return sorted(kept, key=lambda line: line[0])


def _lose(
    lines: list[tuple[int, int, str]], rng: random.Random, shape: str, missing: tuple[int, int]
) -> list[tuple[int, int, str]]:
    """One CPU lost what it had in a while; its recorder says so before that CPU's next event."""
    if not lines:
        return lines
    cpu = rng.choice(lines)[1]
    mine = [i for i, line in enumerate(lines) if line[1] == cpu]
    if rng.random() < 0.5:
        first = rng.randrange(len(mine))
        gone = set(mine[first : first + rng.randrange(1, 8)])
    else:  # while the slot was away, and a little longer
        start, end = missing[0] - rng.randrange(300 * US), missing[1] + rng.randrange(300 * US)
        gone = {i for i in mine if start <= lines[i][0] <= end} or {mine[-1]}
    after = next((i for i in mine if i > max(gone)), len(lines))
    marks = {
        "ftrace": [f"CPU:{cpu} [LOST EVENTS]", f"CPU:{cpu} [LOST {len(gone)} EVENTS]"],
        "trace-cmd": [f"CPU:{cpu} [EVENTS DROPPED]", f"CPU:{cpu} [{len(gone)} EVENTS DROPPED]"],
        "perf": ["PERF_RECORD_LOST lost 3", "LOST 3 EVENTS!"],
        "perf without CPU": ["PERF_RECORD_LOST lost 3", "LOST 3 EVENTS!"],
    }[shape]
    result = []
    for i, line in enumerate([*lines, (0, 0, "")]):
        if i == after:
            result.append((line[0], cpu, rng.choice(marks)))
        if i not in gone and i < len(lines):
            result.append(line)
    return result


def strace(history: History, rng: random.Random) -> str:
    """``strace -f -e trace=ioctl`` from the VM's first call on, with some of ``-ttt -T -e kvm=vcpu``."""
    decode, durations = rng.random() < 0.6, rng.random() < 0.8
    places = 6 if rng.random() < 0.92 else 0
    created = rng.random() < 0.85
    calls: list[tuple[int, int, int, str, str]] = []
    """Begin, end, thread, text up to the argument, result."""
    for call in history.calls:
        size = 0 if call.what == "delete" else 0x8000
        text = (
            f"ioctl(4, KVM_SET_USER_MEMORY_REGION, {{slot={call.slot}, flags=0, guest_phys_addr={GPA[call.slot]:#x}, "
            f"memory_size={size}, userspace_addr={0x7F0000000000 + GPA[call.slot]:#x}}}"
        )
        calls.append((call.began, call.ended, call.thread, text, "0"))
    if created:
        calls.append((US, 2 * US, 7, "ioctl(3, KVM_CREATE_VM, 0", "4"))
        if history.irqchip:
            calls.append((3 * US, 4 * US, 7, "ioctl(4, KVM_CREATE_IRQCHIP, 0", "0"))
        calls += [
            (
                6 * US + 4 * US * vcpu.index,
                8 * US + 4 * US * vcpu.index,
                7,
                f"ioctl(4, KVM_CREATE_VCPU, {vcpu.index}",
                str(5 + vcpu.index),
            )
            for vcpu in history.vcpus
        ]
    hidden = {0} if created and rng.random() < 0.05 else set()
    for vcpu in history.vcpus:
        if vcpu.index in hidden:
            continue
        begun = 0
        for event in vcpu.events:
            if event.kind == "begin":
                begun = event.time
            elif event.kind == "end":
                result = f"-1 {event.reason} (Interrupted system call)" if event.reason else "0"
                if decode and event.number is not None:
                    result += f" ({EXIT_NAMES[event.number]})"
                calls.append((begun, event.time, vcpu.thread, f"ioctl({5 + vcpu.index}, KVM_RUN, 0", result))
    moments = sorted(
        [(each[0], 0, each) for each in calls] + [(each[1], 1, each) for each in calls], key=lambda each: each[:2]
    )
    lines = []
    for i, (time, is_end, one) in enumerate(moments):
        began, ended, thread, text, result = one
        took = f" <{(ended - began) // 10**9}.{(ended - began) % 10**9 // 1000:06d}>" if durations else ""
        whole = i + 1 < len(moments) and moments[i + 1][2] is one and not is_end
        if whole:
            lines.append(f"{thread} {stamp(time, places)} {text}) = {result}{took}")
        elif not is_end:
            lines.append(f"{thread} {stamp(time, places)} {text} <unfinished ...>")
        elif moments[i - 1][2] is not one:
            lines.append(f"{thread} {stamp(time, places)} <... ioctl resumed>) = {result}{took}")
    if rng.random() < 0.08:
        del lines[rng.randrange(len(lines) // 2, len(lines)) :]
    return "\n".join(lines) + "\n"


def qemu_kvm_log(history: History, rng: random.Random) -> str:
    """``-trace 'kvm_*'``: kvm_vcpu_ioctl before a KVM_RUN, kvm_run_exit after one that did not fail; changes."""
    lines = []
    with_begins = rng.random() < 0.8
    if history.irqchip and rng.random() < 0.9:
        lines.append((US, 7, "kvm_vm_ioctl type 0xae60, arg (nil)"))
    for call in history.calls:
        if with_begins:
            lines.append((call.began, call.thread, "kvm_vm_ioctl type 0x4020ae46, arg 0x7ffe13b0c970"))
        lines.append((call.ended, call.thread, qemu_event(call)))
    for vcpu in history.vcpus:
        for event in vcpu.events:
            if event.kind == "begin":
                lines.append(
                    (event.time, vcpu.thread, f"kvm_vcpu_ioctl cpu_index {vcpu.index}, type 0xae80, arg (nil)")
                )
            elif event.kind == "end" and event.number is not None:
                lines.append((event.time, vcpu.thread, f"kvm_run_exit cpu_index {vcpu.index}, reason {event.number}"))
    lines.sort(key=lambda line: line[0])
    if rng.random() < 0.08:
        del lines[rng.randrange(len(lines) // 2, len(lines)) :]
    return "".join(f"{thread}@{stamp(time)}:{text}\n" for time, thread, text in lines)


VMX = {
    "EXTERNAL_INTERRUPT": 1, "CPUID": 10, "HLT": 12, "VMCALL": 18, "IO_INSTRUCTION": 30, "EPT_VIOLATION": 48,
    "EPT_MISCONFIG": 49, "PREEMPTION_TIMER": 52,
}  # fmt: skip


def bpftrace(history: History, rng: random.Random) -> str:
    """The bpftrace program's lines: changes and vCPUs on one clock; where some were lost, it says so somewhere."""
    kinds = _kinds(rng) | ({"begin", "end"} if rng.random() < 0.7 else set())
    lines: list[tuple[int, str]] = []
    for call in history.calls:
        head = f"{{}} 7/{call.thread} [1]"
        size = 0 if call.what == "delete" else 0x8000
        gpa = GPA[call.slot]
        fields = f"slot={call.slot} flags=0 gpa={gpa:x} size={size:x} hva={0x7F0000000000 + gpa:x}"
        lines.append((call.began, f"{head} memslot vm=11 request=4020ae46 {fields}"))
        lines.append((call.ended, f"{head} memslot_end ret=0"))
    changes = len(lines)
    for vcpu in history.vcpus:
        for event in vcpu.events:
            if event.kind not in kinds:
                continue
            text = {
                "begin": "run",
                "end": f"run_end ret={-ERRNOS[event.reason] if event.reason in ERRNOS else 0}",
                "entry": f"kvm_entry vcpu={vcpu.index}",
                "exit": f"kvm_exit vcpu={vcpu.index} isa=1 reason={VMX.get(event.reason, 0)}",
                "user_exit": f"kvm_userspace_exit reason={event.number or 0} errno={-ERRNOS.get(event.reason, 0)}",
            }[event.kind]
            lines.append((event.time, f"{{}} 7/{vcpu.thread} [{event.cpu}] {text}"))
    if rng.random() < 0.1 and len(lines) > changes:
        del lines[rng.randrange(changes, len(lines)) :]  # the last vCPU's end is gone, or all of its events
        lines.append((rng.randrange(history.end), "Lost 12 events"))
    lines.sort(key=lambda line: line[0])
    header = "# guestmem-bpftrace 1 form=syscalls clock=nsecs\n"
    return header + "".join(text.format(ORIGIN + time) + "\n" for time, text in lines)
