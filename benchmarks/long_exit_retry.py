"""On the real kernel: does exit_retry lose anything? Many updates, each of which all vCPUs meet, by kind of instruction.

    python benchmarks/long_exit_retry.py [--exits 1000000] [--each 10000] [--vcpus 16] [--seconds 600] [--json]

For each kind, some vCPUs run it on a slot that is deleted and re-created by ``transaction(design="exit_retry")``, and
check what it does. The slot comes back only when all have met the hole (or after 20 ms, if one was elsewhere), so that
nothing is left to chance: what is counted are exits that fell inside an update and were answered after it. At the end
each vCPU runs on to the end of its round, so what is lost is exact. Beside it, as controls that must fail:
``sequential``, and exit_retry with one of its rules left out of the production code (a copy of the package, changed in
one place). Exits with 1 if anything is lost, with 3 if a control passes. Skipped where /dev/kvm cannot be used.

vCPUs spin, and an updater that shares their cores waits some milliseconds for each turn. So it asks for SCHED_FIFO,
and does without where that is not allowed. More vCPUs than cores are more exits an update: one that waits makes room.
"""

# ruff: noqa: E501 - one kind of instruction is one line
from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = 0x1000
CODE, TABLES, COUNTERS, SLOT_0 = 0x1000, 0x80000, 0x70000, 0x100000
GDT, IDT = 0x78000, 0x79000
SLOT_1, AREA = 0x200000, 0x2000
VCPUS, MOST_VCPUS = 16, 32
CONSTANT = 0x1122334455667788
OPEN_S = 0.02
LOOK_S = 20e-6
SPIN = bytes.fromhex("ebfe")


class Kind(NamedTuple):
    """What vCPUs run; "bad": [r12] stays 0; "word": the word at rbx counts the rounds; "shared": of both; "pair": 16 bytes do; "lock": what they increment under it does; "halves": of 16 bytes are equal; "fetch": they live."""

    decides: str
    assembly: str
    code: tuple[str, ...]
    """Of all, or of those of even number and of the others."""
    start: int = 0
    """Where a round begins."""


KINDS = {
    "mov load": Kind(
        "bad",
        "l: mov rax,[rbx]; cmp rax,rdx; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; jmp l",
        ("488b034839d0750548ffc1ebf349ff0424ebed",),
    ),
    "mov store, 8 bytes": Kind(
        "word",
        "l: inc rcx; mov [rbx],rcx; cmp [rbx],rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148890b48390b74f549ff0424ebef",),
    ),
    "mov store, 4 bytes": Kind(
        "bad",
        "l: inc rcx; mov [rbx],ecx; cmp [rbx],ecx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1890b390b74f749ff0424ebf1",),
    ),
    "mov store, 2 bytes": Kind(
        "bad",
        "l: inc rcx; mov [rbx+2],cx; cmp [rbx+2],cx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc166894b0266394b0274f349ff0424ebed",),
    ),
    "mov store, 1 byte": Kind(
        "bad",
        "l: inc rcx; mov [rbx+1],cl; cmp [rbx+1],cl; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1884b01384b0174f549ff0424ebef",),
    ),
    "movnti": Kind(
        "word",
        "l: inc rcx; movnti [rbx],rcx; mov rax,[rbx]; cmp rax,rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1480fc30b488b034839c874f149ff0424ebeb",),
    ),
    "setcc, cmovcc": Kind(
        "bad",
        "l: inc rcx; test rcx,1; setne byte ptr [rbx]; xor eax,eax; cmp rcx,rcx; cmove rax,[rbx]; mov rsi,rcx; and rsi,1; cmp al,sil; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148f7c1010000000f950331c04839c9480f44034889ce4883e6014038f074de49ff0424ebd8",),
    ),
    "inc": Kind("word", "l: inc qword ptr [rbx]; inc rcx; jmp l", ("48ff0348ffc1ebf8",)),
    "add, sub": Kind(
        "bad",
        "l: add [rbx],rcx; sub [rbx],rcx; inc rcx; cmp [rbx],rdx; je l; inc qword ptr [r12]; jmp l",
        ("48010b48290b48ffc148391374f249ff0424ebec",),
    ),
    "and, or, xor, not, neg": Kind(
        "bad",
        "l: xor [rbx],rcx; xor [rbx],rcx; not qword ptr [rbx]; not qword ptr [rbx]; neg qword ptr [rbx]; neg qword ptr [rbx]; or qword ptr [rbx],0; and qword ptr [rbx],-1; inc rcx; cmp [rbx],rdx; je l; inc qword ptr [r12]; jmp l",
        ("48310b48310b48f71348f71348f71b48f71b48830b00488323ff48ffc148391374de49ff0424ebd8",),
    ),
    "rol, ror": Kind(
        "bad",
        "l: rol qword ptr [rbx],5; ror qword ptr [rbx],5; inc rcx; cmp [rbx],rdx; je l; inc qword ptr [r12]; jmp l",
        ("48c1030548c10b0548ffc148391374f049ff0424ebea",),
    ),
    "bt, bts, btr": Kind(
        "bad",
        "l: bts qword ptr [rbx],0; btr qword ptr [rbx],0; jnc b; inc rcx; cmp [rbx],rdx; je l; b: inc qword ptr [r12]; jmp l",
        ("480fba2b00480fba3300730848ffc148391374ec49ff0424ebe6",),
    ),
    "imul, bsf, popcnt": Kind(
        "bad",
        "l: inc rcx; mov rax,1; imul rax,[rbx]; cmp rax,rdx; jne b; bsf rax,[rbx]; bsf rsi,rdx; cmp rax,rsi; jne b; popcnt rax,[rbx]; popcnt rsi,rdx; cmp rax,rsi; je l; b: inc qword ptr [r12]; jmp l",
        ("48ffc148c7c001000000480faf034839d0751c480fbc03480fbcf24839f0750ff3480fb803f3480fb8f24839f074d149ff0424ebcb",),
    ),
    "lock inc": Kind("shared", "l: lock inc qword ptr [rbx]; inc rcx; jmp l", ("f048ff0348ffc1ebf7",)),
    "lock xadd": Kind(
        "shared", "l: mov edx,1; lock xadd [rbx],rdx; inc rcx; jmp l", ("ba01000000f0480fc11348ffc1ebf1",)
    ),
    "lock cmpxchg": Kind(
        "shared",
        "l: mov rax,[rbx]; r: lea rdx,[rax+1]; lock cmpxchg [rbx],rdx; jnz r; inc rcx; jmp l",
        ("488b03488d5001f0480fb11375f548ffc1ebed",),
    ),
    "lock bts, btr": Kind(
        "lock",
        "l: lock bts dword ptr [rbx+64],3; jc l; inc qword ptr [r13]; inc rcx; lock btr dword ptr [rbx+64],3; jmp l",
        ("f00fba6b400372f849ff450048ffc1f00fba734003ebe9",),
    ),
    "xchg (a spinlock)": Kind(
        "lock",
        "l: mov eax,1; xchg [rbx+64],eax; test eax,eax; jnz l; inc qword ptr [r13]; mov dword ptr [rbx+64],0; inc rcx; jmp l",
        ("b80100000087434085c075f449ff4500c743400000000048ffc1ebe4",),
    ),
    "lock cmpxchg16b": Kind(
        "pair",
        "mov r9,rbx; mov rax,[r9]; mov rdx,[r9+8]; l: lea rbx,[rax+1]; mov rcx,rdx; lock cmpxchg16b [r9]; jnz l; mov rax,rbx; inc r11; jmp l",
        ("4989d9498b01498b5108488d58014889d1f0490fc70975f24889d849ffc3ebea",),
        start=10,
    ),
    "push, pop": Kind(
        "bad",
        "l: push rcx; pop rax; cmp rax,rcx; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; jmp l",
        ("51584839c8750548ffc1ebf449ff0424ebee",),
    ),
    "call, ret": Kind(
        "bad",
        "l: mov rax,rcx; call f; cmp rax,rcx; jne b; jmp l; f: inc rcx; inc rax; ret; b: inc qword ptr [r12]; jmp l",
        ("4889c8e8070000004839c87509ebf148ffc148ffc0c349ff0424ebe4",),
    ),
    "enter, leave": Kind(
        "bad",
        "l: mov rbp,rcx; mov rsi,rsp; enter 16,0; leave; cmp rbp,rcx; jne b; cmp rsp,rsi; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; mov rsp,rsi; jmp l",
        ("4889cd4889e6c8100000c94839cd750a4839f4750548ffc1ebe649ff04244889f4ebdd",),
    ),
    "rep movsq, stosq, cmpsq": Kind(
        "bad",
        "l: mov r10,rcx; lea rdi,[rbx+0x100]; mov rax,r10; mov ecx,16; rep stosq; lea rsi,[rbx+0x100]; lea rdi,[rbx+0x200]; mov ecx,16; rep movsq; lea rsi,[rbx+0x100]; lea rdi,[rbx+0x200]; mov ecx,16; repe cmpsq; jne b; cmp [rbx+0x278],r10; jne b; lea rcx,[r10+1]; jmp l; b: inc qword ptr [r12]; lea rcx,[r10+1]; jmp l",
        (
            "4989ca488dbb000100004c89d0b910000000f348ab488db300010000488dbb00020000b910000000f348a5488db300010000488dbb00020000b910000000f348a7750f4c3993780200007506498d4a01ebae49ff0424498d4a01eba4",
        ),
    ),
    "movdqa, one stores and one loads": Kind(
        "halves",
        "l: inc rcx; movq xmm0,rcx; punpcklqdq xmm0,xmm0; movdqa [rbx],xmm0; jmp l | l: movdqa xmm1,[rbx]; movq rax,xmm1; psrldq xmm1,8; movq rdx,xmm1; inc rcx; cmp rax,rdx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc166480f6ec1660f6cc0660f7f03ebee", "660f6f0b66480f7ec8660f73d90866480f7eca48ffc14839d074e549ff0424ebdf"),
    ),
    "movups, unaligned": Kind(
        "bad",
        "l: inc rcx; movq xmm0,rcx; punpcklqdq xmm0,xmm0; movups [rbx+4],xmm0; movups xmm1,[rbx+4]; pcmpeqb xmm1,xmm0; pmovmskb eax,xmm1; cmp eax,0xffff; je l; inc qword ptr [r12]; jmp l",
        ("48ffc166480f6ec1660f6cc00f1143040f104b04660f74c8660fd7c13dffff000074dd49ff0424ebd7",),
    ),
    "vmovdqu, 32 bytes": Kind(
        "bad",
        "l: inc rcx; vmovq xmm0,rcx; vpbroadcastq ymm0,xmm0; vmovdqu [rbx],ymm0; vmovdqu ymm1,[rbx]; vpcmpeqb ymm1,ymm1,ymm0; vpmovmskb eax,ymm1; cmp eax,-1; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1c4e1f96ec1c4e27d59c0c5fe7f03c5fe6f0bc5f574c8c5fdd7c183f8ff74de49ff0424ebd8",),
    ),
    "fild, fistp": Kind(
        "bad",
        "l: inc rcx; mov [rbx],rcx; fild qword ptr [rbx]; fistp qword ptr [rbx+8]; cmp [rbx+8],rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148890bdf2bdf7b0848394b0874ef49ff0424ebe9",),
    ),
    "mov across a page": Kind(
        "bad",
        "l: inc rcx; mov [rbx-4],rcx; cmp [rbx-4],rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148894bfc48394bfc74f349ff0424ebed",),
    ),
    "instruction fetch": Kind("fetch", "l: inc rcx; jmp l", ("48ffc1ebfb",)),
}

RULES = {
    "an exit waits for the end of the update": (
        "engines/kvm/update_lock.py",
        "    if load_acquire(vm, UPDATES) & _ONE == 0:\n        return True\n    give_shared(vm)\n    return False\n",
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
}
"""Rules of docs/exit-retry.md, each with the place where production keeps it, and what leaves it out."""

CONTROLS = {
    "an exit waits for the end of the update": ("lock inc",),
    "a failed fetch is made again": ("instruction fetch",),
    "the instruction is completed before the lock is left": ("lock inc",),
}
"""The kinds that notice."""


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

        vm.set_user_memory_region = when_all_wait

    def finish(self) -> int:
        """Have each vCPU run on to the end of its round, without updates, and stop; how many did not get there."""
        vm = self.vm.engine.vm
        if self.kind.decides not in {"word", "shared", "pair", "lock"} or vm.ended:  # others count what is wrong
            return 0
        starts = [CODE + 0x100 * index + self.kind.start for index in range(self.vcpus)]
        for start in starts:
            self.memory.write(start, SPIN)
        end = time.monotonic() + 20.0
        while True:
            vm.start()
            time.sleep(0.02)
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


def play(name: str, design: str, exits: int, seconds: float, vcpus: int = VCPUS) -> Row:
    """Update until so many exits fell inside, or a vCPU has ended."""
    machine = Machine(KINDS[name], vcpus)
    vm = machine.vm.engine.vm
    updates = 0
    try:
        machine.update(design)  # compiles
        machine.keep_open()
        vm.start()
        with first_in_turn():
            begun = time.monotonic()
            while time.monotonic() - begun < seconds and not vm.ended:
                machine.update(design)
                updates += 1
                if updates % 16 == 0 and sum(machine.inside()) >= exits:
                    break
            took = time.monotonic() - begun
        vm.stop()
        late = machine.finish()
        rounds = sum(vcpu.registers()["r11" if machine.kind.decides == "pair" else "rcx"] for vcpu in vm.vcpus)
        return Row(name, updates, sum(machine.inside()), rounds, machine.lost() + late, took)
    finally:
        machine.vm.close()


def without(rule: str, kinds: list[str], exits: int, seconds: float, vcpus: int = VCPUS) -> dict[str, Any]:
    """The same in a process of its own, with one rule left out of production."""
    import guestmem

    path, old, new = RULES[rule]
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "guestmem"
        shutil.copytree(Path(guestmem.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        text = (package / path).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"rule {rule!r}: {path} has its place {text.count(old)} times")
        (package / path).write_text(text.replace(old, new))
        command = [sys.executable, __file__, "--alone", "--json", "--each", str(exits), "--exits", "0"]
        done = subprocess.run(  # noqa: S603 - this file
            [
                *command,
                "--vcpus",
                str(vcpus),
                "--seconds",
                str(seconds),
                *(word for kind in kinds for word in ("--kind", kind)),
            ],
            env={**os.environ, "PYTHONPATH": folder},  # what is compiled is kept by its text
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"lost": 0, "inside": 0, "why": (done.stdout + done.stderr)[-300:]}
    return {name: sum(row[name] for row in found["kinds"]) for name in ("lost", "inside")}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="exit_retry over many exits inside updates, by kind of instruction")
    parser.add_argument("--exits", type=int, default=1_000_000, help="exits answered inside an update, of all kinds")
    parser.add_argument("--each", type=int, default=10_000, help="the same, of each kind")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may be given several times")
    parser.add_argument("--vcpus", type=int, default=VCPUS, choices=range(1, MOST_VCPUS + 1), metavar="N")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, for each kind and each control")
    parser.add_argument("--control-exits", type=int, default=2000, help="exits of each control, at most")
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
        rows.append(row := play(name, "exit_retry", wanted, given.seconds, given.vcpus))
        if show:
            print(
                f"{row.kind:36}{row.updates:>14}{row.inside:>14}{row.rounds:>16}{row.lost:>8}{row.inside / row.seconds:>9.0f}",
                flush=True,
            )
    controls: dict[str, dict[str, Any]] = {}
    if not given.alone:
        row = play("lock inc", "sequential", given.control_exits, given.seconds, given.vcpus)
        controls["sequential"] = {"lost": row.lost, "inside": row.inside}
        for rule, (kind, *_) in CONTROLS.items():
            controls[f"without: {rule}"] = without(rule, [kind], given.control_exits, given.seconds, given.vcpus)
    inside, lost = sum(row.inside for row in rows), sum(row.lost for row in rows)
    if given.json:
        print(json.dumps({"host": str(host()), "kinds": [row._asdict() for row in rows], "controls": controls}))
    else:
        print(
            f"{'all':36}{sum(row.updates for row in rows):>14}{inside:>14}{'':>16}{lost:>8}   {time.monotonic() - begun:.0f} s"
        )
        if any(row.inside < wanted for row in rows):
            print(f"not enough exits within {given.seconds:g} s a kind")
        if controls:
            print("\ncontrols, which must lose:")
            for name, what in controls.items():
                print(
                    f"  {name}: lost {what['lost']} in {what['inside']} exits"
                    + (f" ({what['why']})" if "why" in what else "")
                )
    if lost:
        return 1
    passed = any(not what["lost"] for what in controls.values())
    return 3 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
