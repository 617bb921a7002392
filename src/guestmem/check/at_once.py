"""The judgements of many holes at once, as ``verdict.judge`` would make them one by one (NumPy).

Instead of each hole, the columns of a trace are asked: of every vCPU, where it was in all the windows. What is rare is
left to ``judge``: a hole of several windows, one of which a moment is not known, a vCPU that was not recorded
throughout, lost events, a return to user space that may show that guest code ran, a death with an exit that tells.
``tests/check/test_at_once.py`` holds both against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..traces.columns import NO_THREAD
from .judgement import TEXTS, Judgement, Worst, closed, death, guest_exit, in_guest, opened
from .rules import RULES
from .vcpu_columns import GUEST_EXIT, IN_GUEST, OUTSIDE, VcpuColumns, Windows
from .verdict import pairs_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..traces.columns import Changes
    from ..traces.run_state import RunState
    from .missing import Returned

__all__ = ["AtOnce"]

NAMES = tuple(RULES)


Asked = Sequence[tuple[Sequence[int], Sequence["Returned"]]]
"""Of each hole the changes of its transaction, by their place, and what it took and gave back."""


class AtOnce:
    """Judges holes of one trace; ``resolution``: the last place of the changes' stamps, in seconds."""

    def __init__(self, changes: Changes, run_state: RunState, resolution: float) -> None:
        self._changes, self._run_state, self._vcpus = changes, run_state, run_state.vcpus
        self._off = resolution + run_state.resolution
        threads = {vcpu.thread for vcpu in run_state.vcpus}
        plain = len(threads) == len(run_state.vcpus) and not run_state.losses and not run_state.missing
        plain &= all(len(run_state.track_of(vcpu).times) > 1 for vcpu in run_state.vcpus)
        timed = self._off > 0 and not np.isnan(np.frombuffer(changes.time)).any()
        self._can_answer = plain and timed and len(run_state.vcpus) > 0
        self._same: dict[tuple[bool, bytes], Judgement] = {}
        """Judgements in which no time is told, by what is known of each vCPU."""

    def judgements(self, asked: Asked) -> list[Judgement | None]:
        """What ``judge`` says of each hole; None where it is to be asked itself. O(vCPUs · holes · log events)."""
        found: list[Judgement | None] = [None] * len(asked)
        pairs = [pairs_of(self._changes, returned) for _, returned in asked] if self._can_answer else []
        places = [place for place, each in enumerate(pairs) if len(each) == 1]
        if not places:
            return found
        windows, columns, plain = self._windows(np.array([pairs[place][0] for place in places]))
        answers = [each.answer(windows) for each in columns]
        proofs = np.stack([each.proofs for each in answers], 1)
        ranks = np.stack([each.ranks for each in answers], 1)
        exits = np.stack([each.exits for each in answers], 1)
        deaths = np.stack([each.deaths for each in answers], 1)
        is_open: npt.NDArray[np.bool_] = np.any(proofs, 1)
        is_death: npt.NDArray[np.bool_] = np.any(deaths < np.inf, 1) & ~is_open
        for each in answers:
            plain &= each.is_open_known & (is_open | (each.is_death_known & (is_death | each.is_doubt_known)))
        for row in np.flatnonzero(plain & is_death).tolist():
            removed = {one[2] for one in asked[places[row]][1]}
            found[places[row]] = self._death(removed, deaths[row].tolist())
        for row in np.flatnonzero(plain & ~is_death).tolist():
            key = bool(is_open[row]), (proofs if is_open[row] else ranks)[row].tobytes()
            judgement = self._same.get(key)
            if judgement is None:
                judgement = self._open(key[1], exits[row].tolist()) if key[0] else self._not_open(key[1])
                if not (key[0] and GUEST_EXIT in key[1]):
                    self._same[key] = judgement
            found[places[row]] = judgement
        return found

    def _windows(self, pairs: npt.NDArray[np.int64]) -> tuple[Windows, list[VcpuColumns], npt.NDArray[np.bool_]]:
        """``verdict.window_of`` of each pair of changes, what vCPUs did meanwhile, and which are as these take them."""
        changes, off = self._changes, self._off
        removed, restored = pairs.T
        began, ended, times = (np.frombuffer(each) for each in (changes.began, changes.ended, changes.time))
        threads = np.frombuffer(changes.thread, np.int64)
        thread = np.where(threads[removed] == threads[restored], threads[removed], 0)
        thread[thread == NO_THREAD] = 0
        start = np.where(np.isnan(began[removed]), -np.inf, began[removed])
        windows = Windows(start, ended[removed], began[restored], ended[restored], times[removed], thread, off)
        moments = np.concatenate([start, *windows[1:5]])
        moments = moments[np.isfinite(moments)]
        first, last = (float(moments.min()) - off, float(moments.max()) + off) if len(moments) else (0.0, 0.0)
        columns = [VcpuColumns(self._run_state, vcpu, first, last) for vcpu in self._vcpus]
        for vcpu in columns:
            windows = vcpu.begun(windows)
        start, core_start, core_end, end = windows[:4]
        plain = (removed != restored) & np.isfinite(start) & np.isfinite(end)
        plain &= (start <= core_start) & (core_start + off < core_end - off) & (core_end <= end)
        for each in (core_start, core_end):
            plain &= (each - off < each) & (each < each + off)
        return windows, columns, plain

    def _open(self, proofs: bytes, exits: Sequence[float]) -> Judgement:
        """What the first proof of each vCPU makes of a hole."""
        return opened(
            {
                vcpu: in_guest(vcpu) if proof == IN_GUEST else guest_exit(vcpu, time)
                for vcpu, proof, time in zip(self._vcpus, proofs, exits, strict=True)
                if proof
            }
        )

    def _death(self, removed: set[int], deaths: Sequence[float]) -> Judgement:
        """What it makes of a hole that vCPUs left KVM_RUN in it, and did not come back."""
        worst = Worst()
        for vcpu, time in zip(self._vcpus, deaths, strict=True):
            if time < math.inf:
                worst.take("died", death(self._changes, removed, time), vcpu)
        return worst.judgement()

    def _not_open(self, ranks: bytes) -> Judgement:
        """What the doubts of each vCPU make of a hole, if there are any."""
        worst = Worst()
        for vcpu, rank in zip(self._vcpus, ranks, strict=True):
            if rank != OUTSIDE:
                worst.take(NAMES[rank], TEXTS[NAMES[rank]], vcpu)
        return worst.judgement() if worst.rule else closed(self._vcpus)
