"""Two vCPUs that map neighbours: the table between them is put once, and each page maps to its own memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

OK, EAGAIN = 0, 11
IGNORE_EAGAIN = 16


def build(scene: Scene, discipline: str, walkers: int, count: int, flags: int = 0) -> None:
    """``walkers`` map ``count`` pages each of one empty block; neighbours overlap if ``count`` is more than 1."""
    small = SmallTable(scene, discipline=discipline, walkers=walkers)
    locked = scene.room("stage2.locked")

    def vcpu(desk: Own, ipa: int) -> int:
        size = count * PAGE
        status: int = locked.map_shared(*small.words, desk, ipa, size, OFFSET + ipa, small.attributes, 3, flags)
        assert status in {OK, EAGAIN}, f"map said {status}"
        return status

    for walker in range(walkers):
        small.thread(f"vcpu {walker}", vcpu, walker * PAGE)

    def mapped(view: View) -> None:
        results = [small.result(view, f"vcpu {walker}") for walker in range(walkers)]
        assert OK in results, "all lost"
        if flags & IGNORE_EAGAIN:
            return  # what was locked was passed over
        for walker, result in enumerate(results):
            if result == OK:
                for page in range(count):
                    small.check_leaf((walker + page) * PAGE, 3)

    small.begin()
    scene.final("all maps to its own memory", lambda _: small.check_addresses(range(0, BLOCK, PAGE)))
    scene.final("what was mapped is there", mapped)


def neighbours(scene: Scene) -> None:
    """Two, in an empty table."""
    build(scene, "rcu", 2, 1)


def neighbours_refs(scene: Scene) -> None:
    """Two, holding pages on their way."""
    build(scene, "walk_refs", 2, 1)


def ranges(scene: Scene) -> None:
    """Two pages each, one of them in common; who is late goes on behind it."""
    build(scene, "rcu", 2, 2, IGNORE_EAGAIN)


def three(scene: Scene) -> None:
    """Three, in an empty table."""
    build(scene, "rcu", 3, 1)


_PROVES = "of vCPUs that fault side by side one puts the table, none is lost, and each page maps to its own memory"
MODELS = (
    Model("stage2-map", _PROVES, "2 walkers, 2 levels, 8 entries, 1 page each, rcu", neighbours),
    Model("stage2-map-refs", _PROVES, "2 walkers, 2 levels, 8 entries, 1 page each, walk_refs", neighbours_refs),
    Model("stage2-map-range", _PROVES, "2 walkers, 2 levels, 8 entries, 2 pages each, 1 in common, rcu", ranges),
    Model("stage2-map-3", _PROVES, "3 walkers, 2 levels, 8 entries, 1 page each, rcu", three),
)
