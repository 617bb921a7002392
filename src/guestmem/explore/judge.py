"""Whether a state shows a finding: a thread that failed, an invariant, a deadlock, a final property."""

from __future__ import annotations

from collections.abc import Sequence

from . import operations as op
from .finding import Finding
from .machine import Machine, State
from .tree import Memory, Node
from .view import View

__all__ = ["Judge"]

_KINDS = {
    "AssertionError": "assertion",
    "InvariantError": "assertion",
    "OverflowError": "overflow",
    "Livelock": "livelock",
}


class Judge:
    """Judges the states of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.tree = machine, machine.tree
        self.world = machine.tree.world
        self.invariants = self.world.scene.invariants
        self._view = View(machine.tree)
        self._pasts: dict[Node, int] = {}

    def failed(self, node: Node) -> Finding:
        """The finding that a thread's exception is."""
        failure = node.outcome
        kind = _KINDS.get(failure.error, "error")
        name = self.world.threads[node.thread].name
        return Finding(kind, failure.error, failure.message, self.machine.name, name, failure.where)

    def arrived(self, state: State) -> Finding | None:
        """What is wrong with a state that was just reached."""
        nodes = self.machine.nodes(state)
        for node in nodes:
            if node.code == op.FAILED:
                return self.failed(node)
        if self.invariants:
            broken = self._view.broken(self.invariants, self.machine.memory(state), nodes)
            if broken is not None:
                return Finding("invariant", broken[0], broken[1].message, self.machine.name)
        return None

    def invariants_of(self, memory: Memory, nodes: Sequence[Node]) -> tuple[list[int], bool]:
        """Which points the invariants looked at, in order, and whether one of them is broken."""
        reads = self._view.reads = []
        try:
            return reads, self._view.broken(self.invariants, memory, nodes) is not None
        finally:
            self._view.reads = None

    def ended(self, state: State) -> Finding | None:
        """What is wrong with a state in which nothing more can happen."""
        nodes = self.machine.nodes(state)
        if any(node.code != op.ENDED for node in nodes):
            return self.deadlock(nodes)
        broken = self._view.broken_in_the_end(self.machine.memory(state), nodes)
        return broken and Finding("final", broken[0], broken[1].message, self.machine.name)

    def deadlock(self, nodes: Sequence[Node]) -> Finding:
        """Some threads wait, and nobody will ever wake them."""
        waiting = []
        first = None
        for node in nodes:
            if node.code in {op.ASLEEP, op.LOCK}:
                first = first or node
                what = "sleeps on" if node.code == op.ASLEEP else "wants the lock"
                place = self.world.places[self.tree.points[node.at]]
                waiting.append(f"{self.world.threads[node.thread].name} {what} {place} at {node.where}")
        assert first is not None
        name = ", ".join(self.world.threads[n.thread].name for n in nodes if n.code in {op.ASLEEP, op.LOCK})
        return Finding("deadlock", name, "; ".join(waiting), self.machine.name, "", first.where)

    def end(self, state: State) -> int:
        """A final state, for comparison with those of another search: a hash of all values and all histories."""
        parts = [hash(self.machine.memory(state).values)]
        for node in self.machine.nodes(state):
            past = self._pasts.get(node)
            if past is None:
                past = self._pasts[node] = hash(tuple(node.history()))
            parts.append(past)
        return hash(tuple(parts))
