"""A dirty ring: a vCPU pushes, user space harvests, an ioctl gives entries back; three threads, two entries."""

from __future__ import annotations

from ...compiled import Own, Words
from ..scene import Model, Scene

__all__ = ["MODELS"]

_SLOT = 7


def build(scene: Scene, size: int, pushes: int, harvests: int, resets: int) -> None:
    """The vCPU pushes pages 1, 2, … while the ring has room; user space and reset look as often as said."""
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
                rings.ring_push(ring, size, size, _SLOT, pushed)
        return pushed

    def user(ring: Words, out: Own) -> int:
        taken = 0
        for _ in range(harvests):
            if rings.ring_harvest(ring, size, taken, out):
                taken += 1
                assert (out[0], out[1]) == (_SLOT, taken), f"entry {taken}: slot {out[0]}, page {out[1]}"
        return taken

    def reset(ring: Words, runs: Own) -> list[int]:
        pages: list[int] = []
        for _ in range(resets):
            rings.ring_reset(ring, size, runs, size)
            for at in range(1, 1 + 3 * int(runs[0]), 3):
                assert runs[at] == _SLOT, f"a run of slot {runs[at]}"
                pages += [int(runs[at + 1]) + bit for bit in range(64) if runs[at + 2] >> bit & 1]
        return pages

    scene.thread("vCPU", vcpu, ring)
    scene.thread("user space", user, ring, scene.own(2))
    scene.thread("reset", reset, ring, scene.own(1 + 3 * size))
    scene.final("entries are harvested ones, then dirty ones, then free ones", lambda _view: made.check())
    scene.final(
        "every page given back was harvested, once, in order",
        lambda view: (
            view.result("reset") == list(range(1, len(view.result("reset")) + 1))
            and len(view.result("reset")) <= view.result("user space")
        ),
    )
    scene.final(
        "no page is lost",
        lambda view: (
            view.word(ring, int(rings.DIRTY_INDEX)) == view.result("vCPU")
            and made.used == view.result("vCPU") - len(view.result("reset"))
        ),
    )


def small(scene: Scene) -> None:
    """Two entries."""
    build(scene, 2, 3, 3, 2)


def many(scene: Scene) -> None:
    """Four entries, many rounds."""
    build(scene, 4, 12, 16, 6)


_PROVES = "user space sees every dirty page once and whole, and reset re-protects exactly what was harvested"
MODELS = (
    Model("dirty-ring", _PROVES, "2 entries, 3 pushes, 3 looks, 2 resets", small, stale=True),
    Model("dirty-ring-many", _PROVES, "4 entries, 12 pushes, 16 looks, 6 resets", many, exhaustive=False),
)
