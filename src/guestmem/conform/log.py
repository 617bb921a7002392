"""A recorded run: calls and a kernel's answers, a line of JSON a VM, so that two kernels can be compared.

First line: what was recorded, on which kernel and machine. Then ``[[kind, args, result, log in hex, exits], …]`` a VM;
a call without an answer was left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..abi.checks import Host
from ..abi.versions import version_of
from ..errors import TraceError
from .calls import Answer, Call, checked
from .kernel import Kernel

__all__ = ["KernelSide", "LogSide", "read_log", "write_block", "write_header"]

_FORMAT = "guestmem conform log 1"
_FACTS: dict[str, Callable[[Any], Any]] = {
    field.name: type(getattr(Host(), field.name)) for field in dataclasses.fields(Host) if field.name != "version"
} | {"vm_attributes": lambda said: None if said is None else bool(said)}


class KernelSide:
    """The kernel of this machine answers."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self.name = kernel, kernel.name

    def answers(self, calls: Sequence[Call], expected: list[Answer | None]) -> list[Answer | None]:
        """On a new VM."""
        with self._kernel.vm() as vm:
            return [
                vm.answer(call) if wanted is not None else None for call, wanted in zip(calls, expected, strict=True)
            ]


class LogSide:
    """A log answers: the blocks that are in it, and no others."""

    def __init__(self, path: Path) -> None:
        self.release, self.name, self._host, self._blocks = read_log(path)

    def host(self, like: Host) -> Host:
        """What decided the answers there; as ``like`` where the log does not say."""
        return dataclasses.replace(like, version=version_of(self.release), **self._host)

    @property
    def steps(self) -> int:
        """How many calls the log has."""
        return sum(len(block) for block in self._blocks)

    def recorded(self) -> Iterator[tuple[list[Call], list[Answer | None]]]:
        """Calls and answers, block by block."""
        for block in self._blocks:
            yield [call for call, _ in block], [answer for _, answer in block]


def write_header(file: IO[str], release: str, name: str, host: Host | None = None) -> None:
    """The first line: the kernel, and what of its machine decides answers."""
    facts = {name: getattr(host, name) for name in _FACTS} if host is not None else {}
    print(json.dumps({"format": _FORMAT, "release": release, "kernel": name, "host": facts}), file=file)


def write_block(file: IO[str], calls: Sequence[Call], answers: Sequence[Answer | None]) -> None:
    """One VM's calls and answers."""
    rows: list[list[Any]] = []
    for (kind, args), answer in zip(calls, answers, strict=True):
        row: list[Any] = [kind, list(args)]
        rows.append(row if answer is None else [*row, answer.result, answer.log.hex(), list(answer.exits)])
    print(json.dumps(rows, separators=(",", ":")), file=file)


def read_log(path: Path) -> tuple[str, str, dict[str, Any], list[list[tuple[Call, Answer | None]]]]:
    """Release, kernel, facts of the host and blocks of a log; TraceError names file and line."""
    blocks: list[list[tuple[Call, Answer | None]]] = []
    release = name = ""
    host: dict[str, Any] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
                if number == 1:
                    if value["format"] != _FORMAT:
                        raise ValueError  # noqa: TRY301 - said below, in the same words as any other bad line
                    release, name = str(value["release"]), str(value["kernel"])
                    host = {fact: _FACTS[fact](value["host"][fact]) for fact in value.get("host", {})}
                    continue
                block = [_call(entry) for entry in value]
                _check(block)
                blocks.append(block)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                raise TraceError("no line of a conform log", path=str(path), line=number, text=line.strip()) from None
    if not any(blocks):
        raise TraceError("a conform log without calls", path=str(path))
    return release, name, host, blocks


def _call(entry: list[Any]) -> tuple[Call, Answer | None]:
    kind, args, *answer = entry
    call = checked(Call(str(kind), tuple(map(_whole, args))))
    if not answer:
        return call, None
    result, log, exits = answer
    return call, Answer(_whole(result), bytes.fromhex(log), tuple(map(str, exits)))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


def _check(block: list[tuple[Call, Answer | None]]) -> None:
    """ValueError if a guest is to do something before there is one."""
    kinds = [call.kind for call, answer in block if answer is not None]
    for made, needed in (("home", ("write", "read", "harvest", "second")), ("second", ("write2", "read2", "harvest2"))):
        guests = [kinds.index(kind) for kind in needed if kind in kinds]
        if guests and not (0 <= (kinds.index(made) if made in kinds else -1) < min(guests)):
            raise ValueError
