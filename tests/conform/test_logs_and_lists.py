"""Recorded runs can be read again and bad ones are named by line; promises are listed with sources; calls decode."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from guestmem import TraceError
from guestmem.abi.checks import Host
from guestmem.abi.versions import LINUX_7_3
from guestmem.cli import main
from guestmem.conform.calls import CALL_BYTES, RANGES, Answer, Call, decode, decode_block
from guestmem.conform.gmem_files import FILE_PROMISES, FilePromise
from guestmem.conform.log import LogSide, write_block, write_header
from guestmem.conform.promises import PROMISES, Promise
from guestmem.conform.run import ask_model
from guestmem.engines.kvm.device import unusable


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


def test_a_log_says_what_its_machine_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    there = Host(version=LINUX_7_3, address_spaces=2, max_gfn=(1 << 27) - 1, tdp=True, max_vcpu_ids=16384)
    with path.open("w") as file:
        write_header(file, "7.3.0", "a kernel", there)
        write_block(file, [Call("mmu_pages", (64,))], [Answer(0)])
    assert LogSide(path).host(Host()) == there


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"no log", b'{"format": "guestmem conform log 1"}', b"\x9d\xff" * 99]
)
def test_what_is_no_log(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(text)
    with pytest.raises(TraceError, match="conform log"):
        LogSide(path)


@pytest.mark.parametrize(
    "line",
    [
        '[["regio", [0, 0, 0, 0, 0], 0, "", []]]',
        '[["region", [0, 0, 0, 0], 0, "", []]]',
        '[["region", [-1, 0, 0, 0, 0], 0, "", []]]',
        '[["region", [4294967296, 0, 0, 0, 0], 0, "", []]]',
        '[["region", [0, 0, 0, 18446744073709551616, 0], 0, "", []]]',
        '[["write", [0, 1], 0, "", []]]',
        '[["home", [], 0, "", []], ["write", [0, 100000], 0, "", []]]',
        '[["unknown", [2147528192], 0, "", []]]',
        '[["mmu_pages", [64], 0, "zz", []]]',
        '[["region", [0, 0, 0, 0, 0], 0, ""',
        '[["region", [1e400, 0, 0, 4096, 0], 0, "", []]]',
        '[["region", [1.5, 0, 0, 4096, 0], 0, "", []]]',
        '[["region", [true, 0, 0, 4096, 0], 0, "", []]]',
        '[["mmu_pages", [64], 0.0, "", []]]',
        "[" * 100_000,
    ],
)
def test_what_is_no_call_of_a_log(tmp_path: Path, line: str) -> None:
    """Nothing of it is carried out: the line is named."""
    path = tmp_path / "log"
    with path.open("w") as file:
        write_header(file, "6.18.1", "a kernel")
        write_block(file, [Call("mmu_pages", (64,))], [Answer(0)])
        file.write(line + "\n")
    with pytest.raises(TraceError, match=r"log:3: no line of a conform log"):
        LogSide(path)


def test_a_log_without_calls_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        write_header(file, "6.18.1", "a kernel")
        write_block(file, [], [])
    with pytest.raises(TraceError, match="a conform log without calls"):
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
    *lines, last = capsys.readouterr().out.splitlines()
    promises: list[Promise | FilePromise] = [*PROMISES, *FILE_PROMISES]
    assert all(promise.source in line and promise.says in line for promise, line in zip(promises, lines, strict=True))
    assert last.startswith(f"these {len(promises)} are run on the kernel that is asked")
    assert main(["conform", "--list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [promise.name for promise in promises]
    assert len({promise.name for promise in promises}) == len(promises)


def test_no_device_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GUESTMEM_KVM", raising=False)
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
    assert kinds == set(RANGES)
    assert decode_block(b"") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps"),
        (["--seed", "abc"], "--seed"),
        (["--minutes", "nan"], "nan is no number of minutes"),
        (["--minutes", "inf"], "--minutes"),
        (["--minutes", "0"], "--minutes"),
        (["--against", "/nonexistent"], "does not exist"),
        (["--record", "/nonexistent/log", "--steps", "1"], "/nonexistent/log"),
        (["/dev/null"], "is no KVM device"),
        (["--emit", "rust"], "--emit"),
    ],
)
def test_wrong_values_are_one_line_and_status_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] in {"--record", "/dev/null"} and unusable():
        pytest.skip(unusable())
    assert main(["conform", *words]) == 2
    caught = capsys.readouterr()
    assert said in caught.err
    assert caught.err.count("\n") == 1
    assert not caught.out


def test_the_kernel_is_left_alone_if_so_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUESTMEM_KVM", "0")
    assert main(["conform", "--steps", "1"]) == 2
    assert "GUESTMEM_KVM=0" in capsys.readouterr().err
