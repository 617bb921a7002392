"""Which VM of a trace a change belongs to.

Some recordings name the VM: strace its file descriptor, simpletrace, ``qemu-trace-stap`` and system logs the process.
QEMU's log names a thread at most; then a change belongs to the VM of which the thread has issued changes before, or
whose slots allow it; and a thread that starts over with slots that are there already, on other host memory, is a second
VM's. A log of libvirt's says where QEMU was started again.

One VM is read. If there are several, ``--vm`` chooses, and without it the trace is refused, with what to choose from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import TraceError
from .replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from .late_start import AssumedSlot

__all__ = ["Machine", "Machines"]


class Machine:
    """One VM: ``key`` is what the format names it by, ``label`` what ``--vm`` takes; ``line`` is its first."""

    __slots__ = ("chosen", "key", "label", "line", "replay", "threads", "what")

    def __init__(
        self, key: int | str | None, label: str, what: str, line: int, replay: Replay, *, chosen: bool
    ) -> None:
        self.key, self.label, self.what, self.line = key, label, what, line
        self.replay, self.chosen = replay, chosen
        self.threads: set[int | None] = set()

    def __str__(self) -> str:
        return f"{self.what} {self.label}"


class Machines:
    """The VMs of one trace. ``selector`` is what ``--vm`` said, or None."""

    __slots__ = (
        "_assumed",
        "_births",
        "_chosen",
        "_current",
        "_machines",
        "_restarted",
        "_what",
        "on_change",
        "path",
        "selector",
        "version",
    )

    def __init__(self, path: str, selector: str | None, assumed: tuple[AssumedSlot, ...] = ()) -> None:
        self.path, self.selector = path, selector
        self._assumed = assumed
        self.version = 0
        """Another one says that ``is_chosen`` may say something else of a thread."""
        self.on_change: Callable[[float | None, bool | None], None] = _nothing
        """Told the time of each change of the VM that is read, and whether it takes memory away."""
        self._machines: list[Machine] = []
        self._current: Machine | None = None
        self._chosen: Machine | None = None
        self._restarted = False
        self._births: dict[int | str | None, tuple[int | None, int]] = {}
        self._what = {True: "process", False: "thread"}

    @property
    def replay(self) -> Replay:
        """The slots and changes of the VM that is read; empty if none has been found."""
        return Replay(self.path) if self._chosen is None else self._chosen.replay

    @property
    def key(self) -> int | str | None:
        """What the format names the VM that is read by."""
        return None if self._chosen is None else self._chosen.key

    def names_vms_by(self, what: str) -> None:
        """The format names VMs by ``what``: "fd", say."""
        self._what = {True: what, False: "thread"}

    def current_of(self, key: int | str | None, threads: Iterable[int | None]) -> Replay | None:
        """The replay of the VM that is read, if changes of ``threads`` are certainly that VM's."""
        machine = self._current
        if machine is None or not machine.chosen or machine.key != key or self._restarted:
            return None
        return machine.replay if machine.threads.issuperset(threads) else None

    def change(self, number: int, text: str, *, key: int | str | None, **call: Any) -> None:
        """A change: to its VM, if it is the one that is read. Raises TraceError if there are several to choose from."""
        machine = self._current
        if machine is None or machine.key != key or call["thread"] not in machine.threads or self._restarted:
            machine = self._find(number, text, key, call)
        if machine.chosen:
            self.on_change(call["time"], None if call["ret"] < 0 else call["size"] == 0)
            machine.replay.change(number, text, **call)
        else:
            try:
                machine.replay.change(number, text, **call)
            except TraceError:
                return  # nobody asked for it

    def created(self, key: int, thread: int | None, line: int) -> None:
        """A VM was made (KVM_CREATE_VM), which will be named ``key``."""
        self._births[key] = thread, line
        self._current = None

    def begins_anew(self, number: int) -> None:
        """Another VMM starts here, as a log says."""
        del number
        self._restarted = bool(self._machines)
        self._births.clear()

    def is_chosen(self, key: int | None, thread: int | None) -> bool:
        """Whether a vCPU's event can be of the VM that is read; ``key`` is what the format names VMs by, or None."""
        machines = self._machines
        if not machines:
            return self.selector is None or key is None or _named(key, self.selector)
        if len(machines) == 1:
            only = machines[0]
            return not only.chosen or key is None or only.key is None or _named(key, only.key)
        for machine in machines:
            if thread is not None and thread in machine.threads and (key is None or _named(key, machine.key)):
                return machine.chosen
        return self._chosen is None or key is None or _named(key, self._chosen.key)

    def finish(self) -> None:
        """The trace is over. Raises TraceError if the VM that was asked for is not there."""
        if self.selector is not None and self._machines and self._chosen is None:
            there = ", ".join(map(str, self._machines))
            what = self._machines[0].what
            preposition = "on" if what == "fd" else "of"
            raise TraceError(
                f"no memslot change {preposition} {what} {self.selector}; there are some {preposition} {there}",
                path=self.path,
            )
        if self._chosen is not None:
            self._chosen.replay.finish()

    def _find(self, number: int, text: str, key: int | str | None, call: dict[str, Any]) -> Machine:
        """The VM of a change that the last one's need not be."""
        thread = call["thread"]
        same = [machine for machine in self._machines if machine.key == key]
        birth = self._births.get(key)
        if (
            self._restarted
            or not same
            or (
                birth is not None
                and birth[1] > same[-1].line
                and (thread == birth[0] or thread not in same[-1].threads)
            )
        ):
            machine = self._new(number, text, key, thread)
        else:
            machine = self._of_thread(same, thread, call) or self._by_slots(number, text, same, call)
        self._restarted = False
        if thread not in machine.threads:
            machine.threads.add(thread)
            self.version += 1
        self._current = machine
        return machine

    @staticmethod
    def _of_thread(same: list[Machine], thread: int | None, call: dict[str, Any]) -> Machine | None:
        """The latest VM of which ``thread`` issued changes."""
        del call
        if thread is None:
            return same[-1] if len(same) == 1 else None
        return next((machine for machine in reversed(same) if thread in machine.threads), None)

    def _by_slots(self, number: int, text: str, same: list[Machine], call: dict[str, Any]) -> Machine:
        """The VM whose slots allow a change of a thread that has issued none so far; a new one if it starts over."""
        allowing = [machine for machine in same if machine.replay.allows(**call)]
        if len(allowing) == 1:
            return allowing[0]
        if allowing:
            by_delete = [machine for machine in allowing if machine.replay.holds(**call)]
            if len(by_delete) == 1:
                return by_delete[0]
            message = f"a thread's first change could be of {' or '.join(map(str, allowing))}: give a trace of one VM"
            raise TraceError(message, path=self.path, line=number, text=text.strip())
        if any(machine.replay.starts_over(**call) for machine in same):
            return self._new(number, text, same[0].key, call["thread"])
        return same[-1]

    def _new(self, number: int, text: str, key: int | str | None, thread: int | None) -> Machine:
        twins = [machine for machine in self._machines if machine.key == key] if key is not None else []
        ordinal = str(len(self._machines) + 1)
        if key is not None:
            what = self._what[True]
            label = f"{key}.{len(twins) + 1}" if twins else str(key)
        elif thread is not None and all(machine.label != str(thread) for machine in self._machines):
            what, label = self._what[False], str(thread)
        else:
            what, label = "number", ordinal
        wanted = self.selector
        names = {label, f"{label}.1" if key is not None else ordinal}
        if isinstance(key, str) and not any(_named(key.partition(":")[0], each.key) for each in self._machines):
            names.add(key.partition(":")[0])
        chosen = wanted in names
        machine = Machine(key, label, what, number, Replay(self.path, self._assumed), chosen=chosen)
        if key in self._births:
            machine.replay.from_start = True
        if wanted is None:
            if self._machines:
                self._choose(number, text, machine, twins)
            machine.chosen = True
        if machine.chosen and self._chosen is None:
            self._chosen = machine
        self._machines.append(machine)
        return machine

    def _choose(self, number: int, text: str, machine: Machine, twins: list[Machine]) -> NoReturn:
        first = self._machines[0]
        if twins:
            born = self._births.get(machine.key, (None, number))[1]
            message = (
                f"memslots of two VMs one after the other, both on {machine.what} {machine.key} (the second was "
                f"created in line {born}): choose one with --vm {machine.key}.1 or --vm {machine.label}"
            )
        else:
            where = "" if machine.what == "fd" else f" (a second one begins here; the first did in line {first.line})"
            if machine.what == "number":
                message = f"memslots of two VMs{where}: choose one with --vm 1 or --vm 2"
            else:
                message = (
                    f"memslots of two VMs, {first} and {machine}{where}: choose one with --vm {first.label} or "
                    f"--vm {machine.label}"
                )
        raise TraceError(message, path=self.path, line=number, text=text.strip())


def _named(key: int | str, name: int | str | None) -> bool:
    """Whether ``key``, a process or a file descriptor, is the VM's ``name``, or what its name begins with."""
    if name is None or name == key:
        return True
    text = str(name)
    return str(key) in (text, text.partition(":")[0], text.partition(".")[0])


def _nothing(time: float | None, deletes: bool | None) -> None:
    del time, deletes
