"""pKVM as a dict: page -> {component: state}, where a component is "host", "hyp", or (guest, frame). Nothing else.

Each transition is its whole precondition, written out, and its result; it returns the errno's name or "".
"""

from __future__ import annotations

from typing import Any

__all__ = ["PkvmOracle"]

OWNED, LENDS, USES = "OWNED", "SHARED_OWNED", "SHARED_BORROWED"
FREE = {"host": OWNED}
SHARED_WITH_HYP = {"host": LENDS, "hyp": USES}


class PkvmOracle:
    """``block``: pages that the host may share with a guest in one leaf."""

    def __init__(self, memory: set[int], block: int, max_shares: int, frames: int) -> None:
        self.state: dict[int, dict[Any, str]] = {page: dict(FREE) for page in memory}
        self.leaf: dict[tuple[int, int], list[int]] = {}
        """Of (guest, first frame): the pages of its leaf; [] where it is poisoned."""
        self.pins: dict[int, int] = {}
        self.vms: dict[int, str] = {}
        self.block, self.max_shares, self.frames = block, max_shares, frames

    def expect(self, pages: range, wanted: dict[Any, str]) -> str:
        if len(pages) > self.block or not all(page in self.state for page in pages):
            return "EINVAL"
        return "" if all(self.state[page] == wanted for page in pages) else "EPERM"

    def change(self, pages: range, wanted: dict[Any, str], new: dict[Any, str]) -> str:
        refused = self.expect(pages, wanted)
        if not refused:
            self.state.update({page: dict(new) for page in pages})
        return refused

    def host_share_hyp(self, pages: range) -> str:
        return self.change(pages, FREE, SHARED_WITH_HYP)

    def host_unshare_hyp(self, pages: range) -> str:
        refused = self.expect(pages, SHARED_WITH_HYP)
        if not refused and any(self.pins.get(page) for page in pages):
            return "EBUSY"
        return self.change(pages, SHARED_WITH_HYP, FREE)

    def host_donate_hyp(self, pages: range) -> str:
        return self.change(pages, FREE, {"hyp": OWNED})

    def hyp_donate_host(self, pages: range) -> str:
        return self.change(pages, {"hyp": OWNED}, FREE)

    def pin(self, page: int, by: int) -> str:
        refused = self.expect(range(page, page + 1), SHARED_WITH_HYP)
        if not refused and self.pins.get(page, 0) + by < 0:
            return "EPERM"
        if not refused:
            self.pins[page] = self.pins.get(page, 0) + by
        return refused

    def live(self, vm: int) -> str:
        return {"live": "", "dying": "EINVAL"}.get(self.vms.get(vm, ""), "ENOENT")

    def at(self, vm: int, gfn: int) -> tuple[int, list[int]] | None:
        """First frame and pages of the leaf that a frame lies in."""
        for first in (gfn, gfn // self.block * self.block):
            pages = self.leaf.get((vm, first))
            if pages is not None and (first == gfn or gfn < first + len(pages)):
                return first, pages
        return None

    def empty(self, vm: int, gfn: int, count: int) -> str:
        if gfn + count > self.frames:
            return "ERANGE"
        return "EPERM" if any(self.at(vm, frame) for frame in range(gfn, gfn + count)) else ""

    def host_donate_guest(self, vm: int, page: int, gfn: int) -> str:
        pages = range(page, page + 1)
        refused = self.live(vm) or self.expect(pages, FREE) or self.empty(vm, gfn, 1)
        if not refused:
            self.change(pages, FREE, {(vm, gfn): OWNED})
            self.leaf[vm, gfn] = [page]
        return refused

    def host_share_guest(self, vm: int, page: int, gfn: int, count: int) -> str:
        pages = range(page, page + count)
        if refused := self.live(vm):
            return refused
        if count not in {1, self.block} or page % count or gfn % count or not all(at in self.state for at in pages):
            return "EINVAL"
        shares = []
        for state in (self.state[at] for at in pages):
            users = [state[who] for who in state if who != "host"]
            if state != FREE and not (state.get("host") == LENDS and "hyp" not in state and set(users) == {USES}):
                return "EPERM"
            shares.append(len(users))
        if max(shares) >= self.max_shares:
            return "EBUSY"
        if refused := self.empty(vm, gfn, count):
            return refused
        for offset, at in enumerate(pages):
            self.state[at]["host"] = LENDS
            self.state[at][vm, gfn + offset] = USES
        self.leaf[vm, gfn] = list(pages)
        return ""

    def host_unshare_guest(self, vm: int, gfn: int, count: int) -> str:
        if vm not in self.vms:
            return "ENOENT"
        found = self.at(vm, gfn)
        if not found or not found[1]:
            return "EHWPOISON" if found else "ENOENT"
        first, pages = found
        if len(pages) != count:
            return "E2BIG"
        if first != gfn:
            return "EINVAL"
        if self.state[pages[0]].get((vm, gfn)) != USES:
            return "EPERM"
        for offset, page in enumerate(pages):
            del self.state[page][vm, gfn + offset]
            if self.state[page] == {"host": LENDS}:
                self.state[page] = dict(FREE)
        del self.leaf[vm, gfn]
        return ""

    def own(self, vm: int, gfn: int) -> tuple[str, int]:
        """What is in the way of a guest that means its own page at a frame; and the page."""
        found = self.at(vm, gfn)
        if not found or not found[1]:
            return "EHWPOISON" if found else "ENOENT", 0
        return ("", found[1][0]) if len(found[1]) == 1 else ("E2BIG", 0)

    def guest(self, vm: int, gfn: int, wanted: dict[Any, str], new: dict[Any, str]) -> str:
        if refused := self.live(vm):
            return refused
        refused, page = self.own(vm, gfn)
        return refused or self.change(range(page, page + 1), wanted, new)

    def guest_share_host(self, vm: int, gfn: int) -> str:
        return self.guest(vm, gfn, {(vm, gfn): OWNED}, {(vm, gfn): LENDS, "host": USES})

    def guest_unshare_host(self, vm: int, gfn: int) -> str:
        return self.guest(vm, gfn, {(vm, gfn): LENDS, "host": USES}, {(vm, gfn): OWNED})

    def host_reclaim_guest(self, vm: int, gfn: int) -> str:
        if self.vms.get(vm) != "dying":
            return "EINVAL" if vm in self.vms else "ENOENT"
        refused, page = self.own(vm, gfn)
        if refused:
            return refused
        if self.state[page].get((vm, gfn)) not in {OWNED, LENDS}:
            return "EPERM"
        self.state[page] = dict(FREE)
        del self.leaf[vm, gfn]
        return ""

    def force_reclaim(self, page: int) -> str:
        if page not in self.state:
            return "EINVAL"
        owner = [who for who, state in self.state[page].items() if state == OWNED]
        if len(owner) != 1 or owner[0] in {"host", "hyp"}:
            return "EPERM"
        self.leaf[owner[0]] = []
        self.state[page] = dict(FREE)
        return ""

    def teardown(self, vm: int) -> int:
        owned = 0
        for handle, gfn in [key for key in self.leaf if key[0] == vm]:
            pages = self.leaf[handle, gfn]
            for offset, page in enumerate(pages):
                owned += self.state[page].pop((vm, gfn + offset)) != USES
                if not [state for who, state in self.state[page].items() if state == USES and who != "host"]:
                    self.state[page] = dict(FREE)
            del self.leaf[handle, gfn]
        del self.vms[vm]
        return owned
