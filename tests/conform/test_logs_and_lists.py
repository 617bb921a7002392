"""Recorded runs can be read again and bad ones are named by line; promises are listed with sources; calls decode."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from guestmem import TraceError
from guestmem.cli import main
from guestmem.conform.calls import CALL_BYTES, decode, decode_block
from guestmem.conform.log import LogSide, write_block, write_header
from guestmem.conform.promises import PROMISES
from guestmem.conform.run import ask_model
from guestmem.memslots.checks import Host


def test_a_log_comes_back(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "log"
    calls = decode_block(rng.randbytes(CALL_BYTES * 120))
    answers = ask_model(Host(), calls)
    with path.open("w") as file:
        write_header(file, "6.18.1", "a kernel")
        write_block(file, calls, answers)
        write_block(file, calls[:3], answers[:3])
    side = LogSide(path)
    assert (side.release, side.name, side.steps) == ("6.18.1", "a kernel", len(calls) + 3)
    assert list(side.recorded()) == [(calls, answers), (calls[:3], answers[:3])]
    assert next(side.blocks(0, 0)) == calls


@pytest.mark.parametrize("text", ["", "{}", "[]", "no log", '{"format": "guestmem conform log 1"}'])
def test_what_is_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(TraceError, match="conform log"):
        LogSide(path)


def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        write_header(file, "6.18.1", "a kernel")
        file.write('[["region", [1, 2], 0]]\n')
    with pytest.raises(TraceError, match=r"log:2: no line of a conform log"):
        LogSide(path)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PROMISES)
    assert all(promise.source in line for promise, line in zip(PROMISES, lines, strict=True))
    assert main(["conform", "--list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [promise.name for promise in PROMISES]
    assert len({promise.name for promise in PROMISES}) == len(PROMISES)


def test_no_device_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", str(tmp_path / "kvm")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["conform", "--record", "a", "--against", str(tmp_path)]) == 2


def test_every_eight_bytes_are_a_call_or_none(rng: random.Random) -> None:
    assert decode(bytes(8)) is None
    kinds = set()
    for _ in range(3000):
        call = decode(rng.randbytes(8))
        if call is not None:
            assert str(call)
            assert all(0 <= number < 1 << 64 for number in call.args)
            kinds.add(call.kind)
    assert len(kinds) == 14
    assert decode_block(b"") == []
