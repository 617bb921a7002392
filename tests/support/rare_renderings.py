"""What the rarer recorders, and strace with its rarer options, would have written of a true history.

Formats from their sources: strace ``strace.c`` (``printleader()``, ``print_stacktrace()``), QEMU
``scripts/simpletrace.py`` and ``scripts/qemu-trace-stap``, Linux ``tools/perf/builtin-trace.c``. Knows nothing of
guestmem's readers. See ``renderings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from renderings import ERRNOS, EXIT_NAMES, GPA, ORIGIN, US, qemu_event, stamp

if TYPE_CHECKING:
    import random

    from true_histories import Event, History

HVA = 0x7F0000000000
REQUESTS = {
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_RUN": 0xAE80,
    "KVM_CHECK_EXTENSION": 0xAE03,
}
FDS = {3: "</dev/kvm<char 10:232>>", 4: "<anon_inode:kvm-vm>"}


@dataclass(frozen=True, slots=True)
class Options:
    """strace's: who, when, what else stands before a call, and how a call looks."""

    on_terminal: bool
    clock: str
    number: bool
    pointer: bool
    stack: bool
    names: bool
    comm: bool
    paths: bool
    literals: str
    durations: bool

    @classmethod
    def drawn(cls, rng: random.Random) -> Options:
        """Some of them, at random."""

        def some() -> bool:
            return rng.random() < 0.3

        return cls(
            rng.random() < 0.5,
            rng.choice(("-ttt", "-tt", "-r", "-r -ttt")),
            some(),
            some(),
            some(),
            some(),
            some(),
            some(),
            rng.choice(("", "", "raw", "verbose")),
            rng.random() < 0.7,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """An ioctl: when, by whom, on which file descriptor, which, its argument as printed, and its result."""

    began: int
    ended: int
    thread: int
    fd: int
    request: str
    argument: str
    result: str


class Strace:
    """Writes lines as strace does with some options."""

    def __init__(self, options: Options, rng: random.Random) -> None:
        self.options, self.rng = options, rng
        self.lines: list[str] = []
        self.alive = {7}
        self.before: int | None = None

    def comm(self, thread: int) -> str:
        if not self.options.comm:
            return ""
        return "<qemu-system-x86>" if thread == 7 else f"<CPU {thread - 100}/KVM>"

    def leader(self, thread: int, time: int) -> str:
        """printleader(): process, time, number of the call, instruction pointer."""
        text = ""
        if not self.options.on_terminal:
            text = f"{thread}{self.comm(thread)} ".ljust(6)
        elif len(self.alive) > 1:
            text = f"[pid {thread:5d}{self.comm(thread)}] "
        clock = self.options.clock
        delta = 0 if self.before is None else time - self.before
        self.before = time
        if clock == "-ttt":
            text += f"{stamp(time)} "
        elif clock == "-tt":
            seconds, micros = divmod((ORIGIN + time) // US, 10**6)
            text += f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{micros:06d} "
        elif clock == "-r":
            text += f"{delta // 10**9:6d}.{delta % 10**9 // 1000:06d} "
        else:
            text += f"{stamp(time)} (+{delta // 10**9:6d}.{delta % 10**9 // 1000:06d}) "
        if self.options.number:
            text += "[  16] "
        if self.options.pointer:
            text += "[00007f0000abcd6b] "
        return text

    def path(self, fd: int) -> str:
        if not self.options.paths:
            return str(fd)
        return f"{fd}{FDS.get(fd, f'<anon_inode:kvm-vcpu:{fd - 5}>')}"

    def begin(self, call: Call) -> str:
        """The call up to its argument."""
        request = call.request
        if self.options.literals == "raw":
            request = f"{REQUESTS[call.request]:#x}"
        elif self.options.literals == "verbose":
            request = f"{REQUESTS[call.request]:#x} /* {call.request} */"
        if self.options.names:
            name = "argp=" if call.argument.startswith("{") else "arg="
            return f"ioctl(fd={self.path(call.fd)}, op={request}, {name}{call.argument}"
        return f"ioctl({self.path(call.fd)}, {request}, {call.argument}"

    def result(self, call: Call) -> str:
        """What stands behind ``=``."""
        text = call.result
        if call.request in ("KVM_CREATE_VM", "KVM_CREATE_VCPU"):
            text = self.path(int(text))
        took = call.ended - call.began
        return f"{text} <{took // 10**9}.{took % 10**9 // 1000:06d}>" if self.options.durations else text

    def whole(self, call: Call, time: int) -> None:
        head = f"{self.begin(call)})"
        self.lines.append(f"{self.leader(call.thread, time)}{head} = {self.result(call)}")
        self.stack()

    def unfinished(self, call: Call, time: int) -> None:
        self.lines.append(f"{self.leader(call.thread, time)}{self.begin(call)} <unfinished ...>")

    def resumed(self, call: Call, time: int) -> None:
        self.lines.append(f"{self.leader(call.thread, time)}<... ioctl resumed>) = {self.result(call)}")
        self.stack()

    def stack(self) -> None:
        if self.options.stack:
            self.lines += [" > /usr/lib/libc.so.6(ioctl+0x3b) [0x107d6b]", " > /usr/bin/qemu(main+0x1b) [0x2d6b]"]

    def attached(self, thread: int) -> None:
        self.alive.add(thread)
        self.lines.append(f"strace: Process {thread} attached")

    def exited(self, thread: int, time: int) -> None:
        head = self.leader(thread, time).replace("[  16] ", "[????] ")
        self.lines.append(f"{head}+++ exited with 0 +++")
        self.alive.discard(thread)


def strace_with_options(history: History, rng: random.Random) -> str:
    """``strace -f -e trace=ioctl`` with ``-N -i -n -r -k -X -Y -yy``, in a file or on a terminal."""
    out = Strace(Options.drawn(rng), rng)
    decode, threads = rng.random() < 0.6, [vcpu.thread for vcpu in history.vcpus]
    moments: list[tuple[int, int, Call]] = []
    calls = _calls(history, decode=decode)
    moments = sorted(
        [(call.began, 0, call) for call in calls] + [(call.ended, 1, call) for call in calls], key=lambda each: each[:2]
    )
    for i, (time, ends, call) in enumerate(moments):
        if time >= 50 * US and out.options.on_terminal and len(out.alive) == 1 and threads:
            for thread in threads:
                out.attached(thread)
        following = moments[i + 1][2] if i + 1 < len(moments) else None
        if not ends and following is call:
            out.whole(call, time)
        elif not ends:
            out.unfinished(call, time)
        elif moments[i - 1][2] is not call:
            out.resumed(call, time)
    end = history.end + 10 * US
    if rng.random() < 0.6:
        for thread in threads:
            end += US
            out.exited(thread, end)
        out.whole(Call(end + 5 * US, end + 6 * US, 7, 3, "KVM_CHECK_EXTENSION", "KVM_CAP_IRQCHIP", "1"), end + 5 * US)
    if rng.random() < 0.08:
        del out.lines[rng.randrange(len(out.lines) // 2, len(out.lines)) :]
    return "\n".join(out.lines) + "\n"


def _calls(history: History, *, decode: bool) -> list[Call]:
    calls = [Call(US, 2 * US, 7, 3, "KVM_CREATE_VM", "0", "4")]
    if history.irqchip:
        calls.append(Call(3 * US, 4 * US, 7, 4, "KVM_CREATE_IRQCHIP", "0", "0"))
    for vcpu in history.vcpus:
        at = 6 * US + 4 * US * vcpu.index
        calls.append(Call(at, at + 2 * US, 7, 4, "KVM_CREATE_VCPU", str(vcpu.index), str(5 + vcpu.index)))
    for each in history.calls:
        size = 0 if each.what == "delete" else 0x8000
        region = (
            f"{{slot={each.slot}, flags=0, guest_phys_addr={GPA[each.slot]:#x}, memory_size={size}, "
            f"userspace_addr={HVA + GPA[each.slot]:#x}}}"
        )
        calls.append(Call(each.began, each.ended, each.thread, 4, "KVM_SET_USER_MEMORY_REGION", region, "0"))
    for vcpu in history.vcpus:
        begun = 0
        for event in vcpu.events:
            if event.kind == "begin":
                begun = event.time
            elif event.kind == "end":
                result = f"-1 {event.reason} (Interrupted system call)" if event.reason else "0"
                if decode and event.number is not None:
                    result += f" ({EXIT_NAMES[event.number]})"
                calls.append(Call(begun, event.time, vcpu.thread, 5 + vcpu.index, "KVM_RUN", "0", result))
    return calls


def simpletrace(history: History, rng: random.Random) -> str:
    """QEMU's binary trace of ``kvm_*`` as simpletrace.py prints it; some of vCPUs may be dropped, and it says so."""
    lines: list[tuple[int, str]] = []
    if history.irqchip and rng.random() < 0.9:
        lines.append((US, "kvm_vm_ioctl {} pid=7 type=0xae60 arg=0x0"))
    with_begins = rng.random() < 0.8
    for call in history.calls:
        size = 0 if call.what == "delete" else 0x8000
        gpa = GPA[call.slot]
        if with_begins:
            lines.append((call.began, "kvm_vm_ioctl {} pid=7 type=0x4020ae46 arg=0x7ffe13b0c970"))
        fields = f"as=0x0 slot={call.slot:#x} flags=0x0 guest_phys_addr={gpa:#x} memory_size={size:#x}"
        text = (
            f"kvm_set_user_memory {{}} pid=7 {fields} userspace_addr={HVA + gpa:#x} fd=0xffffffff fd_offset=0x0 ret=0x0"
        )
        lines.append((call.ended, text))
    for vcpu in history.vcpus:
        for event in vcpu.events:
            if event.kind == "begin":
                text = f"kvm_vcpu_ioctl {{}} pid=7 cpu_index={vcpu.index:#x} type=0xae80 arg=0x0"
            elif event.kind == "end" and event.number is not None:
                text = f"kvm_run_exit {{}} pid=7 cpu_index={vcpu.index:#x} reason={event.number:#x}"
            else:
                continue
            lines.append((event.time, text))
    other = "memory_region_ops_read {} pid=7 cpu_index=0x0 value=0x1"
    lines += [(rng.randrange(history.end), other) for _ in range(rng.randrange(20))]
    lines.sort()
    if rng.random() < 0.1:
        first = rng.randrange(len(lines))
        gone = [i for i in range(first, min(first + 9, len(lines))) if "kvm_v" in lines[i][1] or "exit" in lines[i][1]]
        if gone:
            at = lines[gone[0]][0]
            lines = [line for i, line in enumerate(lines) if i not in gone]
            lines.append((at, f"Dropped_Event {{}} pid=7 num_events_dropped={len(gone):#x}"))
            lines.sort()
    if rng.random() < 0.08:
        del lines[rng.randrange(len(lines) // 2, len(lines)) :]
    before = lines[0][0]
    texts = []
    for time, text in lines:
        texts.append(text.format(f"{(time - before) / 1000:.3f}"))
        before = time
    return "\n".join(texts) + "\n"


def stap(history: History, rng: random.Random) -> str:
    """``qemu-trace-stap``: process and nanoseconds; whichever thread it was."""
    lines = [
        f"7@{ORIGIN + call.ended} {qemu_event(call)}" for call in sorted(history.calls, key=lambda call: call.ended)
    ]
    if rng.random() < 0.05:
        lines.pop()
    return "\n".join(lines) + "\n"


def perf_trace(history: History, rng: random.Random) -> str:
    """``perf trace -T -e ioctl``, with KVM's tracepoints or without: milliseconds of the clock."""
    with_calls, with_points = rng.choice(((True, True), (True, False), (False, True)))
    kinds = {"entry", "exit", "user_exit"} if rng.random() < 0.8 else {rng.choice(("entry", "exit", "user_exit"))}
    moments: list[tuple[int, int, str, int, str]] = []
    """Time, thread, kind of line, duration, the rest."""
    for vcpu in history.vcpus:
        begun, name = 0, f"CPU {vcpu.index}/KVM/{vcpu.thread}"
        head = f"ioctl(fd: {12 + vcpu.index}<anon_inode:kvm-vcpu:{vcpu.index}>, cmd: KVM_RUN)"
        for event in vcpu.events:
            result = f"-1 {event.reason} (Interrupted system call)" if event.reason and event.kind == "end" else "0"
            if event.kind == "begin":
                begun = event.time
            if event.kind in ("begin", "end") and with_calls:
                moments.append((event.time, vcpu.thread, event.kind, event.time - begun, f"{name} |{head}|{result}"))
            elif event.kind in kinds and with_points:
                fields = {
                    "entry": f"kvm_entry(vcpu_id: {vcpu.index}, rip: 65520, immediate_exit: {bool(event.reason):d})",
                    "exit": f"kvm_exit(vcpu_id: {vcpu.index}, guest_rip: 65520, isa: 1)",
                    "user_exit": f"kvm_userspace_exit(reason: {event.number or 0}, errno: {_errno(event)})",
                }[event.kind]
                moments.append((event.time, vcpu.thread, "point", 0, f"{name} kvm:{fields}"))
    moments.sort(key=lambda each: each[0])
    lines = []
    open_calls: dict[int, int] = {}
    for i, (time, thread, kind, duration, text) in enumerate(moments):
        if kind == "point":
            lines.append(f"{_ms(time)} {text}")
            continue
        name, head, result = text.split("|")
        if kind == "begin":
            following = moments[i + 1] if i + 1 < len(moments) else None
            if following is not None and following[1] == thread and following[2] == "end":
                continue
            lines.append(f"{_ms(time)} (         ): {name}{head} ...")
            open_calls[thread] = time
        elif thread in open_calls:
            del open_calls[thread]
            lines.append(
                f"{_ms(time - duration)} ({duration / 1e6:6.3f} ms): {name} ... [continued]: ioctl()) = {result}"
            )
        else:
            lines.append(f"{_ms(time - duration)} ({duration / 1e6:6.3f} ms): {name}{head} = {result}")
    if rng.random() < 0.15 and lines:
        lines = lines[rng.randrange(len(lines)) :] if rng.random() < 0.5 else lines[: rng.randrange(len(lines)) + 1]
    return "\n".join(lines) + "\n"


def _took(ended: int, duration: int) -> str:
    return f"{_ms(ended - duration)} ({duration / 1e6:6.3f} ms):"


def _errno(event: Event) -> int:
    return -ERRNOS.get(event.reason, 0)


def _ms(time: int) -> str:
    return f"{(ORIGIN + time + 500) // 1000 / 1000:10.3f}"
