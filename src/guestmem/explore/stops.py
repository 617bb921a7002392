"""Where a frame can be stopped, and what of it is still used there: from the byte code, and from its evaluation stack.

How deep the stack is at each call follows from the byte code; its values are read where the interpreter keeps them,
which is tried out once.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import sys
import types
from typing import Any, NamedTuple

import greenlet

__all__ = ["Stop", "reads_stacks", "runs_within", "stack_of", "stops"]

_F_FRAME, _LOCALS_PLUS = 24, 72
"""Where a frame object has its interpreter frame, and that its locals and stack; CPython 3.11 to 3.13, 64 bits."""
_IS_ENTRY, _PREVIOUS = 68, 8
"""Where an interpreter frame says that C code entered it (CPython 3.11), or which one it came from (from 3.12 on)."""

_CALLS = {
    *("CALL", "CALL_FUNCTION_EX", "CALL_KW", "BINARY_SUBSCR", "BINARY_OP", "COMPARE_OP", "CONTAINS_OP", "LOAD_ATTR"),
    *("FOR_ITER", "YIELD_VALUE", "RETURN_GENERATOR", "BEFORE_WITH"),
}
"""Instructions at which a frame can be stopped; each leaves one value on the stack."""
_STORES = {"STORE_ATTR", "STORE_SUBSCR"}
"""As these, of properties; they leave none."""


class Stop(NamedTuple):
    """A place where a frame can be stopped: which locals are still used, how many values are on its stack, which call.

    ``at`` is the offset of the call. ``f_lasti`` is there, at one of the call's caches, or at what prepares it, as the
    interpreter has specialized it by then; the frame goes on from the same place. ``by``: the instruction; ``name``:
    of the attribute that it takes. ``star``: the local that a call takes its arguments from if that is a tuple, "" if
    they are one, None if that is not known.
    """

    live: tuple[str, ...]
    stack: int
    at: int
    by: str
    name: str = ""
    star: str | None = None


@functools.lru_cache(maxsize=2048)  # each twin has code objects of its own
def stops(code: types.CodeType) -> dict[int, Stop]:
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
            effect = dis.stack_effect(step.opcode, step.arg, jump=jumps)
            if step.opname == "RETURN_GENERATOR":
                effect = 1  # what the first send brings; CPython 3.11 says 0
            todo.append((k, depth + effect))
    return depths


def _star(steps: list[Any], depths: list[int], i: int) -> str | None:
    """See ``Stop.star``, of the call with arguments in one sequence at ``i``."""
    k = i
    while steps[i].arg & 1 and k and (k == i or depths[k] != depths[i] - 1):  # go back over keyword arguments
        k -= 1
    made = steps[k - 1]
    if steps[k].is_jump_target:
        return None
    if made.opname in {"LIST_TO_TUPLE", "BUILD_TUPLE"} or made.argrepr == "INTRINSIC_LIST_TO_TUPLE":
        return ""
    return made.argval if made.opname in {"LOAD_FAST", "LOAD_FAST_CHECK"} else None


def _joined(
    code: types.CodeType, steps: list[Any], after: list[list[int]], live: list[set[str]], depths: list[int]
) -> dict[int, Stop]:
    cells = {*code.co_cellvars, *code.co_freevars}
    found: dict[int, Stop] = {}
    for i, step in enumerate(steps):
        if step.opname in _CALLS | _STORES and after[i] and depths[i] >= 0:
            stack = depths[i] + dis.stack_effect(step.opcode, step.arg, jump=False) - (step.opname in _CALLS)
            name = step.argval if step.opname.endswith("_ATTR") else ""
            star = _star(steps, depths, i) if step.opname == "CALL_FUNCTION_EX" else None
            stop = Stop(tuple(sorted(live[i] | cells)), stack, step.offset, step.opname, name, star)
            end = steps[i + 1].offset if i + 1 < len(steps) else step.offset + 2
            # Of CPython 3.11: a specialized PRECALL does the call of a builtin itself.
            begin = steps[i - 1].offset if i and steps[i - 1].opname == "PRECALL" else step.offset
            for offset in range(begin, end, 2):  # also those of the instruction's caches
                found[offset] = stop
    return found


def _size(code: types.CodeType) -> int:
    """Locals, cells and free variables of a frame; the stack begins after them."""
    return code.co_nlocals + len({*code.co_cellvars} - {*code.co_varnames}) + len(code.co_freevars)


def stack_of(frame: types.FrameType, count: int) -> list[Any]:
    """The lowest values of a frame's evaluation stack; None for an empty place."""
    inner = ctypes.c_void_p.from_address(id(frame) + _F_FRAME).value
    assert inner is not None
    base = inner + _LOCALS_PLUS + 8 * _size(frame.f_code)
    values: list[Any] = []
    for k in range(count):
        address = ctypes.c_void_p.from_address(base + 8 * k).value
        values.append(ctypes.cast(address, ctypes.py_object).value if address else None)
    return values


def runs_within(outer: types.FrameType, inner: types.FrameType) -> bool:
    """Whether the byte code of one frame entered the other itself, with no C code between them."""
    mine = ctypes.c_void_p.from_address(id(inner) + _F_FRAME).value
    assert mine is not None
    if sys.version_info < (3, 12):
        return not ctypes.c_uint8.from_address(mine + _IS_ENTRY).value
    whole = ctypes.c_void_p.from_address(id(outer) + _F_FRAME).value
    return ctypes.c_void_p.from_address(mine + _PREVIOUS).value == whole


def _tried() -> bool:
    """Whether stacks are where they are looked for: of a function that is stopped in the middle of a loop and a sum.

    And whether it can be told who called it: Python code, and that by way of ``map``.
    """
    if not (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.implementation.name != "cpython":
        return False
    main = greenlet.getcurrent()
    left, right = object(), [7]

    def stopped(_: object) -> object:
        for _ in right:
            return (left, 5, main.switch())
        return None

    def calls(given: object) -> object:
        return stopped(given)

    run = greenlet.greenlet(lambda: next(map(calls, right)))
    run.switch()
    try:
        frame = run.gr_frame
        stop = stops(frame.f_code).get(frame.f_lasti)
        if stop is None or stop.stack != 3:
            return False
        values = stack_of(frame, 3)
        if not runs_within(frame.f_back, frame) or runs_within(frame.f_back.f_back, frame.f_back):
            return False
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
