"""pKVM: the host faults on a page that a guest lets it use, that it takes back, or that it lets the hypervisor use."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import PAGE
from .stage2_donate import EAGAIN, EEXIST, EPERM, GIVEN, OK, give_words, machine_and_guest

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_STATES = {"share": "SHARED_BORROWED", "reclaim": "OWNED", "force": "OWNED"}
"""The host's state of the page in the end."""


def build(scene: Scene, change: str) -> None:
    """One CPU touches a page, which is a guest's at first (``hyp``: the host's own), while another changes whose it is.

    ``share``: the guest lets the host use it. ``reclaim``: the guest is dying. ``force``: it lives. ``hyp``: the host
    lets the hypervisor use it, ends that, and does so again, and the first CPU gives it to the guest.
    """
    machine, guest = machine_and_guest(scene, 8)
    if change != "hyp":
        machine.host_donate_guest(guest, GIVEN, 0)
    if change == "reclaim":
        machine.start_teardown(guest)
    give_words(scene, machine, guest, 1)
    host, given = scene.room("stage2.pkvm.host"), scene.room("stage2.pkvm.transitions")
    back, hyp = scene.room("stage2.pkvm.reclaim"), scene.room("stage2.pkvm.hyp")
    make = scene.room("stage2.pkvm.words").Hyp
    arrays, page = machine.words, GIVEN // PAGE
    shape, host_mmu = arrays[0], machine.host.mmu

    def toucher(desk: Own) -> tuple[Own, int]:
        if change == "hyp":
            words = (make(*arrays, desk, machine.el2), guest.table.mmu)
            status: int = given.host_donate_guest(*words, guest.handle, page, 0)
        else:
            status = host.host_fault(make(*arrays, desk, machine.el2), GIVEN)
        assert status in {OK, EEXIST, EAGAIN, EPERM}, f"the fault, or donation, said {status}"
        return desk, status

    def changer(desk: Own) -> tuple[Own, int]:
        words = (make(*arrays, desk, machine.el2), guest.table.mmu)
        status: int = OK
        if change == "share":
            status = given.guest_share_host(*words, guest.handle, 0)
        elif change == "reclaim":
            status = back.host_reclaim_guest(*words, guest.handle, 0)
        elif change == "force":
            status = back.force_reclaim(*words, guest.handle, page)
        else:
            for share in (hyp.host_share_hyp, hyp.host_unshare_hyp, hyp.host_share_hyp):
                status = status or share(shape, host_mmu, machine.el2, page, 1)
        assert status == OK or (change == "hyp" and status == EPERM), f"the change said {status}"
        return desk, status

    scene.thread("toucher", toucher, machine.host.desks[0])
    scene.thread("changer", changer, machine.host.desks[1])

    def sound(view: View) -> None:
        mine, mine.host = copy.copy(machine), machine.host
        before, machine.host.desks = machine.host.desks, [view.result(name)[0] for name in ("toucher", "changer")]
        try:
            mine.check()
            owner = machine.ownership(GIVEN)
            if change == "hyp":
                done = [view.result(name)[1] == OK for name in ("toucher", "changer")]
                assert done.count(True) == 1, "the page was given to a guest, and shared with the hypervisor"
                assert owner.host.name == ("NOPAGE" if done[0] else "SHARED_OWNED"), f"in the end: {owner}"
                return
            assert owner.host.name == _STATES[change], f"in the end: {owner}"
            if view.result("toucher")[1] == OK:
                leaf = machine.host.lookup(GIVEN)
                assert leaf is not None, "the fault said that it is mapped"
                assert leaf.address == GIVEN, f"the host maps {leaf.address:#x}"
            leaf = guest.table.lookup(0)
            assert (leaf is not None) == (change == "share"), "the guest maps what it has, and no more"
        finally:
            machine.host.desks = before

    scene.final("who owns the page maps it", sound)


_PROVES = "a page is the host's when it was shared with it, or taken back, and its faults neither lose nor win it"
MODELS = tuple(
    Model(
        f"stage2-{name}",
        _PROVES,
        f"2 CPUs, {'1 donation' if change == 'hyp' else '1 fault on the page'}, {what}, 2 levels, 8 entries",
        partial(build, change=change),
        stale=True,
        dpor=False,
    )
    for name, change, what in (
        ("guest-share", "share", "1 share of a guest's page with the host"),
        ("reclaim", "reclaim", "1 page taken back from a guest that is dying"),
        ("reclaim-force", "force", "1 page taken back from a guest that lives"),
        ("share-hyp", "hyp", "1 page shared with the hypervisor, no more, and again"),
    )
)
