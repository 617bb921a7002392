"""How to run the tracers that are installed, so that ``check`` can read what they record.

strace shows the memslot ioctl and KVM_RUN, unless the VMM uses KVM_SET_USER_MEMORY_REGION2; guestmem's bpftrace
program (``recipe``) shows both requests and all of KVM's entries and exits; trace-cmd shows run state only, for
``--run-state``.
"""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING, NamedTuple

from .recipe import recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TRACERS", "Run", "installed", "plan"]

TRACERS = ("strace", "bpftrace", "trace-cmd")
"""In the order in which one is chosen."""
EVENTS = ("kvm:kvm_entry", "kvm:kvm_exit", "kvm:kvm_userspace_exit")


class Run(NamedTuple):
    """What is run: ``argv``; ``program`` is bpftrace's, or ""; ``report`` makes text of what was recorded, or is ()."""

    tracer: str
    argv: tuple[str, ...]
    program: str
    report: tuple[str, ...]
    changes: bool

    def __str__(self) -> str:
        return shlex.join(self.argv)


def installed() -> tuple[str, ...]:
    """The tracers that are there, in order of preference."""
    return tuple(each for each in TRACERS if shutil.which(each))


def plan(
    tracer: str,
    file: str,
    *,
    pid: int | None = None,
    command: Sequence[str] = (),
    program_file: str = "",
    form: str = "syscalls",
    fentry_name: str = "kfunc",
) -> Run:
    """How ``tracer`` records process ``pid``, or runs and records ``command``, into ``file``.

    ``program_file`` is where bpftrace will find its program.

    >>> print(plan("strace", "x.txt", pid=7))
    strace -f -ttt -T -yy -e trace=ioctl -e signal=none -e kvm=vcpu -o x.txt -p 7
    """
    of = ("-p", str(pid)) if pid is not None else ("--", *command)
    if tracer == "strace":
        options = ("-f", "-ttt", "-T", "-yy", "-e", "trace=ioctl", "-e", "signal=none", "-e", "kvm=vcpu", "-o", file)
        return Run(tracer, ("strace", *options, *of), "", (), changes=True)
    if tracer == "bpftrace":
        program = recipe(form, pid="cpid" if pid is None else pid, fentry_name=fentry_name)
        if pid is None:
            # bpftrace refuses a name that two folders of PATH have.
            command = (shutil.which(command[0]) or command[0], *command[1:])
            return Run(
                tracer, ("bpftrace", "-o", file, "-c", shlex.join(command), program_file), program, (), changes=True
            )
        return Run(tracer, ("bpftrace", "-o", file, program_file), program, (), changes=True)
    events = tuple(word for event in EVENTS for word in ("-e", event))
    raw = f"{file}.dat"
    of = ("-P", str(pid)) if pid is not None else ("-F", *command)
    argv = ("trace-cmd", "record", "-C", "mono", "-o", raw, *events, "-c", *of)
    return Run(tracer, argv, "", ("trace-cmd", "report", "-i", raw), changes=False)
