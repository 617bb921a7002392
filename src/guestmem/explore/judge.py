"""Whether a state shows a finding: a thread that failed, an invariant, a deadlock, a final property."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

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
        self._faces: dict[Node, int] = {}

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

    def asked(self, finding: Finding, state: State) -> set[int]:
        """The threads whose notes or results the property of a finding asks for in its state."""
        every = self.world.scene.invariants if finding.kind == "invariant" else self.world.scene.finals
        its = [each for each in every if each.name == finding.name]
        self._view.asked.clear()
        if finding.kind == "invariant":
            self._view.broken(its, self.machine.memory(state), self.machine.nodes(state))
        else:
            self._view.broken_in_the_end(self.machine.memory(state), self.machine.nodes(state), its)
        return set(self._view.asked)

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
        """A final state, for comparison with another search's: a hash of all values, and of what threads came to.

        That is what a thread returned and wrote to words of its own, or where it waits. Nothing of how it came there:
        a search over merged threads does not know.
        """
        parts = [hash(self.machine.memory(state).values)]
        for node in self.machine.nodes(state):
            face = self._faces.get(node)
            if face is None:
                face = self._faces[node] = self._face(node)
            parts.append(face)
        return hash(tuple(parts))

    def _face(self, node: Node) -> int:
        initial = self.world.initial
        wrote = sorted((place, value) for place, value in node.overlay.items() if value != initial[place])
        if node.code != op.ENDED:
            came = f"{node.code} {node.at} {node.where} {wrote}".encode()
        else:
            key = self.world.keys.value((node.outcome, wrote), stable=True)
            came = repr(wrote).encode() if key is None else key
        return int.from_bytes(blake2b(came, digest_size=7).digest(), "little")
