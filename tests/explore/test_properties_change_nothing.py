"""What a final property writes, to shared words or to words of one thread, no later run of a thread finds."""

from __future__ import annotations

import pytest

from guestmem.compiled import Own, Words
from guestmem.explore import explore
from guestmem.explore.scene import Model, Scene
from guestmem.explore.view import View


def build(scene: Scene) -> None:
    atomics = scene.room("atomics")
    shared, quiet, desk = scene.words("x", 3), scene.words("quiet", 1), scene.own([1])

    def looks(shared: Words, quiet: Words, desk: Own) -> tuple[int, int, Own]:
        seen = 0
        for at in range(3):
            seen += atomics.load_relaxed(shared, at)
        return seen + atomics.load_relaxed(quiet, 0), desk[0], desk

    def writes(shared: Words) -> None:
        for at in range(3):
            atomics.store_relaxed(shared, at, 1)

    def checked(view: View) -> None:
        seen, mine, returned = view.result("looks")
        assert seen <= 3, f"a property's write to a shared word was found: {seen}"
        assert mine == 1, f"a property's write to words of the thread was found: {mine}"
        desk[0] = returned[0] = 7  # as a face does that is called by a property
        quiet.cells[0] = 40

    scene.thread("looks", looks, shared, quiet, desk)
    scene.thread("writes", writes, shared)
    scene.final("nothing is found", checked)


@pytest.mark.parametrize("search", ["states", "dpor"])
def test_a_property_that_writes(search: str) -> None:
    report = explore(Model("writes", "a property may write", "2 threads", build), weak=False)
    outcome = next(each for each in report.outcomes if each.search == search)
    assert not outcome.findings, outcome.findings
    assert outcome.complete
    assert report.agree
