"""Dynamic partial-order reduction: of all schedules that differ only in the order of independent steps, one.

Depth first. While a run goes on, vector clocks tell which of its steps happened before which; where two dependent
steps of two threads are not ordered, the earlier point must also try one that leads to the other order. Sleep sets cut
runs that would only repeat. Source: Flanagan and Godefroid, "Dynamic partial-order reduction for model checking
software", POPL 2005. Which thread to try: source sets, Abdulla, Aronis, Jonsson and Sagonas, POPL 2014; the racing
thread itself, as in 2005, loses schedules of three threads once sleep sets are used. Sequentially consistent only.

Which steps are dependent: ``parts.dependent``. A timeout fires only when nothing else can happen, so all that happened
is before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..errors import UsageError
from . import operations as op
from .finding import Finding
from .judge import Judge
from .machine import Machine
from .outcome import Budget, Outcome
from .parts import Part, dependent
from .tree import Memory, Node

__all__ = ["Dpor"]

_TICK = 64

_Write = tuple[int, int, list[int]]  # number of the step from 1, thread, clock after it
_Read = tuple[int, list[int]]  # the same, by thread


class _Frame:
    """A point of the current run: what was chosen there, what must still be, what sleeps; and how to take it back."""

    __slots__ = (
        "backtrack",
        "chosen",
        "clock",
        "clocks",
        "enabled",
        "memory",
        "nodes",
        "races",
        "reads",
        "sleep",
        "woken",
        "writes",
    )

    def __init__(
        self, memory: Memory, nodes: list[Node], clocks: list[list[int]], enabled: int, sleep: int, chosen: int
    ) -> None:
        self.memory, self.nodes, self.clocks, self.enabled, self.sleep = memory, nodes, clocks, enabled, sleep
        self.chosen = chosen
        self.backtrack = 1 << chosen
        self.clock: list[int] = []
        self.races: list[int] = []
        self.woken = False
        # What the step puts something in place of: (point, what was there).
        self.writes: list[tuple[int, _Write | None]] = []
        self.reads: list[tuple[int, dict[int, _Read]]] = []


class Dpor:
    """One search. ``run`` until complete, out of budget, or (unless it goes on) a finding.

    ``part`` restricts it to schedules that begin with given moves; points inside them are not branched at, for other
    parts do that (``parts.split``).
    """

    def __init__(self, machine: Machine, outcome: Outcome, *, part: Part = ((), 0)) -> None:
        if type(machine) is not Machine or machine.tree.world.model.spurious:
            raise UsageError("dpor: only for sequentially consistent memory and without spurious wakeups")
        self.machine, self.outcome = machine, outcome
        self.judge = Judge(machine)
        self.n = machine.threads
        points = len(machine.tree.points) + 1
        # By point, then by queue of sleepers (points + point), then by lock (2 * points + point).
        self._writes: list[_Write | None] = [None] * (3 * points)
        self._reads: list[dict[int, _Read]] = [{} for _ in range(2 * points)]
        self._queues, self._locks = points, 2 * points
        self._frames: list[_Frame] = []
        self._memory = machine.tree.start
        self._nodes = list(machine.tree.roots)
        self._clocks = [[0] * self.n for _ in range(self.n)]
        self._sleep = 0
        prefix, sleep = part
        for move in prefix:
            self._push(move, self._enabled())
        self._sleep = sleep
        self._floor = len(prefix)

    # Checkpoints: what was chosen, what is still to be tried, and what sleeps, point by point.

    def frontier(self) -> list[tuple[int, int, int]]:
        """The state of the search between two runs, for ``resume``: (chosen, backtrack, sleep) per point."""
        return [(frame.chosen, frame.backtrack, frame.sleep) for frame in self._frames]

    def resume(self, frontier: Sequence[tuple[int, int, int]]) -> None:
        """Go on from a frontier: its last point has its choice still to be made."""
        points = self.outcome.points
        for chosen, _, sleep in frontier[len(self._frames) :]:
            self._sleep = sleep
            self._push(chosen, self._enabled())
        for frame, (_, backtrack, sleep) in zip(self._frames, frontier, strict=True):
            frame.backtrack, frame.sleep = backtrack, sleep
        self.outcome.points = points

    def run(self, budget: Budget) -> Outcome:
        """Search. Raises Reshaped when a word turns out to be shared."""
        outcome = self.outcome
        begun = time.monotonic() - outcome.seconds
        if outcome.runs and not self._next():  # resumed: the run that the frontier shows was done
            outcome.complete = True
            return self._ended(begun)
        while True:
            stop = self._descend(budget)
            outcome.runs += 1
            if stop:
                outcome.stopped = "finding"
                return self._ended(begun)
            # Asked before the next choice, so that a checkpoint is a search between two runs.
            if outcome.runs % _TICK == 0 and budget.over(outcome, begun):
                return self._ended(begun)
            if not self._next():
                outcome.complete = True
                return self._ended(begun)

    def _ended(self, begun: float) -> Outcome:
        self.outcome.code_runs = self.machine.tree.runs
        self.outcome.seconds = time.monotonic() - begun
        return self.outcome

    def _enabled(self) -> int:
        enabled = 0
        values = self._memory.values
        for thread, node in enumerate(self._nodes):
            if node.code >= 0 and (node.code != op.LOCK or values[node.at] == 0):
                enabled |= 1 << thread
        return enabled

    def _descend(self, budget: Budget) -> bool:
        """Go on to the end of a run; whether to stop the search.

        A thread that failed is over, but the run goes on: what the others still do shows where else to branch.
        """
        frames = self._frames
        always = not frames or bool(self.judge.invariants)
        while True:
            if always or self._nodes[frames[-1].chosen].code == op.FAILED or frames[-1].woken:
                found = self.judge.arrived((self._memory, *self._nodes))
                if found is not None and self._found(found, budget):
                    return True
                always = bool(self.judge.invariants)
            enabled = self._enabled()
            if not enabled:
                if self._timeouts():
                    continue
                return self._end(budget)
            awake = enabled & ~self._sleep
            if not awake:
                self.outcome.pruned += 1
                self._pending_locks()
                return False
            self._push((awake & -awake).bit_length() - 1, enabled)

    def _found(self, finding: Finding, budget: Budget) -> bool:
        moves = [frame.chosen for frame in self._frames]
        return self.outcome.add(finding.with_moves(moves, minimal=False)) and not budget.go_on

    def _end(self, budget: Budget) -> bool:
        self.outcome.depth = max(self.outcome.depth, len(self._frames))
        self._pending_locks()
        if any(node.code == op.FAILED for node in self._nodes):
            return False
        state = (self._memory, *self._nodes)
        found = self.judge.ended(state)
        self.outcome.finals.add(self.judge.end(state))
        return found is not None and self._found(found, budget)

    def _timeouts(self) -> bool:
        """Nothing else can happen: sleepers with a timeout rise, each first once. Whether there was one."""
        sleepers = self.machine.moves((self._memory, *self._nodes))
        if not sleepers:
            return False
        bits = sum(1 << thread for thread in sleepers) & ~self._sleep
        if not bits:
            bits = 1 << sleepers[0]
        self._push((bits & -bits).bit_length() - 1, bits)
        self._frames[-1].backtrack = bits
        return True

    def _pending_locks(self) -> None:
        """At the end of a run: who waits for a lock might have had it before its holder."""
        for thread, node in enumerate(self._nodes):
            if node.code == op.LOCK:
                holder = self._writes[self._locks + node.at]
                if holder is not None and holder[1] != thread and self._clocks[thread][holder[1]] < holder[0]:
                    self._race(holder[0], thread, self._clocks[thread], len(self._frames))

    def _race(self, first: int, thread: int, clock: list[int], last: int) -> None:
        """Step number ``first`` and a later one of ``thread``, which has ``clock``, could go the other way round.

        Some steps between them, up to number ``last``, do not depend on the first. One of the threads that can begin
        with these, or ``thread`` itself if it depends on none of them, must be tried instead of the first.
        """
        frames = self._frames
        frame = frames[first - 1]
        initials = 1 << thread
        if self.n > 2:
            initials = met = 0
            between: list[tuple[int, int]] = []
            for number in range(first + 1, last + 1):
                stamp, other = frames[number - 1].clock, frames[number - 1].chosen
                if stamp[frame.chosen] >= first:
                    continue
                if not met >> other & 1:
                    met |= 1 << other
                    if all(stamp[who] < step for step, who in between):
                        initials |= 1 << other
                between.append((number, other))
            if not met >> thread & 1 and all(clock[who] < step for step, who in between):
                initials |= 1 << thread
        if not frame.backtrack & initials:
            possible = initials & frame.enabled
            frame.backtrack |= possible & -possible if possible else frame.enabled

    def _push(self, thread: int, enabled: int) -> None:
        """Take a step: find its races, give it its clock, carry it out."""
        frames, nodes, memory = self._frames, self._nodes, self._memory
        frame = _Frame(memory, nodes, self._clocks, enabled, self._sleep, thread)
        frames.append(frame)
        self.outcome.points += 1
        node = nodes[thread]
        clock = self._clocks[thread][:]
        code, at = node.code, node.at
        if code == op.ASLEEP:
            self._rise(frame, node, clock)
            return
        if self._sleep:
            self._sleep = self._still_asleep(code, at)
        self._memory, kid, wakes = node.memo.get(memory) or self.machine.tree.look(node, memory)
        assert kid is not None
        if code <= op.LOAD_ACQUIRE:
            self._read(frame, at, clock)
        elif code <= op.OR:
            self._write(frame, at, clock, of_lock=code == op.UNLOCK)
        elif code == op.WAIT:
            self._read(frame, at, clock)
            self._read(frame, self._queues + at, clock)
        elif code == op.WAKE:
            self._write(frame, self._queues + at, clock)
        elif code == op.LOCK:
            self._take(frame, at, clock)
        clock[thread] = len(frames)
        frame.clock = clock
        for step in frame.races:
            self._race(step, thread, clock, len(frames) - 1)
        self._nodes = nodes = nodes[:]
        nodes[thread] = kid
        self._clocks = clocks = self._clocks[:]
        clocks[thread] = clock
        if wakes >= 0:
            before = nodes[:]
            self.machine.tree.wake(nodes, node)
            for k, woken in enumerate(nodes):
                if woken is not before[k]:
                    frame.woken = True
                    clocks[k] = [max(a, b) for a, b in zip(clocks[k], clock, strict=True)]

    def _rise(self, frame: _Frame, bed: Node, clock: list[int]) -> None:
        """A timeout: nothing else can happen, so everything that did is before it."""
        for other in self._clocks:
            for k, step in enumerate(other):
                clock[k] = max(clock[k], step)
        clock[frame.chosen] = len(self._frames)
        frame.clock = clock
        self._clocks = self._clocks[:]
        self._clocks[frame.chosen] = clock
        self._nodes = self._nodes[:]
        self._nodes[frame.chosen] = self.machine.tree.awake(bed)
        self._sleep = 0

    def _read(self, frame: _Frame, at: int, clock: list[int]) -> None:
        thread = frame.chosen
        write = self._writes[at]
        if write is not None:
            step, other, stamp = write
            if other != thread:
                if frame.clocks[thread][other] < step:
                    frame.races.append(step)
                for k, value in enumerate(stamp):
                    if value > clock[k]:
                        clock[k] = value
        reads = self._reads[at]
        frame.reads.append((at, reads))
        self._reads[at] = {**reads, thread: (len(self._frames), clock)}

    def _write(self, frame: _Frame, at: int, clock: list[int], *, of_lock: bool = False) -> None:
        """A write, its races with what was before it; ``of_lock``: a lock is taken or given back.

        Which thread has a lock first is for ``_take`` to find; but somebody may have looked at its word, or stored.
        """
        thread = frame.chosen
        past = frame.clocks[thread]
        write = self._writes[at]
        if write is not None:
            step, other, stamp = write
            if other != thread:
                if past[other] < step and not (of_lock and self._was_of_lock(step)):
                    frame.races.append(step)
                for k, value in enumerate(stamp):
                    if value > clock[k]:
                        clock[k] = value
        reads = self._reads[at]
        if reads:
            for other, (step, stamp) in reads.items():
                if other != thread:
                    if past[other] < step:
                        frame.races.append(step)
                    for k, value in enumerate(stamp):
                        if value > clock[k]:
                            clock[k] = value
            frame.reads.append((at, reads))
            self._reads[at] = {}
        frame.writes.append((at, write))
        self._writes[at] = (len(self._frames), thread, clock)

    def _was_of_lock(self, step: int) -> bool:
        before = self._frames[step - 1]
        return before.nodes[before.chosen].code in {op.LOCK, op.UNLOCK}

    def _take(self, frame: _Frame, at: int, clock: list[int]) -> None:
        """Take a lock: it races with the last one to take it, and comes after the last one to give it back."""
        holder = self._writes[self._locks + at]
        if holder is not None and holder[1] != frame.chosen and frame.clocks[frame.chosen][holder[1]] < holder[0]:
            frame.races.append(holder[0])
        self._write(frame, at, clock, of_lock=True)
        frame.writes.append((self._locks + at, holder))
        self._writes[self._locks + at] = (len(self._frames), frame.chosen, clock)

    def _still_asleep(self, code: int, at: int) -> int:
        """Of the threads in a sleep set, those whose next step is independent of this one."""
        still = 0
        for thread, node in enumerate(self._nodes):
            if self._sleep >> thread & 1 and not dependent(node.code, node.at, code, at):
                still |= 1 << thread
        return still

    def _next(self) -> bool:
        """Go back to the last point where something is still to be tried, and try it; False if there is none."""
        frames = self._frames
        while len(frames) > self._floor:
            frame = frames.pop()
            for at, old in frame.reads:
                self._reads[at] = old
            for at, event in reversed(frame.writes):
                self._writes[at] = event
            self._memory, self._nodes, self._clocks = frame.memory, frame.nodes, frame.clocks
            sleep = frame.sleep | 1 << frame.chosen
            left = frame.backtrack & ~sleep
            if left:
                self._sleep = sleep
                self._push((left & -left).bit_length() - 1, frame.enabled)
                frames[-1].backtrack = frame.backtrack
                return True
        return False
