"""Histories as JSON lines: one access or update a line.

{"start": 3, "end": 7, "saw": "old", "who": "vCPU 1"}
{"start": 5, "end": 9, "saw": "new"}
{"start": 5, "end": 9, "saw": "neither"}
{"start": 1, "end": 2, "after": 1, "before": 3}
{"update": 1, "start": 4, "end": 8}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import TraceError
from .access import Access, Update

__all__ = ["read_json_lines", "write_json_lines"]

_KEYS = {"start", "end", "saw", "after", "before", "others", "update", "who", "where"}


def read_json_lines(lines: Iterable[str], path: str = "") -> tuple[list[Access], list[Update]]:
    """Accesses and updates (those that are not given have no interval of their own); TraceError names a bad line."""
    accesses: list[Access] = []
    updates: dict[int, Update] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            if not isinstance(given, dict):
                raise TypeError("it is no object")  # noqa: TRY301 - told with file and line below
            if unknown := set(given) - _KEYS:
                raise ValueError(f"{min(unknown)!r} is not one of {', '.join(sorted(_KEYS))}")  # noqa: TRY301
            if "update" in given:
                update = Update(_whole(given, "update"), _time(given, "start"), _time(given, "end"))
                if update.number in updates:
                    raise ValueError(f"update {update.number} is there twice")  # noqa: TRY301
                updates[update.number] = update
            else:
                accesses.append(_access(given))
        except (ValueError, TypeError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise TraceError(said, path=path, line=number, text=line.strip()) from None
    seen = [max([each.after, each.before or 0] + [max(a, b or 0) for a, b in each.others]) for each in accesses]
    count = max([1, *seen, *updates])
    return accesses, [updates.get(number, Update(number)) for number in range(1, count + 1)]


def _access(given: dict[str, Any]) -> Access:
    start, end = _time(given, "start"), _time(given, "end")
    who, where = str(given.get("who", "")), str(given.get("where", ""))
    if "saw" in given:
        match given["saw"]:
            case "old":
                return Access.old(start, end, who=who, where=where)
            case "new":
                return Access.new(start, end, who=who, where=where)
            case "neither":
                return Access(start, end, neither=True, who=who, where=where)
        raise ValueError(f"saw: {given['saw']!r} is not old, new or neither")
    if not {"after", "before"} & set(given):
        raise ValueError("it has neither 'saw' nor 'after' or 'before'")
    before = None if given.get("before") is None else _whole(given, "before")
    others = given.get("others", [])
    if not isinstance(others, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and _is_whole(pair[0]) and (pair[1] is None or _is_whole(pair[1]))
        for pair in others
    ):
        raise ValueError(f"others: {others!r} is no list of [after, before]")
    pairs = tuple((pair[0], pair[1]) for pair in others)
    return Access(start, end, _whole(given, "after") if "after" in given else 0, before, pairs, who=who, where=where)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(given: dict[str, Any], name: str) -> int:
    value = given[name]
    if not _is_whole(value):
        raise ValueError(f"{name}: {value!r} is not a whole number")
    return int(value)


def _time(given: dict[str, Any], name: str) -> float:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: {value!r} is not a number")  # noqa: TRY004 - told as one kind of bad line
    return value


def write_json_lines(accesses: Iterable[Access], updates: Iterable[Update] = ()) -> Iterator[str]:
    """The lines, each with its line feed."""
    for update in updates:
        yield json.dumps({"update": update.number, "start": update.start, "end": update.end}) + "\n"
    for access in accesses:
        found: dict[str, Any] = {"start": access.start, "end": access.end}
        if access.neither:
            found["saw"] = "neither"
        else:
            found |= {"after": access.after, "before": access.before}
            found |= {"others": [list(pair) for pair in access.others]} if access.others else {}
        found |= {key: value for key in ("who", "where") if (value := getattr(access, key))}
        yield json.dumps(found) + "\n"
