"""What a property looks at: the shared words and, of each thread, its notes and its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..compiled import Words
from ..errors import UsageError
from . import operations as op
from .scene import Property
from .tree import Memory, Node, Tree
from .world import Failure, Reshaped, Where

__all__ = ["View"]


def _copied(value: Any) -> Any:
    """A result in which words of one thread are copies: the next state that has it must find it as it was."""
    if isinstance(value, memoryview):
        return memoryview(bytearray(value.tobytes())).cast("B").cast("Q")
    if type(value) in {tuple, list}:
        return type(value)(_copied(each) for each in value)
    return value


class View:
    """A state, for invariants and final properties. Only good while the property runs."""

    def __init__(self, tree: Tree) -> None:
        self._tree, self._world = tree, tree.world
        self._bases = {region.name: region.base for region in self._world.scene.regions}
        self._bases_by_words = {region.words: region.base for region in self._world.scene.regions}
        self._threads = {thread.name: number for number, thread in enumerate(self._world.threads)}
        self._memory = tree.start
        self._nodes: Sequence[Node] = tree.roots
        self._ended = False
        self.reads: list[int] | None = None
        """The points that were looked at, in order, if somebody wants to know."""
        self.asked: set[int] = set()
        """The threads that were."""

    def word(self, words: Words | str, index: int) -> int:
        """A shared word, by its words or their name. What an invariant reads becomes a point."""
        base = self._bases[words] if isinstance(words, str) else self._bases_by_words[words]
        at = self._tree.compact.get(base + index)
        if at is not None:
            if self.reads is not None:
                self.reads.append(at)
            return self._memory.values[at]
        if self._ended:
            place = self._world.places[base + index]
            return place.region.words.cells[place.index]
        self._world.share(base + index)
        raise Reshaped

    def note(self, thread: str, key: str, default: Any = None) -> Any:
        """What a thread last noted under ``key``."""
        return self._nodes[self._thread(thread)].notes.get(key, default)

    def ended(self, thread: str) -> bool:
        """Whether a thread has returned."""
        return self._nodes[self._thread(thread)].code == op.ENDED

    def result(self, thread: str) -> Any:
        """What a thread has returned, None before; words of its own as a copy, which the property may change."""
        return _copied(self._nodes[self._thread(thread)].outcome)

    def _thread(self, name: str) -> int:
        try:
            self.asked.add(self._threads[name])
            return self._threads[name]
        except KeyError:
            raise UsageError(f"thread: {name!r} is not one of {', '.join(self._threads)}") from None

    # For searches.

    def broken(
        self, properties: Sequence[Property], memory: Memory, nodes: Sequence[Node]
    ) -> tuple[str, Failure] | None:
        """The first of the properties that does not hold in a state, and why."""
        self._memory, self._nodes = memory, nodes
        for name, check in properties:
            try:
                if check(self) is not False:
                    continue
                message = "does not hold"
            except Exception as error:  # noqa: BLE001 - a property that fails in whatever way does not hold
                message = " ".join(str(error).split()) or type(error).__name__
            return name, Failure("property", message, Where("", 0, name))
        return None

    def broken_in_the_end(
        self, memory: Memory, nodes: Sequence[Node], properties: Sequence[Property] | None = None
    ) -> tuple[str, Failure] | None:
        """As ``broken``, of the final properties (or some), with the final values in the words themselves."""
        world = self._world
        properties = world.scene.finals if properties is None else properties
        if not properties:
            return None
        values = dict.fromkeys(world.dirty)
        values |= zip(self._tree.points, memory.values, strict=False)
        for node in nodes:
            values |= node.overlay
        for place, value in values.items():
            region, index = world.places[place].region, world.places[place].index
            region.words.cells[index] = world.initial[place] if value is None else value
        world.dirty |= values.keys()
        before = [(region.words.cells, bytes(region.words.cells)) for region in world.scene.regions]
        self._ended = True
        try:
            return self.broken(properties, memory, nodes)
        finally:
            self._ended = False
            for cells, was in before:  # what a property wrote, such as what a TLB had logged, no thread must find
                if cells != memoryview(was).cast("Q"):
                    cells[:] = memoryview(was).cast("Q")
