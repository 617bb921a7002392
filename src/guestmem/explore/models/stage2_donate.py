"""pKVM: the host touches a page while it gives it away to a guest."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ...stage2.geometry import Geometry
from ..scene import Model, Scene
from ..tables import PAGE, POOL_BASE

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["GIVEN", "MODELS", "give_words", "machine_and_guest"]

OK, EPERM, EAGAIN, ENOMEM, EEXIST = 0, 1, 11, 12, 17
_REGION = 8 * PAGE
GIVEN, _TOUCHED = _REGION + PAGE, _REGION + 2 * PAGE


def machine_and_guest(scene: Scene, pages_of_memory: int) -> tuple[Any, Any]:
    """A machine of two CPUs with a few pages of memory, and a protected VM on it."""
    arm, format_, pool = scene.room("stage2.arm"), scene.room("stage2.format"), scene.room("stage2.pool")
    machine = scene.room("stage2.pkvm.el2").Pkvm(
        arm.ArmFormat(Geometry(12, 3, 2, 18), 48, format_.Annotations("7.1")),
        [(_REGION, pages_of_memory * PAGE)],
        pool=pool.Pool(12, base=POOL_BASE),
        cpus=2,
        max_vms=1,
        cache=2,
    )
    return machine, machine.create_vm()


def give_words(scene: Scene, machine: Any, guest: Any, cache: int) -> None:
    """All is set up: share the words, and leave each CPU ``cache`` table pages, what one walk needs and no more."""
    pages = machine.host.pool
    free_list, count = scene.room("stage2.free_list"), int(scene.room("stage2.layout").CACHE_COUNT)
    scene.words("table", pages.words, lambda i: f"page {i >> 9}, entry {i & 511}")
    scene.words("page", pages.pages)
    scene.words("host", machine.host.mmu)
    scene.words("guest", guest.table.mmu)
    scene.words("el2", machine.el2)
    for desk in machine.host.desks:
        free_list.cache_topup(*machine.words[:3], desk, cache)
        while desk[count] > cache:
            assert free_list.page_give(pages.pages, free_list.cache_take(desk) - 1)


def shares(scene: Scene) -> None:
    """Two CPUs share one page with a guest, each at a place of its own; one of them ends that."""
    machine, guest = machine_and_guest(scene, 8)
    machine.host_fault(GIVEN)
    machine.host_share_guest(guest, _TOUCHED, 2 * PAGE)
    give_words(scene, machine, guest, 1)
    given, page = scene.room("stage2.pkvm.transitions"), GIVEN // PAGE
    make = scene.room("stage2.pkvm.words").Hyp

    def cpu(desk: Own, gfn: int) -> tuple[Own, int]:
        words = make(*machine.words, desk, machine.el2), guest.table.mmu
        status: int = given.host_share_guest(*words, guest.handle, page, gfn, 1)
        assert status == OK, f"the share said {status}"
        if gfn:
            status = given.host_unshare_guest(*words, guest.handle, gfn, 1)
            assert status == OK, f"its end said {status}"
        return desk, status

    for gfn in range(2):
        scene.thread(f"cpu {gfn}", cpu, machine.host.desks[gfn], gfn)

    def sound(view: View) -> None:
        before, machine.host.desks = machine.host.desks, [view.result(f"cpu {gfn}")[0] for gfn in range(2)]
        try:
            machine.check()
            owner = machine.ownership(GIVEN)
            assert owner.shares == 1, f"shared {owner.shares} times, not once"
            leaf = guest.table.lookup(0)
            assert leaf is not None, "the guest does not map what it may use"
            assert guest.table.lookup(PAGE) is None, "the guest still maps what it may not use any more"
        finally:
            machine.host.desks = before

    scene.final("what is shared is counted, and mapped", sound)


def build(
    scene: Scene, touched: int, *, mapped: bool, pages_of_memory: int = 8, unshares: bool = False, cache: int = 1
) -> None:
    """One CPU touches a page (``mapped``: the host had its block before) while one gives page 1 of the block away.

    ``pages_of_memory``: with less than 8 the rest of the block is no memory. ``unshares``: the guest has the page, lets
    the host use it, and now ends that.
    """
    machine, guest = machine_and_guest(scene, pages_of_memory)
    if mapped:
        machine.host_fault(GIVEN)
    if unshares:
        machine.host_donate_guest(guest, GIVEN, 0)
        machine.guest_share_host(guest, 0)
    give_words(scene, machine, guest, cache)
    host, given = scene.room("stage2.pkvm.host"), scene.room("stage2.pkvm.transitions")
    make = scene.room("stage2.pkvm.words").Hyp

    def toucher(desk: Own) -> tuple[Own, int]:
        status: int = host.host_fault(make(*machine.words, desk, machine.el2), touched)
        assert status in {OK, EEXIST, EAGAIN} or (status == EPERM and touched == GIVEN), f"the fault said {status}"
        return desk, status

    def giver(desk: Own) -> tuple[Own, int]:
        words = make(*machine.words, desk, machine.el2), guest.table.mmu
        if unshares:
            status: int = given.guest_unshare_host(*words, guest.handle, 0)
        else:
            status = given.host_donate_guest(*words, guest.handle, GIVEN // PAGE, 0)
        assert status == OK, f"the {'end of a share' if unshares else 'donation'} said {status}"
        return desk, status

    scene.thread("toucher", toucher, machine.host.desks[0])
    scene.thread("giver", giver, machine.host.desks[1])

    def sound(view: View) -> None:
        mine, mine.host = copy.copy(machine), machine.host
        before, machine.host.desks = machine.host.desks, [view.result("toucher")[0], view.result("giver")[0]]
        try:
            mine.check()
            owner = machine.ownership(GIVEN)
            assert (owner.guest, owner.host.name) == (guest.handle, "NOPAGE"), f"the page given away: {owner}"
            assert machine.host.lookup(GIVEN) is None, "the host still maps what it gave away"
            leaf = guest.table.lookup(0)
            assert leaf is not None, "the guest does not map what it was given"
            assert leaf.address == GIVEN, f"the guest maps {leaf.address:#x}"
        finally:
            machine.host.desks = before

    scene.final("one owner, and only it maps the page", sound)


def same(scene: Scene) -> None:
    """The very page."""
    build(scene, GIVEN, mapped=False)


def neighbour(scene: Scene) -> None:
    """Its neighbour, in a block that is mapped."""
    build(scene, _TOUCHED, mapped=True)


def unshared(scene: Scene) -> None:
    """The very page, which the host may use until then."""
    build(scene, GIVEN, mapped=False, unshares=True)


def edge(scene: Scene) -> None:
    """Its neighbour, in a block of which half is no memory."""
    build(scene, _TOUCHED, mapped=False, pages_of_memory=4, cache=2)


_PROVES = "a page given to a guest is the host's no more, whatever the host's faults do meanwhile"
MODELS = (
    Model("stage2-donate", _PROVES, "2 CPUs, 1 fault on the page, 1 donation, 2 levels, 8 entries", same, stale=True),
    Model(
        "stage2-donate-block",
        _PROVES,
        "2 CPUs, 1 fault beside it, 1 donation that breaks a block",
        neighbour,
        stale=True,
    ),
    Model(
        "stage2-donate-edge",
        _PROVES,
        "2 CPUs, 1 fault beside it, 1 donation; half a block is no memory",
        edge,
        stale=True,
    ),
    Model(
        "stage2-share",
        "a page that is shared with a guest is counted as often as it is, and mapped where it is",
        "2 CPUs, 1 share each of one page, 1 end of a share, 2 levels, 8 entries",
        shares,
        stale=True,
    ),
    Model(
        "stage2-unshare",
        _PROVES,
        "2 CPUs, 1 fault on the page, 1 end of a guest's share with the host",
        unshared,
        stale=True,
    ),
)
