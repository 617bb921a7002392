"""Core tokens: vCPU threads that take a core, run, and give it back; never more inside than there are cores."""

from __future__ import annotations

from ..scene import Model, Scene
from ..small_vm import vm_label

__all__ = ["MODELS"]


def build(scene: Scene, vcpus: int, cores: int, turns: int) -> None:
    """``vcpus`` threads take one of ``cores`` tokens, ``turns`` times each."""
    at, tokens = scene.room("engines.soft.layout"), scene.room("engines.soft.cores")
    vm = scene.words("vm", at.vm_words(vcpus), vm_label(scene))
    vm.cells[int(at.CORES)] = cores
    names = [f"vCPU {me}" for me in range(vcpus)]

    def run() -> None:
        for _ in range(turns):
            tokens.take_core(vm)
            scene.note("inside", 1)
            tokens.cores_wanted(vm)
            scene.note("inside", 0)
            tokens.give_core(vm)

    for name in names:
        scene.thread(name, run)
    scene.invariant(
        "no more vCPUs hold a core than there are",
        lambda view: sum(view.note(name, "inside", 0) for name in names) <= cores,
    )
    scene.final(
        "every token is back", lambda view: view.word(vm, int(at.NEXT_TICKET)) == view.word(vm, int(at.SERVING))
    )


def one_core(scene: Scene) -> None:
    """Two vCPUs, one core."""
    build(scene, 2, 1, 1)


def two_cores(scene: Scene) -> None:
    """Three vCPUs, two cores."""
    build(scene, 3, 2, 1)


def three(scene: Scene) -> None:
    """Three vCPUs, one core: two wait at once."""
    build(scene, 3, 1, 1)


def many(scene: Scene) -> None:
    """Five vCPUs, two cores."""
    build(scene, 5, 2, 3)


_PROVES = "never more vCPUs hold a core than there are, and every vCPU that waits for one gets one"
MODELS = (
    Model("cores", _PROVES, "2 vCPUs, 1 core, 1 turn each", one_core, stale=True),
    Model("cores-2", _PROVES, "3 vCPUs, 2 cores, 1 turn each", two_cores, stale=True),
    Model("cores-3", _PROVES, "3 vCPUs, 1 core, 1 turn each", three, stale=True),
    Model("cores-many", _PROVES, "5 vCPUs, 2 cores, 3 turns each", many, exhaustive=False),
)
