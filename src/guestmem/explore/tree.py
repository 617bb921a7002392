"""Threads as trees: a thread is a function of what its operations returned, so its code runs once a distinct history.

A node is a thread stopped at a point; an edge is what the operation returned. Searches walk these trees and never run
a thread's code twice for the same history. The shared words of a state are one interned ``Memory``, so that a
transition is a look in the node's table, and states are compared by identity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from . import operations as op
from .between import code_of
from .world import Failure, Reshaped, Strand, Where, World

__all__ = ["Memory", "Node", "Tree"]

_LIVE = 1 << 14
"""Runs that are kept stopped where they are; of the oldest ones, the code is run again if it must go on."""

_CHECKED = 8
"""Ends of a thread that are come to once more when a search is over, first and last ones."""


class Memory:
    """The values of all points. Two states with the same values have the same object."""

    __slots__ = ("number", "values", "written")

    def __init__(self, values: tuple[int, ...], number: int) -> None:
        self.values, self.number = values, number
        self.written: dict[tuple[int, int], Memory] = {}


class Node:
    """A thread after a history: stopped before operation ``code`` on point ``at``, or ENDED, ASLEEP or FAILED.

    ``parent`` and ``value`` are the last step of the history. Of an ASLEEP node, ``parent`` is the node of the wait.
    ``depth`` counts points, ``count`` all atomics. ``memo`` maps a memory to what this operation makes of it: (memory,
    node after it or None while it must wait, point whose sleepers it wakes or -1). ``overlay``, once it has ended: what
    it wrote to words that are no points.
    """

    __slots__ = (
        "at",
        "bed",
        "code",
        "count",
        "depth",
        "first",
        "kids",
        "memo",
        "notes",
        "number",
        "outcome",
        "overlay",
        "parent",
        "second",
        "spurious",
        "strand",
        "thread",
        "value",
        "where",
    )

    def __init__(self, thread: int, parent: Node | None, value: int, number: int) -> None:
        self.thread, self.parent, self.value, self.number = thread, parent, value, number
        self.code = self.at = self.first = self.second = self.count = 0
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self.spurious: int = parent.spurious if parent is not None else 0
        self.kids: dict[int, Node] = {}
        self.memo: dict[Memory, tuple[Memory, Node | None, int]] = {}
        self.bed: Node | None = None
        self.strand: Strand | None = None
        self.overlay: dict[int, int] = {}
        self.notes: dict[str, object] = {}
        self.outcome: Any = None
        self.where: Where | None = None

    def history(self) -> list[int]:
        """What this thread's operations have returned, in order."""
        values: list[int] = []
        node: Node | None = self.parent if self.code == op.ASLEEP else self
        while node is not None and node.parent is not None:
            values.append(node.value)
            node = node.parent
        values.reverse()
        return values


class Tree:
    """The threads of a world, unfolded as far as somebody looked; ``fences``: whether a fence is a point.

    ``points``: the world's, unless given. ``merged``: histories after which a thread can still do the same are one node
    (``continuation.py``); its ``parent`` is the first that led there, and loops that change nothing come back to it.

    Raises Reshaped, from any method, when a word turns out to be shared: then make another tree.
    """

    def __init__(
        self, world: World, *, fences: bool = False, points: Iterable[int] | None = None, merged: bool = False
    ) -> None:
        self.world, self.fences = world, fences
        self.keys = world.keys if merged else None
        self._plain = [code_of(thread.body) is not None for thread in world.threads]
        self._same: dict[bytes, Node] = {}
        self.points = sorted(world.points if points is None else points)
        self.compact = {place: at for at, place in enumerate(self.points)}
        world.stale = False
        self.memories: dict[tuple[int, ...], Memory] = {}
        self.by_number: list[Memory] = []
        self.nodes: list[Node] = []
        self.runs = 0
        """How often a thread's code was started."""
        self._live: deque[Node] = deque()
        self._steps = world.model.steps
        self.start = self.memory((*(world.initial[place] for place in self.points), 0))
        self.roots = tuple(self._root(thread) for thread in range(len(world.threads)))

    def memory(self, values: tuple[int, ...]) -> Memory:
        """The one memory with these values (of the points, in order, and a 0)."""
        memory = self.memories.get(values)
        if memory is None:
            memory = self.memories[values] = Memory(values, len(self.by_number))
            self.by_number.append(memory)
        return memory

    def written(self, memory: Memory, at: int, value: int) -> Memory:
        """A memory with one value changed."""
        after = memory.written.get((at, value))
        if after is None:
            values = memory.values
            after = memory if values[at] == value else self.memory((*values[:at], value, *values[at + 1 :]))
            memory.written[at, value] = after
        return after

    def _root(self, thread: int) -> Node:
        self.runs += 1
        return self._settle(self.world.start(thread, self.compact, (), fences=self.fences), Node(thread, None, 0, 0))

    def _settle(self, strand: Strand, node: Node) -> Node:
        """Take what a run stopped at into its node."""
        if self.world.stale:
            raise Reshaped
        node.code, node.at, node.first, node.second = strand.pending
        node.notes, node.count, node.where = strand.notes, strand.count, strand.where
        if self.keys is not None:
            key = self._key(strand, node)
            same = node if key is None else self._same.setdefault(key, node)
            if same is not node:
                if same.strand is None and same.code >= 0:
                    self._keep(same, strand)
                else:
                    self.world.give_up(strand)
                return same
        node.number = len(self.nodes)
        self.nodes.append(node)
        if node.code >= 0:
            if node.depth >= self._steps:
                message = f"{self._steps} points and no end"
                node.outcome = Failure("Livelock", message, node.where or Where("?", 0, "?"))
                node.code = op.FAILED
                self.world.give_up(strand)
            else:
                self._keep(node, strand)
                return node
        else:
            node.outcome = strand.outcome
        node.overlay = strand.overlay
        return node

    def _keep(self, node: Node, strand: Strand) -> None:
        """Keep a run stopped where it is, for a node that may have to go on."""
        node.strand = strand
        self._live.append(node)
        if len(self._live) > _LIVE:
            oldest = self._live.popleft()
            if oldest.strand is not None:
                self.world.give_up(oldest.strand)
                oldest.strand = None

    def _key(self, strand: Strand, node: Node) -> bytes | None:
        """What a thread can still do, and what it will be seen to have done."""
        assert self.keys is not None
        if not self._plain[node.thread]:
            return None  # a builtin calls what can be seen of it
        initial = self.world.initial
        wrote = sorted((place, value) for place, value in strand.overlay.items() if value != initial[place])
        kept = [each.key() if hasattr(each, "key") else each for each in vars(strand.greenlet).values()]
        pending = (node.thread, *strand.pending, node.spurious, wrote, strand.notes, kept)
        if node.code < 0:
            return self.keys.of((), (pending, strand.outcome))
        return self.keys.of(self.world.frames(strand), (pending, strand.ticks))

    def _start(self, node: Node) -> Strand:
        """Run a thread's code to a node once more. Raises Undetermined if it does not come there."""
        due = [(node.code, node.at, node.first, node.second)]
        each = node.parent
        while each is not None:
            due.append((each.code, each.at, each.first, each.second))
            each = each.parent
        return self.world.start(node.thread, self.compact, node.history(), due[::-1], fences=self.fences)

    def check(self) -> None:
        """Run some threads' code again, to see that they are functions of their answers. Raises Undetermined.

        Of each thread the first and last ends, some tens of runs.
        """
        for thread in range(len(self.roots)):
            ends = [node for node in self.nodes if node.thread == thread and node.code in {op.ENDED, op.FAILED}]
            for node in (*ends[:_CHECKED], *ends[-_CHECKED:]):
                if node.code == op.ENDED or node.outcome.error != "Livelock":
                    self._start(node)

    def cyclic(self) -> bool:
        """Whether some thread can come back to a node it was at. O(nodes and edges)."""
        left = dict.fromkeys(self.nodes, 0)
        for node in self.nodes:
            for kid in node.kids.values():
                left[kid] += 1
        todo = [node for node, count in left.items() if not count]
        done = 0
        while todo:
            node = todo.pop()
            done += 1
            for kid in node.kids.values():
                left[kid] -= 1
                if not left[kid]:
                    todo.append(kid)
        return done < len(self.nodes)

    def kid(self, node: Node, value: int) -> Node:
        """The node after ``node``'s operation returned ``value``."""
        kid = node.kids.get(value)
        if kid is None:
            strand = node.strand
            node.strand = None
            if strand is None:
                self.runs += 1
                strand = self._start(node)
            self.world.go_on(strand, value)
            kid = Node(node.thread, node, value, 0)
            kid.spurious += node.code == op.WAIT and value != 0
            kid = node.kids[value] = self._settle(strand, kid)
        return kid

    def asleep(self, node: Node) -> Node:
        """The thread of a wait, asleep."""
        bed = node.bed
        if bed is None:
            bed = node.bed = Node(node.thread, node, 0, len(self.nodes))
            self.nodes.append(bed)
            bed.code, bed.at, bed.depth = op.ASLEEP, node.at, node.depth
            bed.notes, bed.where, bed.count = node.notes, node.where, node.count
            bed.second, bed.spurious = node.second, node.spurious
        return bed

    def awake(self, bed: Node, *, spuriously: bool = False) -> Node:
        """The thread after its sleep. That it woke for no reason is part of its history, its code cannot tell."""
        assert bed.parent is not None
        return self.kid(bed.parent, 1 if spuriously else 0)

    def look(self, node: Node, memory: Memory) -> tuple[Memory, Node | None, int]:
        """Carry out a node's operation on a memory, at once (sequentially consistent); kept in the node's table."""
        code, at, first = node.code, node.at, node.first
        seen = memory.values[at]
        wakes = -1
        after = memory
        kid: Node | None
        if code <= op.LOAD_ACQUIRE:
            kid = self.kid(node, seen)
        elif code <= op.UNLOCK:
            after = self.written(memory, at, op.after(code, seen, first, 0))
            kid = self.kid(node, 0)
        elif code <= op.OR:
            after = self.written(memory, at, op.after(code, seen, first, node.second))
            kid = self.kid(node, seen)
        elif code == op.LOCK:
            kid = None
            if not seen:
                after = self.written(memory, at, node.thread + 1)
                kid = self.kid(node, 0)
        elif code == op.WAIT:
            kid = self.asleep(node) if op.same_futex(seen, first) else self.kid(node, 0)
        else:
            wakes = at if code == op.WAKE else -1
            kid = self.kid(node, 0)
        found = node.memo[memory] = (after, kid, wakes)
        return found

    def wake(self, nodes: list[Node], waker: Node) -> None:
        """Wake the sleepers on the waker's point: up to its count, in the order of threads."""
        left = waker.first
        for thread, node in enumerate(nodes):
            if left and node.code == op.ASLEEP and node.at == waker.at:
                nodes[thread] = self.awake(node)
                left -= 1
