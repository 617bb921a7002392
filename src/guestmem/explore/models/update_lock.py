"""The kernel engine's update lock: vCPUs that answer exits and repeat failed fetches against updates of the slots.

Lock, turn, address map, answer and the judgement of a failed fetch are those of production. The guest's own fetch, and
what KVM makes of it, is one word: where the memory is, 0 in the hole. An ioctl and an exit have full barriers.
"""

from __future__ import annotations

from collections.abc import Callable

from ...compiled import Own, Words
from ..scene import Model, Scene

__all__ = ["MODELS"]

_GPA, _PAGE = 0x1000, 0x1000
_FREED, _OLD, _NEW = 0, 1, 2
_DATA = 8  # words of kvm_run that answers use


class _Vm:
    """The words of a VM of the kernel engine with one slot, and what its threads call."""

    def __init__(self, scene: Scene, vcpus: int) -> None:
        self.at, self.lock = scene.room("engines.kvm.layout"), scene.room("engines.kvm.update_lock")
        self.answers, self.kicks = scene.room("engines.kvm.answers"), scene.room("engines.kvm.kicks")
        self.fragments = scene.room("engines.kvm.fragments")
        self.map, self.atomics = scene.room("engines.kvm.address_map"), scene.room("atomics")
        self.run_data = int(scene.room("engines.kvm.abi").RUN_DATA)
        at = self.at
        names = {int(getattr(at, name)): name for name in ("STOP", "PAUSED", "ACKS", "WAITING", "UPDATES", "ANSWERING")}
        self.vm = scene.words("vm", at.vm_words(vcpus), lambda i: names.get(i, ""))
        self.entries = scene.words("map", self.map.map_words(1))
        self.pages = scene.host("old page", [_OLD]), scene.host("new page", [_NEW])
        self.there = scene.words("memory", [self.pages[0]])
        self.map.map_insert(self.entries, _GPA, _GPA + _PAGE, self.pages[0], 0)
        scene.final("nobody answers any more", lambda view: view.word(self.vm, int(at.ANSWERING)) == 0)
        scene.final("no update is left over", lambda view: view.word(self.vm, int(at.UPDATES)) & 1 == 0)

    def update(self, vm: Words, entries: Words, there: Words) -> None:
        """Delete and create, with exits held; then the old page is freed."""
        atomics = self.atomics
        old, new = self.pages
        self.lock.take_exclusive(vm)
        atomics.fence()
        atomics.store_relaxed(there, 0, 0)
        atomics.fence()
        assert self.map.map_remove(entries, _GPA), "the slot was there"
        atomics.host_store(old, _FREED)
        atomics.fence()
        atomics.store_relaxed(there, 0, new)
        atomics.fence()
        self.map.map_insert(entries, _GPA, _GPA + _PAGE, new, 0)
        self.lock.give_exclusive(vm)


def answer(scene: Scene, vcpus: int, *, beside: bool = False) -> None:
    """VCPUs answer an MMIO exit each, from the map, while a slot is deleted and created.

    ``beside``: each also looks for the first byte behind the slot, where there is none.
    """
    kvm = _Vm(scene, vcpus)

    def vcpu(vm: Words, entries: Words, own: Own, me: int, run: int) -> int:
        own[kvm.at.GUEST] = 1  # in the compiled loop, which nobody leaves to look for signals
        assert kvm.answers.take_turn(vm, own, me) == kvm.at.GO_ON, "the VM does not stop"
        entry = kvm.map.map_find(entries, _GPA)
        assert entry, "an exit was answered in the hole"
        assert not (beside and kvm.map.map_find(entries, _GPA + _PAGE)), "nothing is behind the slot"
        host = kvm.atomics.load_relaxed(entries, entry + kvm.map.MAP_HOST)
        kvm.fragments.answer_fragment(run, host, 8, False)
        kvm.kicks.leave(vm, me, kvm.at.OUTSIDE)
        kvm.lock.give_shared(vm)
        read: int = kvm.atomics.host_load(run + kvm.run_data)
        assert read in {_OLD, _NEW}, "an exit was answered from memory that was freed"
        return read

    for me in range(vcpus):
        run = scene.host(f"kvm_run {me}", [0] * (kvm.run_data // 8 + _DATA))
        scene.thread(f"vCPU {me}", vcpu, kvm.vm, kvm.entries, scene.own(kvm.at.OWN_WORDS), me, run)
    scene.thread("updater", kvm.update, kvm.vm, kvm.entries, kvm.there)


def fetch(scene: Scene) -> None:
    """A vCPU fetches from the slot, another from where there is none, while the slot is deleted and created."""
    kvm = _Vm(scene, 2)
    atomics, at = kvm.atomics, kvm.at

    def vcpu(vm: Words, own: Own, target: Callable[[], int]) -> int:
        """Returns how often the fetch was made; 0: it was taken for genuine."""
        tries = 0
        while True:
            tries += 1
            own[at.BEGAN] = atomics.load_acquire(vm, at.UPDATES)
            atomics.fence()  # KVM_RUN
            host = target()
            atomics.fence()
            if host:
                return tries
            if not kvm.answers.retry_fetch(vm, own):
                return 0
            while not kvm.answers.after_fetch(vm, own):
                pass

    def legitimate(vm: Words, own: Own, there: Words) -> int:
        tries = vcpu(vm, own, lambda: int(atomics.load_relaxed(there, 0)))
        assert tries, "a fetch that met the hole of an update was taken for genuine"
        return tries

    def lost(vm: Words, own: Own) -> None:
        assert not vcpu(vm, own, lambda: 0), "nothing is there"

    scene.thread("vCPU 0", legitimate, kvm.vm, scene.own(at.OWN_WORDS), kvm.there)
    scene.thread("vCPU 1", lost, kvm.vm, scene.own(at.OWN_WORDS))
    scene.thread("updater", kvm.update, kvm.vm, kvm.entries, kvm.there)


def answer_1(scene: Scene) -> None:
    """One vCPU."""
    answer(scene, 1)


def answer_beside(scene: Scene) -> None:
    """One vCPU, which also looks behind the slot."""
    answer(scene, 1, beside=True)


def answer_2(scene: Scene) -> None:
    """Two vCPUs: the last one to step back wakes the updater."""
    answer(scene, 2)


_ANSWER = "an exit is answered before an update or after it, never within, and neither side waits for ever"
_FETCH = "a fetch that met the hole of an update is made again, and one from nothing ends"
MODELS = (
    Model("update-lock", _ANSWER, "1 vCPU, 1 answer, 1 update", answer_1, stale=True),
    Model(
        "update-lock-beside",
        _ANSWER,
        "1 vCPU, 1 answer, 1 look behind the slot, 1 update",
        answer_beside,
        stale=True,
        dpor=False,
    ),
    Model("update-lock-2", _ANSWER, "2 vCPUs, 1 answer each, 1 update", answer_2),
    Model("update-lock-fetch", _FETCH, "2 vCPUs, a fetch each, 1 update", fetch, stale=True),
)
