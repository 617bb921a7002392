"""Post-copy beside populating before: how long the guest stands still, what an exit costs, how much it gets done.

By number of vCPUs. Each run carries variants that are wrong on purpose, whose meeting is certain, and which must be
caught: a bit that is cleared before its page is there, and a flag that is switched on without a zap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..engines.soft.post_copy import PostCopyVm
from ..errors import GuestmemError, UsageError
from ..units import PAGE_SIZE

__all__ = ["PostCopy", "PostCopyRow", "run_post_copy"]

_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class PostCopyRow:
    """One number of vCPUs, one way. Times in ns."""

    vcpus: int
    way: str
    """post-copy, or before: all pages came before the guest ran."""
    stopped: int
    """How long the guest stood still."""
    complete: int
    """From the start until every page was there."""
    exits: int
    median: int
    worst: int
    accesses: int
    seconds: float
    """How long the guest ran while accesses were counted."""

    @property
    def per_second(self) -> float:
        """Accesses a second while the guest ran."""
        return self.accesses / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class PostCopy:
    """A run: its rows, what was seen to go wrong, and which broken variants were caught."""

    size: int
    latency: int
    stream: bool
    cores: int
    seed: int
    rows: list[PostCopyRow] = field(default_factory=list)
    missing_seen: int = 0
    lost_writes: int = 0
    caught: dict[str, bool] = field(default_factory=dict)
    """By broken variant."""

    @property
    def ok(self) -> bool:
        """Whether nothing was seen or lost, and every broken variant was caught."""
        return not self.missing_seen and not self.lost_writes and all(self.caught.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "rows": [asdict(row) | {"per_second": row.per_second} for row in self.rows],
            "ok": self.ok,
        }


def _cleared_first(*, early: bool) -> int:
    """A page whose bit is cleared before it is there, if ``early``: how many reads saw it missing."""
    with PostCopyVm(16 * PAGE_SIZE, vcpus=1) as vm:
        vm.enable()
        if early:
            vm.clear(3)
            vm.access(3)
            vm.fill(3)
        else:
            vm.fill(3)
            vm.clear(3)
            vm.access(3)
        return vm.counts()["missing_seen"]


def _left_mapped(*, zaps: bool) -> int:
    """A page that was mapped when the flag came on, and is lost: how many reads saw it missing."""
    with PostCopyVm(16 * PAGE_SIZE, vcpus=1) as vm:
        vm.fill(3)
        vm.clear(3)
        vm.access(3)
        vm.drop(3)
        vm.enable(zaps=zaps)
        vm.access(3)
        return vm.counts()["missing_seen"]


def _broken() -> dict[str, bool]:
    """Which wrong variants were caught; each is run beside the right one, which sees nothing."""
    return {
        "bit cleared before the page is there": _cleared_first(early=True) > 0 and not _cleared_first(early=False),
        "mappings left when the flag comes on": _left_mapped(zaps=False) > 0 and not _left_mapped(zaps=True),
    }


def run_post_copy(
    *,
    vcpus: Sequence[int] = (1, 2, 4),
    size: int = 64 << 20,
    latency: int = 100_000,
    stream: bool = True,
    seed: int = 1,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> PostCopy:
    """Bring ``size`` bytes to a guest of each number of ``vcpus`` in both ways, with ``latency`` ns a request.

    ``stream``: while the guest runs, all pages are sent in order, too; without, only what it touches comes, until that
    is all. UsageError for what cannot be meant.
    """
    if not vcpus:
        raise UsageError("vcpus: none is given")
    result = PostCopy(size, latency, stream, 0, seed)
    progress("compiling what is not yet, and what is wrong on purpose", 0.0)
    result.caught = _broken()
    for done, number in enumerate(vcpus):
        progress(f"{number} vCPUs", done / len(vcpus))
        for way in (_post_copy, _before):
            with PostCopyVm(size, vcpus=number, latency=latency, seed=seed) as vm:
                result.cores = vm.cores
                seconds = result.rows[-1].seconds if way is _before else 0.0
                result.rows.append(way(vm, stream, seconds))
                vm.check()
                counts = vm.counts()
                result.missing_seen += counts["missing_seen"]
                result.lost_writes += counts["lost_writes"]
    return result


def _post_copy(vm: PostCopyVm, stream: bool, _seconds: float) -> PostCopyRow:
    vm.enable()
    vm.start(stream=stream)
    try:
        complete = vm.wait(_PATIENCE_S)
    finally:
        vm.stop()
    if complete is None:
        raise GuestmemError(f"post-copy: {vm.arrived} of {vm.npages} pages came in {_PATIENCE_S:.0f} s")
    counts, times = vm.counts(), vm.exit_times()
    median = times[len(times) // 2] if times else 0
    exits = counts["userfaults"]
    seconds = complete / 1e9
    return PostCopyRow(
        vm.vcpus, "post-copy", 0, complete, exits, median, counts["worst_exit_ns"], counts["accesses"], seconds
    )


def _before(vm: PostCopyVm, _stream: bool, seconds: float) -> PostCopyRow:
    """All comes first; then the guest runs for as long as it did in the other way."""
    stopped = vm.populate()
    vm.start(stream=False)
    try:
        ran = vm.run_for(seconds)
    finally:
        vm.stop()
    return PostCopyRow(vm.vcpus, "before", stopped, stopped, 0, 0, 0, vm.counts()["accesses"], ran)
