"""A model: what its threads are, what they share, and what must hold; and the scene that ``build`` sets up from it.

A model is one small file in ``models/``. Its ``build`` takes the rooms it needs from a twin (``scene.room``), makes
words and fills them with the rooms' own functions, and names the threads. A thread is a plain Python function that
calls the rooms' functions; it must depend on nothing but its arguments and on what its atomics return, for it is run
once for each distinct history of these. Words of one thread (``Own``) among its arguments are copied for each run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..compiled import Words
from ..errors import UsageError
from .twin import Mutation, Twin

if TYPE_CHECKING:
    from .view import View

__all__ = ["Model", "Property", "Region", "Scene", "SceneThread"]

HOST_BASE = 0x1000_0000
"""Where a model's pretended host memory begins: the same on every machine, unlike real addresses."""


@dataclass(frozen=True)
class Model:
    """A model: ``build`` sets up a scene; the rest says what it is and how far it is searched.

    ``proves`` is one sentence, ``size`` the configuration that was explored ("2 readers, 1 updater"). ``stale`` asks
    for the memory model in which loads return any value still allowed. ``spurious``: how often each thread may wake up
    without being woken. ``steps``: points a thread may pass before it counts as a livelock. ``buffer``: stores that
    may wait in a store buffer; with 1, none overtakes. ``geometry``: replacements that make constants small enough
    (they are no mutants). ``exhaustive`` is false for a configuration that only random search gets through. ``finds``:
    what is found (the kind of finding), for a model of a design that is known to be wrong; empty for one that is to be
    clean. ``dpor``: whether partial-order reduction gets through, too. ``source``: the file of one that is the user's
    own; ``edits``: changes to it (old, new) that are made first.
    """

    name: str
    proves: str
    size: str
    build: Callable[[Scene], None]
    stale: bool = False
    spurious: int = 0
    steps: int = 1000
    buffer: int = 8
    geometry: tuple[Mutation, ...] = ()
    exhaustive: bool = True
    finds: str = ""
    dpor: bool = True
    source: str = ""
    edits: tuple[tuple[str, str], ...] = ()

    def __reduce__(self) -> Any:
        """One of the user's own is loaded again from its file, in whichever process it is handed to; else by name."""
        if not self.source:
            from .models import find, models

            return (find, (self.name,)) if self in models() else super().__reduce__()
        from .own import again

        return again, (self.source, self.name, self.edits)

    @property
    def bounds(self) -> str:
        """The size with all that bounds a search of the model, in words."""
        bounds = [self.size]
        if self.buffer != Model.buffer:
            bounds.append(f"at most {self.buffer} store{'s' * (self.buffer > 1)} in a buffer")
        if not self.dpor:
            bounds.append("over states only: too many orders for partial-order reduction")
        if self.spurious:
            bounds.append(f"at most {self.spurious} wakeup{'s' * (self.spurious > 1)} without a cause a thread")
        return "; ".join(bounds)


class Property(NamedTuple):
    """Something that must hold; else ``check`` raises an AssertionError, such as InvariantError, or returns False."""

    name: str
    check: Callable[[View], object]


class SceneThread(NamedTuple):
    """A thread of a scene."""

    name: str
    body: Callable[..., object]
    arguments: tuple[Any, ...]


Telling = Callable[[int, int, Callable[[int], int]], tuple[str, str]]
"""What a word is, and what its value means: see ``Scene.words``."""


@dataclass(frozen=True)
class Region:
    """Shared words under one name; ``base`` is their first place among all words of the scene."""

    name: str
    words: Words
    base: int
    label: Callable[[int], str] | None = field(default=None, compare=False)
    told: Telling | None = field(default=None, compare=False)

    def named(self, index: int) -> str:
        """How a story calls word ``index``."""
        label = self.label(index) if self.label is not None else ""
        return f"{self.name}[{label or index}]"


class _Scheduler(Protocol):
    def step(self, operation: str, words: Words | None, index: int, first: int, second: int) -> int: ...

    def note(self, key: str, value: object) -> None: ...


class Scene:
    """What a model's ``build`` fills in. Nothing is scheduled while it runs: it sees and changes the words at once."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self.scheduler: _Scheduler | None = None
        self.threads: list[SceneThread] = []
        self.regions: list[Region] = []
        self.hosts: list[tuple[int, Region]] = []
        self.invariants: list[Property] = []
        self.finals: list[Property] = []
        self.size = 0
        self.tellers: list[tuple[Any, Callable[[Any, Any], Sequence[str]]]] = []

    def tell(self, own: Any, how: Callable[[Any, Any], Sequence[str]]) -> None:
        """In stories, of words of one thread: ``how(before, after)`` says what has changed, line by line."""
        self.tellers.append((own, how))

    def room(self, module: str) -> ModuleType:
        """A room of the twin, by its name below the package: ``scene.room("rcu.srcu")``."""
        return self._twin.room(module)

    def files(self) -> list[str]:
        """The source files of the twin's modules."""
        return [module.__file__ for module in self.modules() if module.__file__]

    def modules(self) -> list[ModuleType]:
        """The twin's modules that were loaded so far."""
        return [module for name, module in sys.modules.items() if name.startswith(self._twin.name + ".")]

    def words(
        self,
        name: str,
        source: Words | int | Sequence[int],
        label: Callable[[int], str] | None = None,
        told: Telling | None = None,
    ) -> Words:
        """Share words under ``name``: some that a room made, so many zeroed ones, or ones with these values.

        ``label`` names a word in stories by its index (empty: by number). ``told(index, value, word)`` says in stories
        what the word is, and what its value means, each empty for none; ``word(i)`` is word i at that time. A label
        that has a ``told`` of its own needs none here.
        """
        if any(region.name == name for region in self.regions):
            raise UsageError(f"words: {name!r} is there twice")
        words: Words
        if isinstance(source, int):
            words = self.room("compiled").words(source)
        elif hasattr(source, "cells"):
            words = cast("Words", source)
        else:
            words = self.room("compiled").words(len(source))
            for index, value in enumerate(source):
                words.cells[index] = value
        self.regions.append(Region(name, words, self.size, label, told or getattr(label, "told", None)))
        self.size += len(words.cells)
        return words

    def host(self, name: str, values: Sequence[int]) -> int:
        """Pretended host memory with these 8-byte values; returns its address, for ``host_load`` and its like.

        Only threads may access it: the address is not real.
        """
        return self.address(self.words(name, values))

    def address(self, words: Words) -> int:
        """A pretended host address of words that are shared already: the same words, accessed the other way."""
        region = next(region for region in self.regions if region.words is words)
        address = HOST_BASE * (1 + len(self.hosts))
        self.hosts.append((address, region))
        return address

    def own(self, values: int | Sequence[int]) -> Any:
        """Words of one thread: each run of the thread that has them as an argument gets a copy."""
        if isinstance(values, int):
            return self.room("compiled").own(values)
        own = self.room("compiled").own(len(values))
        for index, value in enumerate(values):
            own[index] = value
        return own

    def thread(self, name: str, body: Callable[..., object], *arguments: Any) -> None:
        """Add a thread that runs ``body(*arguments)``. What it returns is its result, for final properties."""
        if any(thread.name == name for thread in self.threads):
            raise UsageError(f"thread: {name!r} is there twice")
        self.threads.append(SceneThread(name, body, arguments))

    def invariant(self, name: str, check: Callable[[View], object]) -> None:
        """What must hold in every state. ``check(view)`` raises an AssertionError or returns False."""
        self.invariants.append(Property(name, check))

    def final(self, name: str, check: Callable[[View], object]) -> None:
        """What must hold once all threads have returned. The words hold their final values, so rooms' checks work."""
        self.finals.append(Property(name, check))

    # What threads call.

    def note(self, key: str, value: object = True) -> None:
        """From a thread: say where it is, for invariants (``view.note``). Seen together with the point before it."""
        assert self.scheduler is not None
        self.scheduler.note(key, value)

    def lock(self, words: Words, index: int) -> None:
        """From a thread: take a lock of the model's own (a word that is 0 when free), blocking.

        Others may load the word; only ``lock`` and ``unlock`` write it.
        """
        assert self.scheduler is not None
        self.scheduler.step("lock", words, index, 0, 0)

    def unlock(self, words: Words, index: int) -> None:
        """From a thread: give the lock back. Release."""
        assert self.scheduler is not None
        self.scheduler.step("unlock", words, index, 0, 0)

    def __iter__(self) -> Iterator[SceneThread]:
        return iter(self.threads)
