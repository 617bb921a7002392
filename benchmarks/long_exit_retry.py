"""On the real kernel: does exit_retry lose anything? Many updates, each of which all vCPUs meet, by kind of code.

    python benchmarks/long_exit_retry.py [--exits 1000000] [--each 10000] [--vcpus 16] [--seconds 600] [--json]

For each kind, some vCPUs run it on a slot that is deleted and re-created by ``transaction(design="exit_retry")``, and
check what it does. The slot comes back only when all have met the hole (or after 20 ms, if one was elsewhere), so that
nothing is left to chance: what is counted are exits that fell inside an update and were answered after it. At the end
each vCPU runs on to the end of its round, so what is lost is exact. Beside it, as controls that must fail:
``sequential``, and exit_retry with one of its rules left out of the production code (a copy of the package, changed in
one place). A control ends as soon as it has lost ENOUGH; one that has lost nothing within its bounds has passed, and
shows that this run could not have seen a loss. Exits with 1 if anything is lost, with 3 if a control passes, with 4 if
a kind did not get its exits within ``--seconds``. Skipped where /dev/kvm cannot be used.

vCPUs spin, and an updater that shares their cores waits some milliseconds for each turn. So it asks for SCHED_FIFO,
and does without where that is not allowed. More vCPUs than cores are more exits an update: one that waits makes room.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from exit_retry_kinds import KINDS, Kind

PAGE = 0x1000
CODE, TABLES, COUNTERS, SLOT_0 = 0x1000, 0x80000, 0x70000, 0x100000
GDT, IDT = 0x78000, 0x79000
SLOT_1, AREA = 0x200000, 0x2000
VCPUS, MOST_VCPUS = 16, 32
CONSTANT = 0x1122334455667788
OPEN_S = 0.02
LOOK_S = 20e-6
SPIN = bytes.fromhex("ebfe")
ENOUGH = 10
"""Losses that end a control."""
BATCH = 64
"""Transactions of a control, at most, between two looks at what it has lost."""


RULES = {
    "an exit waits for the end of the update": (
        "engines/kvm/update_lock.py",
        "    if load_acquire(vm, UPDATES) & ONE == 0:\n        return True\n    give_shared(vm)\n    return False\n",
        "    return True\n",
    ),
    "a failed fetch is made again": (
        "engines/kvm/answers.py",
        "    if not updates_since(vm, own[at.BEGAN]):\n",
        "    if True:\n",
    ),
    "the instruction is completed before the lock is left": (
        "engines/kvm/answers.py",
        "        status = complete(own)\n        if status != NEXT_FRAGMENT:\n            break\n    land(",
        "        status = at.GO_ON\n        break\n    land(",
    ),
    "what the emulator does otherwise is undone, and run again": (
        "engines/kvm/x86/instructions.py",
        "        return AGAIN\n",
        "        return ANSWERED\n",
    ),
    "halves of 16 bytes stay together": (
        "engines/kvm/fragments.py",
        "    if own[at.STAGED] == 8 and size == 8 and host == first + _HALF and first & _WHOLE == 0:\n",
        "    if own[at.STAGED] == 77:\n",
    ),
}
"""Rules of docs/exit-retry.md, each with the place where production keeps it, and what leaves it out."""

CONTROLS = {
    "an exit waits for the end of the update": ("lock inc",),
    "a failed fetch is made again": ("instruction fetch",),
    "the instruction is completed before the lock is left": ("lock inc",),
    "what the emulator does otherwise is undone, and run again": ("tzcnt, lzcnt",),
    "halves of 16 bytes stay together": ("movdqa, one stores and one loads",),
}
"""The kinds that notice."""
SHOWN = ("again", "refused", "writes_first", "crossings")
"""Counters of vCPUs (``engines/kvm/layout.py``) that are printed, over all kinds."""


class Row(NamedTuple):
    """What became of one kind."""

    kind: str
    updates: int
    inside: int
    """Exits that fell inside an update and were answered, or made again, after it."""
    rounds: int
    lost: int
    seconds: float
    """Of the updates."""
    counters: dict[str, int]
    """Those of SHOWN, of all vCPUs."""


class Machine:
    """A VM whose vCPUs run one kind."""

    def __init__(self, kind: Kind, vcpus: int = VCPUS) -> None:
        from guestmem.engines.kvm import identity_tables, user_mode
        from guestmem.vm import Vm

        self.kind, self.vcpus = kind, vcpus
        self.size = AREA * (vcpus + 2)
        self.late = 0
        """Updates that did not wait any longer for a vCPU."""
        self.vm = Vm(vcpus, engine="kvm")
        memory = self.memory = self.vm.memory
        memory.create(0, gpa=0, size=SLOT_0)
        memory.create(1, gpa=SLOT_1, size=self.size)
        memory.write(TABLES, identity_tables(TABLES, 0x400000))
        for index in range(vcpus):
            shares = kind.decides in {"shared", "pair", "lock", "halves"}
            area = SLOT_1 + (0 if shares else AREA * index) + PAGE
            rip = area if kind.decides == "fetch" else CODE + 0x100 * index
            memory.write(rip, bytes.fromhex(kind.code[index % len(kind.code)]))
            if kind.decides == "bad":
                memory.write(area, CONSTANT.to_bytes(8, "little"))
            vcpu = self.vm.engine.vm.vcpus[index]
            vcpu.set_xcr0(7)
            sregs = bytearray(user_mode(vcpu.sregs(), TABLES, avx=True))
            for place, base, limit in ((192, GDT, 0x7F), (208, IDT, 0xFFF)):
                sregs[place : place + 10] = base.to_bytes(8, "little") + limit.to_bytes(2, "little")
            vcpu.set_sregs(bytes(sregs))
            registers = {"rip": rip, "rflags": 2, "rbx": area, "r12": COUNTERS + 8 * index, "rsp": area + 0xF00}
            registers |= {"rcx": 0, "rdx": CONSTANT, "rsi": 1, "r11": 0, "r13": COUNTERS + PAGE}
            vcpu.set_registers(registers)

    def inside(self) -> list[int]:
        """Exits that waited for the end of an update, by vCPU."""
        return [each["held"] for each in self.vm.engine.vm.counts()]

    def keep_open(self) -> None:
        """Have the slot come back only when every vCPU has met the hole, or after a while."""
        from guestmem.engines.kvm import layout as at

        vm = self.vm.engine.vm
        region = vm.set_user_memory_region
        held, again = int(at.HELD), int(at.AFTER_FETCH)
        before = [int(vcpu.words[held]) for vcpu in vm.vcpus]

        def all_wait() -> bool:
            """For this update, or, where a fetch failed in the last one and holds nobody up, still for that one."""
            return all(vcpu.words[held] != was or vcpu.words[again] for vcpu, was in zip(vm.vcpus, before, strict=True))

        def when_all_wait(slot: int, gpa: int, size: int, *rest: int) -> None:
            end = time.monotonic() + OPEN_S
            while size and not vm.ended and not all_wait():
                if time.monotonic() >= end:
                    self.late += 1
                    break
                time.sleep(LOOK_S)
            region(slot, gpa, size, *rest)
            if size:
                before[:] = [int(vcpu.words[held]) for vcpu in vm.vcpus]

        vm.set_user_memory_region = when_all_wait  # type: ignore[assignment,method-assign]

    def finish(self) -> int:
        """Have each vCPU run on to the end of its round, without updates, and stop; how many did not get there."""
        vm = self.vm.engine.vm
        if self.kind.decides not in {"word", "shared", "pair", "lock"} or vm.ended:  # others count what is wrong
            return 0
        starts = [CODE + 0x100 * index + self.kind.start for index in range(self.vcpus)]
        for start in starts:
            self.memory.write(start, SPIN)
        end, turn = time.monotonic() + 200.0, 0.02
        while True:
            vm.start()
            time.sleep(turn)  # longer and longer: those that have come to the end keep the cores from the others
            turn = min(1.0, 1.2 * turn)
            vm.stop()
            late: int = sum(vcpu.registers()["rip"] != start for vcpu, start in zip(vm.vcpus, starts, strict=True))
            if not late or vm.ended or time.monotonic() >= end:
                return late

    def update(self, design: str) -> None:
        """Delete slot 1 and create it again, on the same memory."""
        with self.memory.transaction(design=design) as change:
            host = change.delete(1)
            change.create(1, gpa=SLOT_1, size=self.size, host=host)

    def lost(self) -> int:
        """What memory does not have, and vCPUs that have ended; they are stopped at the end of a round."""
        decides = self.kind.decides
        register = "r11" if decides == "pair" else "rcx"
        rounds = [vcpu.registers()[register] for vcpu in self.vm.engine.vm.vcpus]
        dead = len(self.vm.engine.vm.ended)
        if decides in {"bad", "halves"}:
            return dead + sum(self.word(COUNTERS + 8 * index) for index in range(self.vcpus))
        if decides == "fetch":
            return dead
        if decides == "word":
            missing = [count - self.word(SLOT_1 + AREA * index + PAGE) for index, count in enumerate(rounds)]
        else:
            missing = [sum(rounds) - self.word(COUNTERS + PAGE if decides == "lock" else SLOT_1 + PAGE)]
        return dead + sum(abs(int(each)) for each in missing)

    def word(self, gpa: int) -> int:
        """Eight bytes."""
        held: bytes = self.memory.read(gpa, 8)
        return int.from_bytes(held, "little")


@contextlib.contextmanager
def first_in_turn() -> Iterator[bool]:
    """Have this thread run as soon as it can: SCHED_FIFO, where that is allowed."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, policy, parameter)


def play(name: str, design: str, exits: int, seconds: float, vcpus: int = VCPUS, most: int = sys.maxsize) -> Row:
    """Update until so many exits fell inside, or a vCPU has ended; ``most``: transactions, at most."""
    machine = Machine(KINDS[name], vcpus)
    vm = machine.vm.engine.vm
    updates = 0
    try:
        machine.update(design)  # compiles
        machine.keep_open()
        vm.start()
        with first_in_turn():
            begun = time.monotonic()
            while time.monotonic() - begun < seconds and not vm.ended and updates < most:
                machine.update(design)
                updates += 1
                if updates % 16 == 0 and sum(machine.inside()) >= exits:
                    break
            took = time.monotonic() - begun
        vm.stop()
        late = machine.finish()
        rounds = sum(vcpu.registers()["r11" if machine.kind.decides == "pair" else "rcx"] for vcpu in vm.vcpus)
        counted = vm.counts()
        counters = {counter: sum(each[counter] for each in counted) for counter in SHOWN}
        return Row(name, updates, sum(machine.inside()), rounds, machine.lost() + late, took, counters)
    finally:
        machine.vm.close()


def until_lost(name: str, design: str, most: int, seconds: float, vcpus: int = VCPUS) -> Row:
    """Play in batches, each on a new VM, until ENOUGH is lost; ``most``: transactions, at most, of all batches."""
    total = Row(name, 0, 0, 0, 0, 0.0, dict.fromkeys(SHOWN, 0))
    while total.lost < ENOUGH and total.updates < most and total.seconds < seconds:  # not of compiling
        left = seconds - total.seconds
        row = play(name, design, sys.maxsize, left, vcpus, min(BATCH, most - total.updates))
        total = Row(
            name,
            total.updates + row.updates,
            total.inside + row.inside,
            total.rounds + row.rounds,
            total.lost + row.lost,
            total.seconds + row.seconds,
            {counter: total.counters[counter] + row.counters[counter] for counter in SHOWN},
        )
    return total


def without(rule: str, kinds: list[str], most: int, seconds: float, vcpus: int = VCPUS) -> dict[str, Any]:
    """``until_lost`` in a process of its own, with one rule left out of production."""
    import guestmem

    path, old, new = RULES[rule]
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "guestmem"
        shutil.copytree(Path(guestmem.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        text = (package / path).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"rule {rule!r}: {path} has its place {text.count(old)} times")
        (package / path).write_text(text.replace(old, new))
        bounds = {"--until-lost": most, "--vcpus": vcpus, "--seconds": seconds}
        words = [str(word) for pair in bounds.items() for word in pair]
        words += [word for kind in kinds for word in ("--kind", kind)]
        done = subprocess.run(  # noqa: S603 - this file
            [sys.executable, __file__, "--alone", "--json", *words],
            env={**os.environ, "PYTHONPATH": folder},  # what is compiled is kept by its text
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"lost": 0, "inside": 0, "updates": 0, "why": (done.stdout + done.stderr)[-300:]}
    return {name: sum(row[name] for row in found["kinds"]) for name in ("lost", "inside", "updates")}


def control(rule: str, given: argparse.Namespace) -> dict[str, Any]:
    """What came of exit_retry without a rule; "": of ``sequential``."""
    begun = time.monotonic()
    most, seconds = given.control_updates, given.control_seconds
    if rule:
        found = without(rule, [*CONTROLS[rule]], most, seconds, given.vcpus)
    else:
        row = until_lost("lock inc", "sequential", most, seconds, given.vcpus)
        found = {"lost": row.lost, "inside": row.inside, "updates": row.updates}
    return {**found, "took": time.monotonic() - begun}


def controls_of(given: argparse.Namespace, show: bool) -> dict[str, dict[str, Any]]:
    """Run what must lose; two at a time, since most of it is compiling."""
    controls: dict[str, dict[str, Any]] = {"sequential": control("", given)}
    if show:
        print(f"\ncontrols, each until it has lost {ENOUGH}, or made {given.control_updates} transactions:")
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda rule: (f"without: {rule}", control(rule, given)), CONTROLS)
        for name, found in itertools.chain([*controls.items()], made):
            controls[name] = found
            if show:
                what = f"{found['updates']} transactions, {found['inside']} exits that waited"
                why = f" ({found['why']})" if "why" in found else ""
                said = f"lost {found['lost']}" if found["lost"] else "LOST NOTHING"
                print(f"  {name}: {said} in {what}, {found['took']:.0f} s{why}", flush=True)
    return controls


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="exit_retry over many exits inside updates, by kind of instruction")
    parser.add_argument("--exits", type=int, default=1_000_000, help="exits answered inside an update, of all kinds")
    parser.add_argument("--each", type=int, default=10_000, help="the same, of each kind")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may be given several times")
    parser.add_argument("--vcpus", type=int, default=VCPUS, choices=range(1, MOST_VCPUS + 1), metavar="N")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, for each kind")
    parser.add_argument("--control-updates", type=int, default=2000, help="transactions of each control, at most")
    parser.add_argument("--control-seconds", type=float, default=60.0, help="at most, for each control, once compiled")
    parser.add_argument("--until-lost", type=int, metavar="N", help="end a kind that has lost, or after N transactions")
    parser.add_argument("--alone", action="store_true", help="without the controls")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Run, print, and say by the exit status what came of it."""
    given = arguments()
    from guestmem.engines.kvm import host, unusable

    if why := unusable():
        print(f"skipped: {why}")
        return 0
    kinds = given.kind or [*KINDS]
    wanted = max(given.each, -(-given.exits // len(kinds)))
    begun = time.monotonic()
    rows = []
    show = not given.json
    if show:
        print(f"{host()}; {given.vcpus} vCPUs, {wanted} exits inside updates of each kind\n")
        print(f"{'kind':36}{'transactions':>14}{'exits inside':>14}{'rounds':>16}{'lost':>8}{'exits/s':>9}", flush=True)
    for name in kinds:
        if given.until_lost is None:
            row = play(name, "exit_retry", wanted, given.seconds, given.vcpus)
        else:
            row = until_lost(name, "exit_retry", given.until_lost, given.seconds, given.vcpus)
        rows.append(row)
        if show:
            rate = row.inside / row.seconds
            print(
                f"{row.kind:36}{row.updates:>14}{row.inside:>14}{row.rounds:>16}{row.lost:>8}{rate:>9.0f}", flush=True
            )
    inside, lost = sum(row.inside for row in rows), sum(row.lost for row in rows)
    if show:
        took = time.monotonic() - begun
        print(f"{'all':36}{sum(row.updates for row in rows):>14}{inside:>14}{'':>16}{lost:>8}   {took:.0f} s")
        total = {name: sum(row.counters[name] for row in rows) for name in SHOWN}
        print("counters, of all vCPUs: " + ", ".join(f"{name} {count}" for name, count in total.items()))
    controls = {} if given.alone else controls_of(given, show)
    few = [row.kind for row in rows if row.inside < wanted] if given.until_lost is None else []
    passed = [name for name, what in controls.items() if not what["lost"]]
    if show:
        for kind in few:
            print(f"{kind}: not enough exits within {given.seconds:g} s")
        print(f"in all {time.monotonic() - begun:.0f} s")
    else:
        print(json.dumps({"host": str(host()), "kinds": [row._asdict() for row in rows], "controls": controls}))
    if lost:
        return 1
    return 3 if passed else 4 if few else 0


if __name__ == "__main__":
    sys.exit(main())
