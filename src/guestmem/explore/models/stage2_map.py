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
IGNORE_EAGAIN, KEEP_REST = 16, 2048


def build(scene: Scene, discipline: str, walkers: int, count: int, flags: int = 0) -> None:
    """``walkers`` map ``count`` pages each of one empty block; neighbours overlap if ``count`` is more than 1.

    With KEEP_REST the block is there, read-only, and what they do not map stays.
    """
    small = SmallTable(scene, discipline=discipline, walkers=walkers)
    locked = scene.room("stage2.locked")

    def vcpu(desk: Own, ipa: int) -> int:
        size = count * PAGE
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), ipa, size, OFFSET + ipa, small.attributes, 3, flags
        )
        assert status in {OK, EAGAIN}, f"map said {status}"
        if flags & KEEP_REST and status == EAGAIN:  # the table that it put back is taken again
            at = BLOCK + ipa
            again: int = locked.map_shared(
                locked.Table(*small.words, desk), at, size, OFFSET + at, small.attributes, 3, flags
            )
            assert again == OK, f"map said {again}"
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

    if flags & KEEP_REST:
        small.table.map(0, BLOCK, OFFSET, 1)
        scene.final("no page is lost", lambda _: small.check_leaves(range(0, BLOCK, PAGE)))
    small.begin()
    scene.final("all maps to its own memory", lambda _: small.check_addresses(range(0, 2 * BLOCK, PAGE)))
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


def rest(scene: Scene) -> None:
    """Two, in a block of which nothing may be lost."""
    build(scene, "rcu", 2, 1, KEEP_REST)


def three(scene: Scene) -> None:
    """Three, in an empty table."""
    build(scene, "rcu", 3, 1)


_PROVES = "of vCPUs that fault side by side one puts the table, none is lost, and each page maps to its own memory"
MODELS = (
    Model(
        "stage2-map-rest",
        "who breaks a block to map a page loses none of the others, and who is late puts its table back",
        "2 vCPUs, a page each of one block of 8 pages, 2 levels",
        rest,
        stale=True,
    ),
    Model("stage2-map", _PROVES, "2 walkers, 2 levels, 8 entries, 1 page each, rcu", neighbours, stale=True),
    Model(
        "stage2-map-refs",
        _PROVES,
        "2 walkers, 2 levels, 8 entries, 1 page each, walk_refs",
        neighbours_refs,
        stale=True,
    ),
    Model(
        "stage2-map-range",
        _PROVES,
        "2 walkers, 2 levels, 8 entries, 2 pages each, 1 in common, rcu",
        ranges,
        stale=True,
    ),
    Model("stage2-map-3", _PROVES, "3 walkers, 2 levels, 8 entries, 1 page each, rcu", three),
)
