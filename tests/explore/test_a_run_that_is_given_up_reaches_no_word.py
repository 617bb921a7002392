"""A run that is taken down where it stopped runs its `finally` clauses, but their operations reach no word."""

from __future__ import annotations

import pytest

from guestmem.explore.scene import Model, Scene
from guestmem.explore.world import World

IN, MINE = 0, 1


def guests(scene: Scene) -> None:
    """Two threads that come, and are out again whatever happens."""
    atomics, words = scene.room("atomics"), scene.words("w", 2)

    def body() -> None:
        atomics.fetch_add(words, IN, 1)
        try:
            atomics.load_acquire(words, IN)
        finally:
            atomics.store_release(words, MINE, 9)
            atomics.fetch_add(words, IN, 2**64 - 1)

    scene.thread("first", body)
    scene.thread("second", body)


@pytest.mark.parametrize("beside", [True, False], ids=["beside another run", "between runs"])
def test_its_operations_are_nobodys(beside: bool) -> None:
    with World(Model("guests", "", "", guests)) as world:
        first, second = (world.start(thread, {IN: 0}, (), fences=False) for thread in range(2))
        world.go_on(first, 0)
        (region,) = world.scene.regions
        before = second.count, dict(second.overlay), second.pending
        world.strand = second if beside else None
        first.greenlet.throw()  # as when nobody knows it any more
        assert first.greenlet.dead
        assert world.strand is (second if beside else None), "the run goes on as if nothing had been"
        assert (second.count, second.overlay, second.pending) == before
        assert list(region.words.cells) == [0, 0]
        assert not first.overlay
