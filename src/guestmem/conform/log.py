"""A recorded run: calls and a kernel's answers, a line of JSON a VM, so that two kernels can be compared.

First line: what was recorded, and on which kernel. Then ``[[kind, args, result, log in hex, exits], …]`` a line; a
call without an answer (null) was left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import TraceError
from .calls import Answer, Call
from .kernel import Kernel

__all__ = ["KernelSide", "LogSide", "read_log", "write_block", "write_header"]

_FORMAT = "guestmem conform log 1"


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
        self.release, self.name, self._blocks = read_log(path)

    def blocks(self, _seed: int, _count: int) -> Iterator[list[Call]]:
        """The recorded calls, block by block."""
        for block in self._blocks:
            yield [call for call, _ in block]

    @property
    def steps(self) -> int:
        """How many calls the log has."""
        return sum(len(block) for block in self._blocks)

    def recorded(self) -> Iterator[tuple[list[Call], list[Answer | None]]]:
        """Calls and answers, block by block."""
        for block in self._blocks:
            yield [call for call, _ in block], [answer for _, answer in block]


def write_header(file: IO[str], release: str, name: str) -> None:
    """The first line."""
    print(json.dumps({"format": _FORMAT, "release": release, "kernel": name}), file=file)


def write_block(file: IO[str], calls: Sequence[Call], answers: Sequence[Answer | None]) -> None:
    """One VM's calls and answers."""
    rows: list[list[Any]] = []
    for (kind, args), answer in zip(calls, answers, strict=True):
        row: list[Any] = [kind, list(args)]
        rows.append(row if answer is None else [*row, answer.result, answer.log.hex(), list(answer.exits)])
    print(json.dumps(rows, separators=(",", ":")), file=file)


def read_log(path: Path) -> tuple[str, str, list[list[tuple[Call, Answer | None]]]]:
    """Release, kernel and blocks of a log; TraceError names file and line."""
    blocks: list[list[tuple[Call, Answer | None]]] = []
    release = name = ""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
                if number == 1:
                    if value["format"] != _FORMAT:
                        raise ValueError  # noqa: TRY301 - said below, in the same words as any other bad line
                    release, name = value["release"], value["kernel"]
                    continue
                block: list[tuple[Call, Answer | None]] = []
                for kind, args, *answer in value:
                    made = None
                    if answer:
                        result, log, exits = answer
                        made = Answer(int(result), bytes.fromhex(log), tuple(exits))
                    block.append((Call(str(kind), tuple(map(int, args))), made))
                blocks.append(block)
            except (ValueError, KeyError, TypeError):
                raise TraceError("no line of a conform log", path=str(path), line=number, text=line.strip()) from None
    if not name:
        raise TraceError("an empty conform log", path=str(path), line=1)
    return release, name, blocks
