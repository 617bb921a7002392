"""The known hazards of mappability, found; and the same steps where a file has attributes, which are clean.

Share, pin, unshare, punch, allocate: faults, pins, conversions and holes are those of production. A model of the
design of 2025 says what is found; its twin says that what was taken instead has none of it. Source of the hazards:
review of "restricted mapping of guest_memfd at the host", kvm, February 2025.
"""

from __future__ import annotations

from typing import Any

from ...compiled import Own, Words
from ...errors import GuestMemfdError
from ..scene import Model, Scene
from ..small_file import SECRET, SMALL_FILE, SmallFile

__all__ = ["MODELS"]

_OK = 0
_PRESENT, _REFS = 1 << 32, 0xFFFF_FFFF
_LATE = 7
"""What a device writes."""


def _take(inode: Any) -> bool:
    """The guest takes the page back; whether it was not refused."""
    try:
        inode.generation.convert(inode, 0, 0, private=True)
    except GuestMemfdError:
        return False
    return True


def _device(file: SmallFile, words: Words, states: Words) -> int:
    """A device writes through a pin that it lets go."""
    status: int = file.fault.pin_page(words, states, 0, True)
    if status == _OK:
        file.atomics.host_store(file.memory, _LATE)
        file.folio.folio_put(words, 0)
    return status


def _late(scene: Scene, generation: str) -> None:
    """A device writes through a pin while the guest takes the page back, and writes to it."""
    file = SmallFile(scene, generation)

    def device(words: Words, states: Words) -> int:
        return _device(file, words, states)

    def guest(desk: Own, freed: Own, found: Own) -> None:
        if _take(file.of(desk, freed, found)):
            file.atomics.host_store(file.memory, SECRET)
            saw: int = file.atomics.host_load(file.memory)
            assert saw == SECRET, "a device writes to a page that the guest has taken back"

    scene.thread("device", device, file.words, file.states)
    scene.thread("guest", guest, *file.writers())


def _hole(scene: Scene, generation: str) -> None:
    """The guest takes a page back and writes to it, while its VMM punches a hole, and then reads there."""
    file = SmallFile(scene, generation)
    file.folio.folio_create(file.words, 0, 0)

    def guest(desk: Own, freed: Own, found: Own, words: Words, states: Words, out: Own) -> int:
        if not _take(file.of(desk, freed, found)):
            return -1
        status: int = file.fault.guest_fault(words, states, 0, True, True, out)
        if status == _OK:
            file.atomics.host_store(file.memory, SECRET)
        return status

    def vmm(desk: Own, freed: Own, found: Own, words: Words, states: Words, out: Own) -> int:
        file.of(desk, freed, found).punch(0, 0)
        status: int = file.fault.host_access(words, states, 1, 0, 0, False, True, out)
        assert status != _OK or out[0] != SECRET, "the host reads, behind a hole, what the guest believes is private"
        return status

    scene.thread("guest", guest, *file.writers(), file.words, file.states, scene.own(3))
    scene.thread("VMM", vmm, *file.writers(), file.words, file.states, scene.own(1))


def _memory(scene: Scene, generation: str) -> None:
    """A device holds a page for a while; its VMM takes the page back, punches it out, and has a new one committed."""
    file = SmallFile(scene, generation)

    def device(words: Words, states: Words) -> int:
        return _device(file, words, states)

    def vmm(desk: Own, freed: Own, found: Own, words: Words) -> bool:
        inode = file.of(desk, freed, found)
        if not _take(inode):
            return False
        inode.punch(0, 0)
        file.folio.folio_create(words, 0, 0)
        word = file.atomics.load_relaxed(words, int(file.at.PAGES))
        held = word & _PRESENT and word & _REFS
        assert not held, "a file of one page has a new one, and the old one is held still: two are in use"
        return True

    scene.thread("device", device, file.words, file.states)
    scene.thread("VMM", vmm, *file.writers(), file.words)


def _wait(scene: Scene, generation: str) -> None:
    """A device pins a page, and keeps it; the guest takes the page back, and uses it."""
    file = SmallFile(scene, generation)

    def device(words: Words, states: Words) -> int:
        status: int = file.fault.pin_page(words, states, 0, True)
        return status

    def guest(desk: Own, freed: Own, found: Own, words: Words, states: Words, out: Own) -> int:
        if not _take(file.of(desk, freed, found)):
            return -1
        status: int = file.fault.guest_fault(words, states, 0, True, True, out)
        assert status == _OK, (
            "the page is taken back, and neither guest nor host can have it, for as long as a pin lives"
        )
        return status

    scene.thread("device", device, file.words, file.states)
    scene.thread("guest", guest, *file.writers(), file.words, file.states, scene.own(3))


_STEPS = (
    ("late", _late, "no device writes to a page that was taken back", "1 pin with a write, 1 unshare"),
    ("hole", _hole, "a hole makes nothing private everybody's", "1 unshare with a write, 1 hole with a read"),
    ("memory", _memory, "a file has no more memory in use than its size", "1 pin, 1 unshare, 1 hole, 1 allocation"),
    ("wait", _wait, "what was taken back can be used", "1 pin that stays, 1 unshare with a fault"),
)


def _model(name: str, step: Any, proves: str, size: str, generation: str) -> Model:
    def build(scene: Scene) -> None:
        step(scene, generation)

    wrong = generation == "mappability"
    return Model(
        f"{generation}-{name}" if wrong else f"gmem-{name}",
        proves,
        f"1 page of {generation}; {size}",
        build,
        geometry=SMALL_FILE,
        buffer=2,
        stale=not wrong,
        finds="assertion" if wrong else "",
        dpor=name != "hole",
    )


MODELS = tuple(
    _model(name, step, proves, size, generation)
    for generation in ("attributes", "mappability")
    for name, step, proves, size in _STEPS
)
