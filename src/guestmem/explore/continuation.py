"""What a stopped thread can still do, as a key: position and live locals of each of its frames, and its own words.

Two runs of a thread that stopped with the same key go on alike, whatever they did before, so a search need not tell
them apart. What a frame is in the middle of, an expression's values so far or the iterator of a loop, lies on its
evaluation stack (``stops.py``). Where that cannot be read, where C code between two frames may keep something
(``between.py``), or a value is of a kind that is not known here, there is no key, and the run is like no other: a
search becomes larger, never wrong.

Objects that were there when the scene was set up stand for themselves: a thread must not change them.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import marshal
import types
from collections import deque
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

from .between import nothing_between
from .stops import Stop, reads_stacks, stack_of, stops

__all__ = ["Keys", "Unknown", "reachable"]

_NUMBERS = frozenset({int, bool, float, complex, type(None), type(Ellipsis)})
_TEXTS = frozenset({str, bytes})
_PLAIN = _NUMBERS | _TEXTS
_WHOLE = (types.ModuleType, type, types.CodeType, types.FrameType, types.TracebackType)
"""What stands for itself wherever it is met, whatever it holds."""
_CONTENT = frozenset({tuple, list, int, str, bytes, dict, set, frozenset})
"""Classes whose content is looked at in objects of their subclasses, or for which there is no key then."""
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_UNSET = object()
"""In the place of a local that is not set."""


class Unknown(Exception):  # noqa: N818 - says what it is
    """A value has no key."""


def reachable(roots: Iterable[object], beside: Iterable[object]) -> list[object]:
    """``beside``; and ``roots`` and what can be reached from them, not through modules, classes, code or ``beside``.

    O(objects).
    """
    found = list(beside)
    seen = {id(each) for each in found}
    todo = list(roots)
    while todo:
        value = todo.pop()
        if type(value) in _PLAIN or id(value) in seen:
            continue
        seen.add(id(value))
        found.append(value)
        if isinstance(value, types.FunctionType):
            todo += [value.__closure__, value.__defaults__, value.__kwdefaults__]
        elif not isinstance(value, _WHOLE):
            todo += gc.get_referents(value)
    return found


def _holds_more(kind: Any) -> bool:
    """Whether objects of a class hold more than attributes and what ``_CONTENT`` has, such as an ``array.array``."""
    while kind is not object and kind not in _CONTENT:
        base, slots = kind.__base__, kind.__dict__.get("__slots__", ())
        names = {slots} if isinstance(slots, str) else {*slots}
        words = len(names - {"__dict__", "__weakref__"})
        words += bool(kind.__weakrefoffset__) > bool(base.__weakrefoffset__)
        words += bool(kind.__dictoffset__) > bool(base.__dictoffset__)
        if kind.__basicsize__ > base.__basicsize__ + words * _POINTER:
            return True
        kind = base
    return False


@functools.lru_cache(maxsize=1024)
def _attributes(kind: Any) -> tuple[str, tuple[str, ...]] | None:
    """Of a class made by Python code its name and its slots; None of another."""
    if not kind.__flags__ & 1 << 9 or issubclass(kind, BaseException) or _holds_more(kind):
        return None
    slots = [name for each in kind.__mro__ for name in getattr(each, "__slots__", ()) if not name.startswith("__")]
    return f"{kind.__module__}.{kind.__qualname__}", tuple(slots)


class Keys:
    """Makes keys of a world's threads. ``known``: objects of the scene, which stand for themselves.

    ``words``: the class of shared words, and ``places`` gives the number of the first of some, None if they have none.

    A key is a hash of a list of plain values in which all that a run holds is written down one after the other, each
    with its kind and how many follow, so that no two read the same: texts after a ``'``, numbers as they are.
    """

    def __init__(self, known: Iterable[object], words: type, places: Callable[[object], int | None]) -> None:
        self._words = words
        self._held: list[object] = [*known, _UNSET]
        self._known = {id(each) for each in self._held}
        self._place = places
        self._stable = False
        self._out: list[Any] = []
        self._seen: dict[int, int] = {}
        self._hold: list[object] = []
        """What was met while a key is made: as long as it is held, its id is nobody else's."""
        self.unknown: dict[str, int] = {}
        """Kinds of values that had no key, and how often."""

    def forget(self) -> None:
        """Hold nothing any more: no key is made after this."""
        self._held.clear()
        self._known.clear()

    def of(self, frames: Iterable[types.FrameType], more: object) -> bytes | None:
        """The key of a run that is stopped in ``frames``, and of ``more``; None if something in it has none."""
        try:
            self._all((more,))
            inner = None
            for frame in frames:
                stop = self._frame(frame)
                if inner is not None:
                    self._called(frame, stop, inner)
                inner = frame
            return self._made()
        except Unknown as what:
            self.unknown[str(what)] = self.unknown.get(str(what), 0) + 1
            return None
        finally:
            self._clear()

    def value(self, value: object, *, stable: bool = False) -> bytes | None:
        """The key of a value; ``stable``: the same in another process."""
        self._stable = stable
        try:
            self._all((value,))
            return self._made()
        except Unknown:
            return None
        finally:
            self._stable = False
            self._clear()

    def _made(self) -> bytes:
        return blake2b(marshal.dumps(self._out, 2), digest_size=16).digest()

    def _clear(self) -> None:
        self._out = []
        self._seen.clear()
        self._hold.clear()

    def _keep(self, value: object) -> None:
        """Keep an object that stands for itself, so that its id is nobody else's."""
        if id(value) not in self._known:
            self._known.add(id(value))
            self._held.append(value)

    @staticmethod
    def _called(frame: types.FrameType, stop: Stop, inner: types.FrameType) -> None:
        if not nothing_between(frame, stop, inner):
            raise Unknown(f"{frame.f_code.co_qualname} calls {inner.f_code.co_qualname} by way of what keeps something")

    def _frame(self, frame: types.FrameType) -> Stop:
        code = frame.f_code
        stop = stops(code).get(frame.f_lasti)
        if stop is None:
            raise Unknown(f"{code.co_qualname} is stopped where it calls nothing")
        self._keep(code)
        self._out += ("f", id(code), stop.at)
        if stop.stack:
            if not reads_stacks():
                raise Unknown("evaluation stacks cannot be read")
            self._all(stack_of(frame, stop.stack))
        held = frame.f_locals
        self._all([held.get(name, _UNSET) for name in stop.live])
        return stop

    def _all(self, values: Iterable[Any]) -> None:
        """Write values down, one after the other."""
        out, known, seen, stable = self._out, self._known, self._seen, self._stable
        for value in values:
            kind = type(value)
            if kind in _NUMBERS:
                out.append(value)
                continue
            if kind in _TEXTS:
                out += ("'", value)
                continue
            me = id(value)
            if me in known and not stable:
                out += ("k", me)
            elif kind is tuple:
                out += ("t", len(value))
                self._all(value)
            elif stable and self._written(value, kind):
                pass
            elif me in seen:
                out += ("s", seen[me])
            else:
                seen[me] = len(seen)
                self._hold.append(value)
                write = _KINDS.get(kind)
                if write is None:
                    self._other(value, kind)
                else:
                    write(self, value)

    def _written(self, value: Any, kind: Any) -> bool:
        """Write down what stands for itself in every process alike; whether it does."""
        if kind is self._words:
            place = self._place(value)
            self._out += ("m", len(value)) if place is None else ("w", place)
        elif kind is memoryview:
            self._out += ("m", value.tobytes())
        elif id(value) in self._known:
            self._out += ("k", kind.__qualname__)
        else:
            return False
        return True

    # By kind.

    def _view(self, value: memoryview) -> None:
        whole: Any = value.obj
        first = self._seen.setdefault(id(whole), len(self._seen))
        self._hold.append(whole)
        start = 0
        if not value.readonly and value.nbytes:
            address = ctypes.c_char.from_buffer
            start = ctypes.addressof(address(value)) - ctypes.addressof(address(whole))
        self._out += ("m", first, start, value.format, value.tobytes())

    def _list(self, value: list[Any]) -> None:
        self._out += ("l", len(value))
        self._all(value)

    def _dict(self, value: dict[Any, Any]) -> None:
        self._out += ("d", len(value))
        self._all(value)
        self._all(value.values())

    def _set(self, value: set[Any]) -> None:
        out, each_of = self._out, []
        for each in value:
            self._out = []
            self._all((each,))
            each_of.append(marshal.dumps(self._out, 2))
        self._out = out
        self._out += ("S", len(each_of), *sorted(each_of))

    def _deque(self, value: deque[Any]) -> None:
        self._out += ("q", len(value))
        self._all(value)

    def _bytes(self, value: bytearray) -> None:
        self._out += ("b", bytes(value))

    def _repr(self, value: range | slice) -> None:
        self._out += ("R", repr(value))

    def _function(self, value: types.FunctionType) -> None:
        self._keep(value.__code__)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
        self._out += ("F", value.__qualname__ if self._stable else id(value.__code__), len(cells), len(defaults))
        self._all(cells)
        self._all(defaults)

    def _method(self, value: types.MethodType) -> None:
        self._out.append("M")
        self._all((value.__func__, value.__self__))

    def _builtin(self, value: types.BuiltinFunctionType) -> None:
        if isinstance(value.__self__, types.ModuleType | None):
            self._itself(value)
        else:
            self._out += ("B", value.__name__)
            self._all((value.__self__,))

    def _itself(self, value: Any) -> None:
        self._keep(value)
        self._out += ("k", getattr(value, "__qualname__", "") if self._stable else id(value))

    def _generator(self, value: types.GeneratorType[Any, Any, Any]) -> None:
        if value.gi_running or value.gi_frame is None:  # one that runs is among the frames
            self._out += ("g", value.gi_running)
        else:
            self._out.append("G")
            self._frame(value.gi_frame)

    def _other(self, value: Any, kind: Any) -> None:
        inside = _attributes(kind)
        if isinstance(value, types.ModuleType | type):
            self._itself(value)
        elif kind.__name__ in {"lock", "RLock"} and kind.__module__ in {"_thread", "thread"}:
            self._out += ("L", repr(value).split()[0])
        elif inside is not None:
            self._object(value, *inside)
        else:
            self._reduced(value, f"{kind.__module__}.{kind.__qualname__}")

    def _object(self, value: Any, what: str, slots: tuple[str, ...]) -> None:
        """One of a class made by Python code: its attributes."""
        own = sorted(getattr(value, "__dict__", ()))
        self._out += ("o", what, len(own), *own)
        self._all([getattr(value, name, None) for name in slots])
        self._all([value.__dict__[name] for name in own])
        if isinstance(value, tuple | list):
            self._out.append(len(value))
            self._all(value)
        elif isinstance(value, int | str | bytes):
            self._out.append(repr(value))
        elif isinstance(value, dict | set | frozenset):
            raise Unknown(what)

    def _reduced(self, value: Any, what: str) -> None:
        """Iterators and the like: they say how they could be made again."""
        if isinstance(value, BaseException | types.FrameType | types.TracebackType):
            raise Unknown(what)
        try:
            made = value.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 - whatever it says when it cannot
            raise Unknown(what) from None
        if isinstance(made, tuple):
            self._out += ("r", what, len(made))
            self._all(made[1:])
        else:
            self._out += ("n", what, str(made))


_BY_KIND = {
    memoryview: "view",
    list: "list",
    dict: "dict",
    set: "set",
    frozenset: "set",
    deque: "deque",
    bytearray: "bytes",
    range: "repr",
    slice: "repr",
    types.FunctionType: "function",
    types.MethodType: "method",
    types.BuiltinFunctionType: "builtin",
    types.CodeType: "itself",
    types.GeneratorType: "generator",
}
_KINDS: dict[Any, Callable[[Keys, Any], None]] = {kind: getattr(Keys, f"_{name}") for kind, name in _BY_KIND.items()}
