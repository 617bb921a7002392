"""What a stopped thread can still do, as a key: position and live locals of each of its frames, and its own words.

Two runs of a thread that stopped with the same key go on alike, whatever they did before, so a search need not tell
them apart. What a frame is in the middle of, an expression's values so far or the iterator of a loop, lies on its
evaluation stack. How deep that is at each call follows from the byte code; its values are read where the interpreter
keeps them, which a check at import tries out. Where it cannot be read, or a value is of a kind that is not known here,
there is no key, and the run is like no other: a search becomes larger, never wrong.

Objects that were there when the scene was set up stand for themselves: a thread must not change them.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import gc
import marshal
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import greenlet

__all__ = ["Keys", "Unknown", "reachable", "reads_stacks"]

_F_FRAME, _LOCALS_PLUS = 24, 72
"""Where a frame object has its interpreter frame, and that its locals and stack; CPython 3.11 to 3.13, 64 bits."""

_PLAIN = frozenset({int, str, bytes, bool, float, complex, type(None), type(Ellipsis)})
_WHOLE = (types.ModuleType, type, types.CodeType, types.FrameType, types.TracebackType)
"""What stands for itself wherever it is met, whatever it holds."""
_CALLS = {
    *("CALL", "CALL_FUNCTION_EX", "CALL_KW", "BINARY_SUBSCR", "BINARY_OP", "COMPARE_OP", "CONTAINS_OP", "LOAD_ATTR"),
    *("FOR_ITER", "YIELD_VALUE", "RETURN_GENERATOR", "BEFORE_WITH"),
}
"""Instructions at which a frame can be stopped; each leaves one value on the stack."""


class Unknown(Exception):  # noqa: N818 - says what it is
    """A value has no key."""


class _Stop(NamedTuple):
    """A place where a frame can be stopped: which locals are still used, and how many values are on its stack."""

    live: tuple[str, ...]
    stack: int


@functools.lru_cache(maxsize=2048)  # each twin has code objects of its own
def _stops(code: types.CodeType) -> dict[int, _Stop]:
    """By offset of a call: what of a frame is used after it."""
    steps = list(dis.get_instructions(code))
    at = {step.offset: i for i, step in enumerate(steps)}
    handlers = [
        (at[entry.start], max(i for i, step in enumerate(steps) if step.offset < entry.end), at[entry.target], entry)
        for entry in dis._parse_exception_table(code)  # type: ignore[attr-defined]  # noqa: SLF001 - as dis itself does
    ]
    after: list[list[int]] = []
    for i, step in enumerate(steps):
        then = [] if step.opname in {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"} else [i + 1]
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            then.append(at[step.argval])
            if step.opname in {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"}:
                then.remove(i + 1)
        after.append([k for k in then if k < len(steps)])
    return _joined(code, steps, after, _live(steps, after, handlers), _depths(steps, after, handlers))


def _live(steps: list[Any], after: list[list[int]], handlers: list[Any]) -> list[set[str]]:
    """Of each instruction, the locals that are used after it before they are set."""
    into: list[set[str]] = [set() for _ in steps]
    out: list[set[str]] = [set() for _ in steps]
    changed = True
    while changed:
        changed = False
        for i in range(len(steps) - 1, -1, -1):
            step = steps[i]
            found: set[str] = set().union(*(into[k] for k in after[i]))
            for first, last, target, _ in handlers:
                if first <= i <= last:
                    found |= into[target]
            out[i] = found
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            if step.opname == "STORE_FAST":
                found = found - {step.argval}
            elif "_FAST" in step.opname:  # loads, deletions, and what does two at once
                found = found | {name for name in names if isinstance(name, str)}
            if found != into[i]:
                into[i] = found
                changed = True
    return out


def _depths(steps: list[Any], after: list[list[int]], handlers: list[Any]) -> list[int]:
    """How many values are on the stack before each instruction; -1 where that is not known."""
    depths = [-1] * len(steps)
    todo = [(0, 0)]
    while todo:
        i, depth = todo.pop()
        if depths[i] >= 0:
            continue
        depths[i] = depth
        step = steps[i]
        for first, last, target, entry in handlers:
            if first <= i <= last:
                todo.append((target, entry.depth + 1 + entry.lasti))
        for k in after[i]:
            jumps = k != i + 1 or (len(after[i]) == 1 and step.opname.startswith("JUMP"))
            todo.append((k, depth + dis.stack_effect(step.opcode, step.arg, jump=jumps)))
    return depths


def _joined(
    code: types.CodeType, steps: list[Any], after: list[list[int]], live: list[set[str]], depths: list[int]
) -> dict[int, _Stop]:
    cells = {*code.co_cellvars, *code.co_freevars}
    stops: dict[int, _Stop] = {}
    for i, step in enumerate(steps):
        if step.opname in _CALLS and after[i] and depths[i] >= 0:
            stack = depths[i] + dis.stack_effect(step.opcode, step.arg, jump=False) - 1
            stop = _Stop(tuple(sorted(live[i] | cells)), stack)
            end = steps[i + 1].offset if i + 1 < len(steps) else step.offset + 2
            for offset in range(step.offset, end, 2):  # also those of the instruction's caches
                stops[offset] = stop
    return stops


def _size(code: types.CodeType) -> int:
    """Locals, cells and free variables of a frame; the stack begins after them."""
    return code.co_nlocals + len({*code.co_cellvars} - {*code.co_varnames}) + len(code.co_freevars)


def _stack(frame: types.FrameType, count: int) -> list[Any]:
    """The lowest values of a frame's evaluation stack; None for an empty place."""
    inner = ctypes.c_void_p.from_address(id(frame) + _F_FRAME).value
    assert inner is not None
    base = inner + _LOCALS_PLUS + 8 * _size(frame.f_code)
    values: list[Any] = []
    for k in range(count):
        address = ctypes.c_void_p.from_address(base + 8 * k).value
        values.append(ctypes.cast(address, ctypes.py_object).value if address else None)
    return values


def _tried() -> bool:
    """Whether stacks are where they are looked for: of a function that is stopped in the middle of a loop and a sum."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.implementation.name != "cpython":
        return False
    main = greenlet.getcurrent()
    left, right = object(), [7]

    def stopped() -> object:
        for _ in right:
            return (left, 5, main.switch())
        return None

    run = greenlet.greenlet(stopped)
    run.switch()
    try:
        frame = run.gr_frame
        stop = _stops(frame.f_code).get(frame.f_lasti)
        if stop is None or stop.stack != 3:
            return False
        values = _stack(frame, 3)
        return isinstance(values[0], type(iter([]))) and values[1] is left and values[2] == 5
    finally:
        run.throw(greenlet.GreenletExit)


@functools.cache
def reads_stacks() -> bool:
    """Whether this interpreter's evaluation stacks can be read."""
    try:
        return _tried()
    except Exception:  # noqa: BLE001 - whatever is not as expected
        return False


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


class Keys:
    """Makes keys of a world's threads. ``known``: objects of the scene, which stand for themselves.

    ``words``: the class of shared words, and ``places`` gives the number of the first of some, None if they have none.
    """

    def __init__(self, known: Iterable[object], words: type, places: Callable[[object], int | None]) -> None:
        self._words = words
        self._held: list[object] = list(known)
        self._known = {id(each) for each in self._held}
        self._place = places
        self.unknown: dict[str, int] = {}
        """Kinds of values that had no key, and how often."""

    def forget(self) -> None:
        """Hold nothing any more: no key is made after this."""
        self._held.clear()
        self._known.clear()

    def of(self, frames: Iterable[types.FrameType], more: object) -> bytes | None:
        """The key of a run that is stopped in ``frames``, and of ``more``; None if something in it has none."""
        seen: dict[int, int] = {}
        hold: list[object] = []
        try:
            parts = [self._part(more, seen, hold), *(self._frame(frame, seen, hold) for frame in frames)]
        except Unknown as what:
            self.unknown[str(what)] = self.unknown.get(str(what), 0) + 1
            return None
        return blake2b(marshal.dumps(parts, 2), digest_size=16).digest()

    def value(self, value: object, *, stable: bool = False) -> bytes | None:
        """The key of a value; ``stable``: the same in another process."""
        self._stable = stable
        try:
            return blake2b(marshal.dumps(self._part(value, {}, []), 2), digest_size=16).digest()
        except Unknown:
            return None
        finally:
            self._stable = False

    _stable = False

    def _frame(self, frame: types.FrameType, seen: dict[int, int], hold: list[object]) -> Any:
        code = frame.f_code
        stop = _stops(code).get(frame.f_lasti)
        if stop is None:
            raise Unknown(f"{code.co_qualname} is stopped where it calls nothing")
        if stop.stack and not reads_stacks():
            raise Unknown("evaluation stacks cannot be read")
        values = _stack(frame, stop.stack) if stop.stack else []
        held = frame.f_locals
        self._hold(code)
        return (
            id(code),
            frame.f_lasti,
            [self._part(value, seen, hold) for value in values],
            [(name, self._part(held[name], seen, hold)) for name in stop.live if name in held],
        )

    def _hold(self, value: object) -> None:
        """Keep an object that stands for itself, so that its id is nobody else's."""
        if id(value) not in self._known:
            self._known.add(id(value))
            self._held.append(value)

    def _part(self, value: Any, seen: dict[int, int], hold: list[object]) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is range or kind is slice:
            return ("R", repr(value))
        if kind is tuple:
            return ("t", [self._part(each, seen, hold) for each in value])
        if kind is self._words:
            place = self._place(value)
            if place is not None:
                return ("w", place)
            if self._stable:
                return ("m", len(value))
        elif kind is memoryview:
            if self._stable:
                return ("m", value.tobytes())
        elif id(value) in self._known:
            return ("k", kind.__qualname__) if self._stable else ("k", id(value))
        if id(value) in seen:
            return ("s", seen[id(value)])
        seen[id(value)] = len(seen)
        hold.append(value)
        return self._fresh(value, kind, seen, hold)

    def _fresh(self, value: Any, kind: Any, seen: dict[int, int], hold: list[object]) -> Any:
        """A value that was made since: what it is made of."""

        def all_of(values: Iterable[Any]) -> list[Any]:
            return [self._part(each, seen, hold) for each in values]

        if kind is memoryview:
            whole = value.obj
            first = seen.setdefault(id(whole), len(seen))
            hold.append(whole)
            start = ctypes.addressof(ctypes.c_char.from_buffer(value)) if not value.readonly and value.nbytes else 0
            begin = ctypes.addressof(ctypes.c_char.from_buffer(whole)) if start else 0
            return ("m", first, start - begin, value.format, value.tobytes())
        if kind is list:
            return ("l", all_of(value))
        if kind is dict:
            return ("d", all_of(value), all_of(value.values()))
        if kind in {set, frozenset}:
            return ("S", sorted(map(repr, all_of(value))))
        if kind is bytearray:
            return ("b", bytes(value))
        if kind is deque:
            return ("q", all_of(value))
        if isinstance(value, types.ModuleType | type | types.CodeType | types.BuiltinFunctionType):
            if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType | None):
                return ("B", value.__name__, all_of([value.__self__]))
            self._hold(value)
            return ("k", getattr(value, "__qualname__", "")) if self._stable else ("k", id(value))
        if kind is types.MethodType:
            return ("M", all_of([value.__func__, value.__self__]))
        if kind is types.FunctionType:
            self._hold(value.__code__)
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            name = value.__qualname__ if self._stable else id(value.__code__)
            defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
            return ("F", name, all_of(cells), all_of(defaults))
        if kind.__name__ in {"lock", "RLock"} and kind.__module__ in {"_thread", "thread"}:
            return ("L", repr(value).split()[0])
        if kind is types.GeneratorType:
            if value.gi_running or value.gi_frame is None:  # one that runs is among the frames
                return ("g", value.gi_running)
            return ("g", self._frame(value.gi_frame, seen, hold))
        return self._object(value, kind, all_of)

    def _object(self, value: Any, kind: Any, all_of: Callable[[Iterable[Any]], list[Any]]) -> Any:
        what = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(value, BaseException | types.FrameType | types.TracebackType):
            raise Unknown(what)
        if kind.__flags__ & 1 << 9:  # a class made by Python code: its attributes
            slots = [name for each in kind.__mro__ for name in getattr(each, "__slots__", ()) if name != "__dict__"]
            inside = [getattr(value, name, None) for name in slots if not name.startswith("__")]
            more = all_of(value) if isinstance(value, tuple | list) else ()
            if isinstance(value, int | str | bytes):
                more = [repr(value)]
            elif isinstance(value, dict | set):
                raise Unknown(what)
            return ("o", what, all_of(inside), all_of(sorted(getattr(value, "__dict__", {}).items())), more)
        try:  # iterators and the like say how they could be made again
            made = value.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 - whatever it says when it cannot
            raise Unknown(what) from None
        return ("r", what, all_of(made[1:]) if isinstance(made, tuple) else str(made))
