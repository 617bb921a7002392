"""Structures of words, declared once: each field's place, width, cache line and meaning.

A layout is a module that opens a ``Structure`` and binds each field to a name; ``name_fields(globals())`` at its end
tells the structures these names. From that come the constants that compiled code uses (plain module constants, as
``const`` makes them), sizes, names of counters, and labels for the stories that ``explore`` tells. Places are given
out in order, so nothing can overlap; what asks for a place (``at``) that is taken, or passes the structure's ``size``,
is refused at import. Idea: ``pahole``, which shows a C structure as the compiler laid it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from .compiled import INTERPRETED, const
from .errors import InvariantError

__all__ = ["LINE", "Field", "Structure", "name_fields"]

LINE = 8
"""Words of a cache line."""


class _Offset(int):
    """A place before it has a name: small integers are one object each, so they cannot be told apart."""

    __slots__ = ()


@dataclass(slots=True)
class Field:
    """``words`` words from ``offset`` on; 0: up to the end. ``element``: they are an array of these structures."""

    offset: int
    words: int
    doc: str
    value: int
    """The constant that compiled code uses."""
    counter: bool = False
    shown: str = ""
    """Name of a counter, where it is not the constant's in lower case."""
    element: Structure | None = None
    name: str = ""


class Structure:
    """Words with names. ``size``: how many there are, if their number is fixed.

    >>> lock = Structure("lock", "a lock, and who waits", size=24)
    >>> HOLDER = lock.line("who holds it; futex")
    >>> WAITERS, SLEPT = lock.word("how many wait"), lock.counter("waits that slept")
    >>> name_fields({"LOCK": lock, "HOLDER": HOLDER, "WAITERS": WAITERS, "SLEPT": SLEPT})
    >>> print(lock)
    lock: a lock, and who waits
       0       HOLDER   who holds it; futex
       8       WAITERS  how many wait
       9       SLEPT    waits that slept
    >>> lock.counter_names, lock.label(8), lock.label(10)
    (('slept',), 'WAITERS', '')
    """

    def __init__(self, name: str, doc: str = "", *, size: int = 0) -> None:
        self.name, self.doc, self.size = name, doc, size
        self.fields: list[Field] = []
        self._next = 0

    # -- declaring ---------------------------------------------------------------------------------------------------

    def word(self, doc: str, *, at: int | None = None) -> int:
        """A field of one word: the next one, or the one at ``at``."""
        return self._add(1, doc, at)

    def words(self, count: int, doc: str, *, at: int | None = None) -> int:
        """A field of ``count`` words; 0: as many as there are, at the end."""
        return self._add(count, doc, at)

    def line(self, doc: str) -> int:
        """A field of one word that has a cache line to itself: it is written often, and others are read beside it."""
        self.new_line()
        value = self._add(1, doc, None)
        self.new_line()
        return value

    def counter(self, doc: str, *, shown: str = "") -> int:
        """A word that counts; its name in tables is the constant's in lower case, or ``shown``."""
        value = self._add(1, doc, None)
        self.fields[-1].counter, self.fields[-1].shown = True, shown
        return value

    def array(self, element: Structure, doc: str, *, count: int = 0) -> int:
        """``count`` structures, one after the other, from the next cache line on; 0: as there are, at the end."""
        self.new_line()
        value = self._add(count * element.words_taken, doc, None)
        self.fields[-1].element = element
        return value

    def new_line(self) -> None:
        """What follows begins a cache line."""
        self._next = -(-self._next // LINE) * LINE

    def mark(self) -> int:
        """Where the next field will be, as a constant without a name of its own."""
        return const(self._next)

    def _add(self, count: int, doc: str, at: int | None) -> int:
        offset = self._next if at is None else at
        end = offset + count
        for other in self.fields:
            if offset < other.offset + max(other.words, 1) and other.offset < end:
                raise InvariantError(
                    f"{self.name}: words [{offset}, {end}) ({doc}) overlap the field at {other.offset}"
                )
        if self.size and end > self.size:
            raise InvariantError(f"{self.name}: words [{offset}, {end}) ({doc}) pass its {self.size} words")
        value = cast("int", _Offset(offset)) if INTERPRETED else const(offset)
        self.fields.append(Field(offset, count, doc, value))
        self._next = end
        return value

    # -- what is declared --------------------------------------------------------------------------------------------

    @property
    def words_taken(self) -> int:
        """Words up to the end of the last field; ``size`` where that is fixed."""
        return self.size or self._next

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' names, in the order of their places."""
        return tuple(field.name for field in sorted(self.fields, key=lambda field: field.offset))

    @property
    def counter_names(self) -> tuple[str, ...]:
        """Names of the counters, in order, in lower case."""
        return tuple(field.shown or field.name.lower() for field in self.fields if field.counter)

    @property
    def first_counter(self) -> int:
        """Where the first counter is."""
        return next(field.offset for field in self.fields if field.counter)

    def label(self, index: int) -> str:
        """The name of a word, such as ``PAUSED``, ``PATH[2]``, ``DONE of vCPU 1``, ``reader 2``; "" if it has none."""
        for field in self.fields:
            past = index - field.offset
            if past < 0 or (field.words and past >= field.words):
                continue
            if field.element is not None:
                number, word = divmod(past, field.element.words_taken)
                inner = field.element.label(word)
                which = f"{field.element.name} {number}"
                return "" if not inner else which if len(field.element.fields) == 1 else f"{inner} of {which}"
            name = field.name.strip("_")
            return name if field.words == 1 else f"{name}[{past}]"
        return ""

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.doc}"]
        width = max(len(field.name) for field in self.fields)
        for field in sorted(self.fields, key=lambda field: field.offset):
            count = f"x{field.words}" if field.words > 1 else ""
            lines.append(f"{field.offset:4} {count:5} {field.name:{width}}  {field.doc}")
        return "\n".join(lines)


def name_fields(namespace: dict[str, Any]) -> None:
    """Tell a module's structures the names of their fields, at its end; InvariantError for a field without one.

    In the interpreted form the constants become plain integers.
    """
    names = {id(value): name for name, value in namespace.items()}
    for structure in [value for value in namespace.values() if isinstance(value, Structure)]:
        for field in structure.fields:
            if field.name:
                continue
            if id(field.value) not in names:
                raise InvariantError(f"{structure.name}: word {field.offset} ({field.doc}) has no name")
            field.name = names[id(field.value)]
            if INTERPRETED:
                namespace[field.name] = int(field.value)
