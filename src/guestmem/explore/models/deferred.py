"""Deferred free: an updater puts aside what readers may still look at, polls, and reuses what is handed back."""

from __future__ import annotations

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import srcu_label

__all__ = ["MODELS"]

_POINTER, _FREED, _CAPACITY = 0, 99, 2


def build(scene: Scene, readers: int, sections: int, updates: int, *, drain: bool) -> None:
    """The updater replaces what the pointer points to, ``updates`` times, and frees what it is handed back.

    ``drain``: in the end it waits for the rest.
    """
    atomics, srcu, deferred = scene.room("atomics"), scene.room("rcu.srcu"), scene.room("rcu.deferred")
    domain = srcu.Srcu(readers)
    state = scene.words("srcu", domain.words, srcu_label)
    queue = deferred.Deferred(domain, _CAPACITY)
    places = scene.words("queue", queue.words)
    objects = scene.words("object", [1, *range(1, updates + 2)], lambda i: "pointer" if i == _POINTER else "")

    def reader(state: Words, objects: Words, me: int) -> None:
        for _ in range(sections):
            srcu.srcu_enter(state, 0, me)
            pointer = atomics.load_acquire(objects, _POINTER)
            assert atomics.load_relaxed(objects, pointer) == pointer, f"object {pointer} was freed under its reader"
            srcu.srcu_exit(state, 0, me)

    def updater(state: Words, objects: Words, places: Words, freed: Own) -> list[int]:
        back: list[int] = []

        def free(count: int) -> None:
            for place in range(count):
                item = int(freed[place])
                assert item not in back, f"object {item} was handed back twice"
                back.append(item)
                atomics.store_relaxed(objects, item, _FREED)

        for old in range(1, updates + 1):
            atomics.store_release(objects, _POINTER, old + 1)
            while not deferred.defer(places, 0, _CAPACITY, srcu.srcu_start(state, 0), old):
                free(deferred.reclaim_wait(places, 0, _CAPACITY, state, 0, readers, freed, _CAPACITY))
            if old < updates or not drain:
                free(deferred.reclaim(places, 0, _CAPACITY, state, 0, readers, freed, _CAPACITY))
        if drain:
            free(deferred.reclaim_wait(places, 0, _CAPACITY, state, 0, readers, freed, _CAPACITY))
        return back

    for me in range(readers):
        scene.thread(f"reader {me}", reader, state, objects, me)
    scene.thread("updater", updater, state, objects, places, scene.own(_CAPACITY))
    scene.final("the queue is sound, nobody is left inside", lambda _view: queue.check() or not domain.inside())
    scene.final("all is handed back, or waits", lambda view: len(view.result("updater")) + len(queue) == updates)
    if drain:
        scene.final("nothing waits after a drain", lambda _view: not len(queue))


def one_reader(scene: Scene) -> None:
    """One reader."""
    build(scene, 1, 2, 2, drain=True)


def two_readers(scene: Scene) -> None:
    """Two readers."""
    build(scene, 2, 1, 1, drain=False)


def many(scene: Scene) -> None:
    """Three readers, five updates: the queue fills."""
    build(scene, 3, 4, 5, drain=True)


_PROVES = "what is put aside is handed back once, and never while a reader can reach it"
MODELS = (
    Model("deferred", _PROVES, "1 reader, 2 sections, 2 objects put aside, a drain", one_reader, stale=True),
    Model("deferred-2", _PROVES, "2 readers, 1 section each, 1 object put aside", two_readers, stale=True),
    Model("deferred-many", _PROVES, "3 readers, 4 sections each, 5 objects put aside", many, exhaustive=False),
)
