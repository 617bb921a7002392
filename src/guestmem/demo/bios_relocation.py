"""The failure that started the debate: a slot is deleted and re-created beneath two running vCPUs.

vCPU 0 increments words of the firmware area, with a lock prefix, and counts; vCPU 1 runs code from it. QEMU does this
to the firmware area while a PC boots (RHBZ 1979276): an SMP guest then dies when a vCPU fetches in between.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..designs import Design, find
from ..engines import Access, HostMemory, Load, MeasuredEngine, Target, measured_engine
from ..engines.load_words import TAG_BYTE
from ..errors import UsageError
from ..memslots import Change
from ..units import PAGE_SHIFT, PAGE_SIZE

__all__ = ["DEFAULT_UPDATES", "DESIGNS_SHOWN", "Scene", "SceneRow", "bios_relocation"]

DEFAULT_UPDATES = 2000
DESIGNS_SHOWN = ("sequential", "pause_if_overlap", "exit_retry", "atomic")
"""Those of them that the engine can do."""

_RAM_PAGES, _BIOS_GFN, _BIOS_PAGES = 0xC0, 0xC0, 0x40
_TARGETS = 64
_RET = b"\xc3"
_COUNTER = (1 << 8 * int(TAG_BYTE)) - 1
"""Of a word, what vCPU 0 counts in. The byte behind it is 0, and DEVICE_TAG once an increment of what no memory
answered was written over the word (see docs/exit-retry.md): the counts before that are lost.
"""
_HVA = 0x7F0000000000
_GAP_S = 2e-4
_LOOKS = 128
"""After each of the first updates, then after each so many, it is looked whether a vCPU has died."""
_clock = time.perf_counter_ns


@dataclass(slots=True)
class SceneRow:
    """What happened under one design."""

    design: str
    updates: int = 0
    update_median_ns: float = 0.0
    writes: int = 0
    """Locked increments that vCPU 0 made."""
    fetches: int = 0
    """Instructions that vCPU 1 fetched from the slot."""
    inside: int = 0
    """Accesses of both while the slot was being replaced."""
    holes: int = 0
    """Data accesses that left the guest as MMIO and that nobody answered."""
    answered: int = 0
    lost: int = 0
    """Increments that vCPU 0 made and memory does not have."""
    killed: int = 0
    """Deaths of vCPU 1: KVM_EXIT_INTERNAL_ERROR, or its code was overwritten by a write that vCPU 0 computed from the
    hole. It was started again each time.
    """
    first_kill: int = 0
    """Update after which the first was seen; 0: none."""

    @property
    def harmed(self) -> bool:
        """Whether the guest saw the update."""
        return bool(self.holes or self.lost or self.killed)


@dataclass(slots=True)
class Scene:
    """All rows of one run."""

    engine: str
    host: str
    updates: int
    rows: list[SceneRow] = field(default_factory=list)
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bios_relocation(
    engine: str = "soft",
    *,
    updates: int = DEFAULT_UPDATES,
    designs: Sequence[str] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Scene:
    """Play the scene under each of ``designs`` (those of DESIGNS_SHOWN that ``engine`` can do, unless named).

    UsageError for an unknown engine or design, CapabilityError for what the engine cannot do.
    """
    if updates < 1:
        raise UsageError(f"updates: {updates} is not at least 1")
    with measured_engine(engine, 2) as probe:
        able = [name for name in DESIGNS_SHOWN if not find(name).needs & ~probe.capabilities]
        scene = Scene(engine, probe.host, updates)
    for name in designs or able:
        if not stopped():
            with measured_engine(engine, 2) as fresh:
                scene.rows.append(_play(find(name), fresh, updates, stopped))
    scene.interrupted = stopped()
    return scene


def _play(design: Design, engine: MeasuredEngine, updates: int, stopped: Callable[[], bool]) -> SceneRow:
    apply = design.prepare(engine)
    pages = _RAM_PAGES + _BIOS_PAGES
    memory = HostMemory([(_HVA, _HVA + pages * PAGE_SIZE)])
    ram = Change(slot=0, base_gfn=0, npages=_RAM_PAGES, userspace_addr=memory.address)
    bios = Change(1, _BIOS_GFN, _BIOS_PAGES, memory.address + (_BIOS_GFN << PAGE_SHIFT))
    words = [bios.userspace_addr + page * PAGE_SIZE for page in range(min(_TARGETS, _BIOS_PAGES))]
    for word in words:
        memory.write(word + 7, _RET)  # what vCPU 1 runs; vCPU 0 counts in the bytes before it
    engine.set_access(Access(writes=1.0, fetches=0.0), 0)
    engine.set_access(Access(writes=0.0, fetches=1.0), 1)
    engine.set_memory_region(ram)
    engine.set_memory_region(bios)
    row = SceneRow(design.name)
    took: list[int] = []
    engine.start()
    try:
        engine.set_load(
            Load(Target(bios.guest_phys_addr + word - bios.userspace_addr, word, word, changed=True) for word in words)
        )
        time.sleep(0.01)
        while row.updates < updates and not stopped():
            begun = _clock()
            with engine.window():
                apply(engine, [Change(slot=1), bios])
            took.append(_clock() - begun)
            row.updates += 1
            time.sleep(_GAP_S)
            look = row.updates <= _LOOKS or row.updates % _LOOKS == 0
            if look and not row.first_kill and any(counts["killed_fetches"] for counts in engine.vcpu_counts()):
                row.first_kill = row.updates
        engine.set_load(Load())
    finally:
        engine.stop()
    _sum_up(row, engine, _counted(map(memory.word, words)))
    row.update_median_ns = statistics.median(took) if took else 0.0
    engine.set_memory_region(Change(slot=1))
    engine.set_memory_region(Change(slot=0))
    memory.close()
    return row


def _counted(words: Iterable[int]) -> int:
    """Increments that memory has."""
    return sum(word & _COUNTER for word in words)


def _sum_up(row: SceneRow, engine: MeasuredEngine, written: int) -> None:
    every = engine.vcpu_counts()
    total = {name: sum(counts[name] for counts in every) for name in every[0]}
    row.holes = total["holes_read"] + total["holes_write"]
    row.answered = total["answered_reads"] + total["answered_writes"]
    row.writes = total["writes"] + total["holes_write"] + total["answered_writes"]
    row.lost = row.writes - written
    row.fetches, row.inside = total["fetches"], total["inside"]
    row.killed = total["killed_fetches"] + total["strange"]
    if row.killed and not row.first_kill:  # after the last look
        row.first_kill = row.updates
