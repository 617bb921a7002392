"""In every schedule of two CPUs, a fault brings back no page that was given away, and a join beside it loses nothing:
explored whole over the code that runs; mutants are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from guestmem.explore import Model, Mutation, Scene, explore
from guestmem.stage2.geometry import Geometry

PAGE, BLOCK = 0x1000, 0x8000
FAULT_STATUSES = {"OK": 0, "EPERM": 1, "EAGAIN": 11, "EEXIST": 17}


class Machine:
    """One block of memory of 8 pages, two CPUs, in a scene."""

    def __init__(self, scene: Scene, discipline: str) -> None:
        room = scene.room
        format_ = room("stage2.arm").ArmFormat(Geometry(12, 3, 2, 16), 48, room("stage2.format").Annotations("7.1"))
        pool = room("stage2.pool").Pool(12, base=0x1000_0000)
        self.pkvm = room("stage2.pkvm.el2").Pkvm(
            format_, [(0, BLOCK)], pool=pool, cpus=2, discipline=discipline, max_vms=1, cache=2
        )
        for name, words in (
            ("table", pool.words),
            ("page", pool.pages),
            ("mmu", self.pkvm.host.mmu),
            ("el2", self.pkvm.el2),
        ):
            scene.words(name, words)
        self.scene, self.names = scene, ["first", "second"]
        self.made = room("stage2.pkvm.words").Hyp
        for desk in self.pkvm.host.desks:
            room("stage2.free_list").cache_topup(*self.pkvm.words[:3], desk, 2)

    def threads(self, *calls: tuple[Callable[..., int], tuple[int, ...]]) -> None:
        """One call a CPU."""
        for name, desk, (call, rest) in zip(self.names, self.pkvm.host.desks, calls, strict=True):

            def body(desk: Any, call: Callable[..., int] = call, rest: tuple[int, ...] = rest) -> tuple[Any, int]:
                return desk, call(self.made(*self.pkvm.words, desk, self.pkvm.el2), *rest)

            self.scene.thread(name, body, desk)

        def sound(view: Any) -> None:
            kept = self.pkvm.host.desks
            self.pkvm.host.desks = [view.result(name)[0] for name in self.names]
            try:
                self.pkvm.check()
            finally:
                self.pkvm.host.desks = kept

        self.scene.final("tables and states agree", sound)

    def status(self, name: str, *allowed: str) -> None:
        """What a CPU's call may return."""
        numbers = {FAULT_STATUSES[each] for each in allowed}
        self.scene.final(f"{name} is one of {allowed}", lambda view: view.result(name)[1] in numbers)

    def level(self, ipa: int, level: int | None) -> None:
        """In the end ``ipa`` is mapped at a level, or not at all."""

        def right(view: object) -> bool:
            del view
            found = self.pkvm.host.lookup(ipa)
            return bool((found and found.level) == level)

        self.scene.final(f"{ipa:#x} at level {level}", right)


def fault_and_donation(scene: Scene, discipline: str, page: int) -> None:
    """A page of an empty map is touched, while page 1 goes to the hypervisor."""
    machine = Machine(scene, discipline)
    fault, donate = scene.room("stage2.pkvm.host").host_fault, scene.room("stage2.pkvm.hyp").host_donate_hyp
    machine.threads((fault, (page * PAGE,)), (donate, (1, 1)))
    machine.status("first", *(("OK", "EPERM") if page == 1 else ("OK",)))
    machine.status("second", "OK")
    machine.level(PAGE, None)


def fault_and_join(scene: Scene, discipline: str) -> None:
    """Page 1 comes back, and its table is joined, while another page in it is touched."""
    machine = Machine(scene, discipline)
    machine.pkvm.host_donate_hyp(PAGE, PAGE)
    fault, back = scene.room("stage2.pkvm.host").host_fault, scene.room("stage2.pkvm.hyp").hyp_donate_host
    machine.threads((fault, (2 * PAGE,)), (back, (1, 1)))
    machine.status("first", "OK", "EAGAIN", "EEXIST")
    machine.status("second", "OK")
    machine.level(PAGE, 2)
    machine.level(2 * PAGE, 2)


def join_and_join(scene: Scene, discipline: str) -> None:
    """Two pages of a block come back at once: one CPU joins it, or the other."""
    machine = Machine(scene, discipline)
    machine.pkvm.host_donate_hyp(PAGE, 2 * PAGE)
    back = scene.room("stage2.pkvm.hyp").hyp_donate_host
    machine.threads((back, (1, 1)), (back, (2, 1)))
    machine.status("first", "OK")
    machine.status("second", "OK")
    machine.level(0, 2)


def join_and_donation(scene: Scene, discipline: str) -> None:
    """Page 1 comes back while another page of its block goes."""
    machine = Machine(scene, discipline)
    machine.pkvm.host_donate_hyp(PAGE, PAGE)
    hyp = scene.room("stage2.pkvm.hyp")
    machine.threads((hyp.hyp_donate_host, (1, 1)), (hyp.host_donate_hyp, (2, 1)))
    machine.status("first", "OK")
    machine.status("second", "OK")
    machine.level(PAGE, 3)
    machine.level(2 * PAGE, None)


def model(build: Callable[..., None], discipline: str, **named: int) -> Model:
    name = f"pkvm-{build.__name__}-{discipline}"
    return Model(name, str(build.__doc__), "2 CPUs, 1 block of 8 pages", partial(build, discipline=discipline, **named))


MODELS = [
    model(build, discipline, **named)
    for discipline in ("rwlock", "walk_refs")
    for build, named in (
        (fault_and_donation, {"page": 1}),
        (fault_and_donation, {"page": 2}),
        (fault_and_join, {}),
        (join_and_join, {}),
        (join_and_donation, {}),
    )
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", MODELS, ids=lambda each: f"{each.name}{each.build.keywords.get('page', '')}")
def test_every_schedule_is_sound(each: Model) -> None:
    report = explore(each, seconds=500)
    assert report.clean, report.counterexamples[0].story
    assert report.complete, report.as_dict()
    assert report.agree


MUTANTS = {
    "a fault without the lock": (
        model(fault_and_donation, "rwlock", page=1),
        Mutation(
            "stage2/pkvm/host.py",
            "    read_lock(host, lock, desk[WALKER])\n    page = ONE",
            "    page = ONE",
        ),
    ),
    "a join without a look at the count": (
        model(join_and_donation, "rwlock"),
        Mutation("stage2/pkvm/join.py", " or away(shape, el2, page, level) != 0", ""),
    ),
    "a join that waits for nobody": (
        model(fault_and_join, "walk_refs"),
        Mutation(
            "stage2/pkvm/join.py",
            "if _join_table(hyp, start, level, flags):",
            "if _join_table(hyp, start, level, u64(0)):",
        ),
    ),
    "a fault that takes no part in the protocol": (
        model(fault_and_join, "walk_refs"),
        Mutation("stage2/pkvm/host.py", "page, SHARED | LEAF)", "page, LEAF)"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_found(name: str) -> None:
    its, mutation = MUTANTS[name]
    assert not explore(its, mutations=[mutation], weak=False, seconds=200, shrink_s=0).clean
