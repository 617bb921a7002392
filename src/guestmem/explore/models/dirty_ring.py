"""A dirty ring: a vCPU pushes, user space harvests, an ioctl gives entries back; three threads, two entries."""

from __future__ import annotations

from ...compiled import Own, Words
from ..scene import Model, Scene

__all__ = ["MODELS"]

_SLOT = 7
_NEAR = 64
_PAGES = (11, 10, 12, 200, 300, 301, 299, 500, 13, 14, 15, 501)
"""What is pushed: neighbours forwards and backwards, and pages that no run joins."""


def _runs(pages: tuple[int, ...]) -> list[list[int]]:
    """The pages of each run that one reset makes of these: those within 64 of the first are joined to it."""
    found: list[list[int]] = []
    for page in pages:
        if found and abs(page - found[-1][0]) < _NEAR:
            found[-1] = sorted([*found[-1], page])
        else:
            found.append([page])
    return found


def build(scene: Scene, size: int, pushes: int, harvests: int, resets: int) -> None:
    """The vCPU pushes pages while the ring has room; user space and reset look as often as said."""
    rings = scene.room("dirty.ring")
    made = rings.DirtyRing(size, reserved=0)
    entries, first = int(rings.ENTRIES), {int(rings.DIRTY_INDEX): "dirty index", int(rings.RESET_INDEX): "reset index"}

    def label(index: int) -> str:
        if index >= entries:
            return f"{'offset' if index & 1 else 'flags'} of entry {(index - entries) // 2}"
        return first.get(index, "")

    ring = scene.words("ring", made.words, label)

    def vcpu(ring: Words) -> int:
        pushed = 0
        for _ in range(pushes):
            if rings.ring_used(ring) < size:  # else it exits with KVM_EXIT_DIRTY_RING_FULL
                pushed += 1
                rings.ring_push(ring, size, size, _SLOT, _PAGES[pushed - 1])
        return pushed

    def user(ring: Words, out: Own) -> int:
        taken = 0
        for _ in range(harvests):
            if rings.ring_harvest(ring, size, taken, out):
                taken += 1
                assert (out[0], out[1]) == (_SLOT, _PAGES[taken - 1]), f"entry {taken}: slot {out[0]}, page {out[1]}"
        return taken

    def reset(ring: Words, runs: Own) -> int:
        given = 0
        for _ in range(resets):
            pages: list[list[int]] = []
            for at in range(len(runs)):
                runs[at] = 0
            count = int(rings.ring_reset(ring, size, runs, size))
            for at in range(1, 1 + 3 * int(runs[0]), 3):
                assert runs[at] == _SLOT, f"a run of slot {runs[at]}"
                pages.append([int(runs[at + 1]) + bit for bit in range(64) if runs[at + 2] >> bit & 1])
            assert pages == _runs(_PAGES[given : given + count]), f"runs {pages}, {count} entries after {given}"
            given += count
        return given

    scene.thread("vCPU", vcpu, ring)
    scene.thread("user space", user, ring, scene.own(2))
    scene.thread("reset", reset, ring, scene.own(1 + 3 * size))
    scene.final("entries are harvested ones, then dirty ones, then free ones", lambda _view: made.check())
    scene.final("every page given back was harvested", lambda view: view.result("reset") <= view.result("user space"))
    scene.final(
        "no page is lost",
        lambda view: (
            view.word(ring, int(rings.DIRTY_INDEX)) == view.result("vCPU")
            and made.used == view.result("vCPU") - view.result("reset")
        ),
    )


def small(scene: Scene) -> None:
    """Two entries."""
    build(scene, 2, 4, 4, 2)


def many(scene: Scene) -> None:
    """Four entries, many rounds."""
    build(scene, 4, 12, 16, 6)


_PROVES = "user space sees every dirty page once and whole, and reset re-protects exactly what was harvested"
MODELS = (
    Model("dirty-ring", _PROVES, "2 entries, 4 pushes, 4 looks, 2 resets", small, stale=True),
    Model("dirty-ring-many", _PROVES, "4 entries, 12 pushes, 16 looks, 6 resets", many, exhaustive=False),
)
