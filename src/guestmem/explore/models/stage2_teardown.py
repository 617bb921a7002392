"""pKVM: a guest's end, leaf by leaf, while the host faults on what returns; pins of the hypervisor."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import PAGE
from .stage2_donate import EAGAIN, EEXIST, EPERM, GIVEN, OK, give_words, machine_and_guest

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_EBUSY = 16
_LENT = GIVEN + PAGE
_AT_ONCE = 1


def teardown(scene: Scene) -> None:
    """A dying guest owns a page and borrows one; one CPU gives back a leaf a call, one touches the page it owned."""
    machine, guest = machine_and_guest(scene, 8)
    machine.host_donate_guest(guest, GIVEN, 0)
    machine.host_share_guest(guest, _LENT, PAGE)
    machine.start_teardown(guest)
    give_words(scene, machine, guest, 1)
    host, back = scene.room("stage2.pkvm.host"), scene.room("stage2.pkvm.reclaim")
    arrays, end = machine.words, 1 << machine.format.geometry.ipa_bits

    def toucher(desk: Own) -> tuple[Own, int]:
        status: int = host.host_fault(host.Hyp(*arrays, desk, machine.el2), GIVEN)
        assert status in {OK, EEXIST, EAGAIN, EPERM}, f"the fault said {status}"
        return desk, status

    def ender(desk: Own) -> tuple[Own, int]:
        start = calls = 0
        while start < end:
            hyp = back.Hyp(*arrays, desk, machine.el2)
            start = int(back.teardown_guest(hyp, guest.table.mmu, guest.handle, start, _AT_ONCE))
            calls += 1
        return desk, calls

    scene.thread("toucher", toucher, machine.host.desks[0])
    scene.thread("ender", ender, machine.host.desks[1])

    def sound(view: View) -> None:
        mine, mine.host = copy.copy(machine), machine.host
        before, machine.host.desks = machine.host.desks, [view.result(name)[0] for name in ("toucher", "ender")]
        try:
            mine.check()
            assert view.result("ender")[1] == 3, "a call gives back one leaf, and the last finds none"
            assert machine.vm_pages(guest) == (0, 0), f"a dying guest has {machine.vm_pages(guest)} pages left"
            for phys in (GIVEN, _LENT):
                owner = machine.ownership(phys)
                assert owner.host.name == "OWNED", f"in the end {phys:#x} is {owner}"
            assert all(guest.table.lookup(page * PAGE) is None for page in range(2)), "the guest still maps a page"
        finally:
            machine.host.desks = before

    scene.final("all is the host's again", sound)


def pinned(scene: Scene) -> None:
    """The hypervisor pins a page that it borrows, and lets it go; the host ends the share, and tries once more."""
    machine, guest = machine_and_guest(scene, 8)
    machine.host_share_hyp(GIVEN, PAGE)
    give_words(scene, machine, guest, 1)
    hyp, page = scene.room("stage2.pkvm.hyp"), GIVEN // PAGE
    shape, host_mmu = machine.words[0], machine.host.mmu
    atomics, ownership = scene.room("atomics"), scene.room("stage2.pkvm.ownership")
    word = int(ownership.page_word(machine.el2, page))

    def pinner() -> int:
        status: int = hyp.hyp_pin(shape, host_mmu, machine.el2, page, True)
        assert status in {OK, EPERM}, f"the pin said {status}"
        if status == OK:
            before = ownership.host_state(machine.el2, page)
            assert before == _shared(scene), f"a page that is pinned has state {before} with the host"
            atomics.load_relaxed(machine.el2, word)
            after = ownership.host_state(machine.el2, page)
            assert after == before, "the host took back a page that was pinned"
            again: int = hyp.hyp_pin(shape, host_mmu, machine.el2, page, False)
            assert again == OK, f"the end of the pin said {again}"
            assert hyp.hyp_pin(shape, host_mmu, machine.el2, page, False) == EPERM, "one pin was dropped twice"
        return status

    def ender() -> int:
        statuses = [int(hyp.host_unshare_hyp(shape, host_mmu, machine.el2, page, 1))]
        assert statuses[0] in {OK, _EBUSY}, f"the end of the share said {statuses[0]}"
        if statuses[0] == OK:
            statuses.append(int(hyp.host_unshare_hyp(shape, host_mmu, machine.el2, page, 1)))
            assert statuses[1] == EPERM, "one share was ended twice"
        return statuses[0]

    scene.thread("pinner", pinner)
    scene.thread("ender", ender)

    def sound(view: View) -> None:
        machine.check()
        ended = view.result("ender") == OK
        state = machine.ownership(GIVEN).host.name
        assert state == ("OWNED" if ended else "SHARED_OWNED"), f"in the end the host's page is {state}"
        assert ended or view.result("pinner") == OK, "a page that nobody had pinned was busy"

    scene.final("a page is taken back unless it is pinned", sound)


def _shared(scene: Scene) -> int:
    return int(scene.room("stage2.pkvm.layout").SHARED_OWNED)


MODELS = (
    Model(
        "stage2-teardown",
        "a dying guest's pages are the host's again, each once, whoever touches them meanwhile",
        "2 CPUs, 1 fault, 1 teardown of 2 leaves, one a call, 2 levels, 8 entries",
        teardown,
        stale=True,
        dpor=False,
    ),
    Model(
        "stage2-hyp-pin",
        "the host takes no page back that the hypervisor has pinned, and every other one",
        "2 CPUs, 1 pin and its end, 2 ends of a share, 2 levels, 8 entries",
        pinned,
        stale=True,
        dpor=False,
    ),
)
