"""Whether a stopped frame was called by the one outside it with nothing between them that C code keeps meanwhile.

``sorted`` keeps what its key function has returned so far, ``zip`` what its first iterator has yielded, ``filter`` the
value that it asks about, a class the object that ``__init__`` is given: all that lies in no frame, so threads that
differ in it alone would have one key (``continuation.py``). What is known to keep nothing is named here; all else is
not known.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from .stops import Stop, reads_stacks, runs_within, stack_of

__all__ = ["code_of", "nothing_between"]

_NEXT = (next, any, all, types.GeneratorType.send, types.GeneratorType.throw, types.GeneratorType.close)
"""Builtins that run a generator and keep nothing of what it has yielded."""


def code_of(called: Any) -> types.CodeType | None:
    """The Python code that a call of something runs first, with nothing but its arguments; None if there is none."""
    while True:
        kind = type(called)
        if kind is types.FunctionType:
            code: types.CodeType = called.__code__
            return code
        if kind is types.MethodType:
            called = called.__func__
        elif kind is functools.partial:
            called = called.func
        else:
            return _method(kind, "__call__")


def _method(kind: Any, name: str) -> types.CodeType | None:
    found = inspect.getattr_static(kind, name, None)
    return found.__code__ if type(found) is types.FunctionType else None


def nothing_between(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    """Whether nothing is kept between ``inner`` and ``outer``, stopped at ``stop``, that calls it, for all we know."""
    if not reads_stacks():
        return False
    if runs_within(outer, inner):
        return True
    look = _LOOKS.get(stop.by)
    return look is not None and look(outer, stop, inner)


def _of_call(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    """A call: of Python code, by way of a method, a ``partial`` or ``__call__``; or of what asks a generator on."""
    first = stack_of(outer, stop.stack + 1)[-1]
    called = stack_of(outer, stop.stack + 2)[-1] if first is None else first
    if _is_generator(inner):
        # The generator is the first argument, or what ``send`` is a method of.
        return any(called is each for each in _NEXT) and any(
            _is_frame_of(each, inner) for each in stack_of(outer, stop.stack + 3)[stop.stack + 1 :]
        )
    return code_of(called) is inner.f_code or _leaves(first, inner)


def _leaves(manager: Any, inner: types.FrameType) -> bool:
    """Whether ``__exit__`` of a context manager runs: its method lies on the stack, in whose place a call puts it."""
    return _method(type(manager), "__exit__") is inner.f_code


def _of_star_call(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    """As a call, but arguments that are no tuple yet are gathered first."""
    if stop.star is None or (stop.star and type(outer.f_locals.get(stop.star)) is not tuple):
        return False
    first = stack_of(outer, stop.stack + 1)[-1]
    called = stack_of(outer, stop.stack + 2)[-1] if first is None else first
    return not _is_generator(inner) and code_of(called) is inner.f_code


def _of_loop(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    return _asks(stack_of(outer, stop.stack)[-1], inner)


def _asks(iterator: Any, inner: types.FrameType) -> bool:
    """Whether an iterator that is asked for its next value runs ``inner`` and keeps nothing meanwhile."""
    kind = type(iterator)
    if kind is types.GeneratorType:
        return _is_frame_of(iterator, inner)
    if kind is enumerate:
        return _asks(iterator.__reduce__()[1][0], inner)
    if kind is map:
        function, *each = iterator.__reduce__()[1]
        called = not _is_generator(inner) and code_of(function) is inner.f_code
        return called or (len(each) == 1 and _asks(each[0], inner))
    return _method(kind, "__next__") is inner.f_code


def _of_attribute(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    owner = stack_of(outer, stop.stack + 1)[-1]
    found = inspect.getattr_static(type(owner), stop.name, None)
    return type(found) is property and getattr(found.fget, "__code__", None) is inner.f_code


def _of_assignment(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    owner = stack_of(outer, stop.stack + 2)[-1]
    if stop.by == "STORE_SUBSCR":
        return _method(type(owner), "__setitem__") is inner.f_code
    found = inspect.getattr_static(type(owner), stop.name, None)
    return type(found) is property and getattr(found.fset, "__code__", None) is inner.f_code


def _of_element(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    return _method(type(stack_of(outer, stop.stack + 1)[-1]), "__getitem__") is inner.f_code


def _of_with(outer: types.FrameType, stop: Stop, inner: types.FrameType) -> bool:
    leave = stack_of(outer, stop.stack)[-1]
    return type(leave) is types.MethodType and _method(type(leave.__self__), "__enter__") is inner.f_code


def _is_generator(frame: types.FrameType) -> bool:
    return bool(frame.f_code.co_flags & inspect.CO_GENERATOR)


def _is_frame_of(generator: Any, frame: types.FrameType) -> bool:
    return type(generator) is types.GeneratorType and generator.gi_frame is frame


_LOOKS: dict[str, Callable[[types.FrameType, Stop, types.FrameType], bool]] = {
    "CALL": _of_call,
    "CALL_KW": _of_call,
    "CALL_FUNCTION_EX": _of_star_call,
    "FOR_ITER": _of_loop,
    "LOAD_ATTR": _of_attribute,
    "STORE_ATTR": _of_assignment,
    "STORE_SUBSCR": _of_assignment,
    "BINARY_SUBSCR": _of_element,
    "BEFORE_WITH": _of_with,
}
"""By instruction; of operators and comparisons nothing is known."""
