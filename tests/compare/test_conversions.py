"""While vCPUs, host and pins go on, nobody sees private memory that is not his; what is broken on purpose is caught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chance import until_met
from guestmem import UsageError
from guestmem.cli import main
from guestmem.compare.conversions import Conversions, run_conversions
from guestmem.engines.soft.gmem_vm import PRIVATE_READ, PRIVATE_WRITE, SHARED_READ, SHARED_WRITE, GmemVm
from guestmem.gmem.generations import GENERATIONS
from guestmem.report.conversions import conversions_lines

PAGE = 4096


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_run_of_each_generation(generation: str) -> None:
    result = run_conversions(generation=generation, size=4 << 20, lengths=(4096, 1 << 20), seconds=0.2, pins=8)
    assert result.ok, result
    assert result.caught
    assert [row.length for row in result.rows] == [4096, 1 << 20]
    assert all(row.conversions + row.refused for row in result.rows)
    lines = conversions_lines(result)
    assert lines[-1] == "ok"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("joins", [True, False])
def test_huge_folios(joins: bool) -> None:
    def split(_: int) -> Conversions | None:
        result = run_conversions(size=4 << 20, lengths=(4096,), seconds=0.2, folio_size=2 << 20, joins=joins)
        assert result.ok
        return result if result.rows[0].splits else None

    result = until_met(split, "a huge folio that is split within 0.2 s")
    assert (result.rows[0].joins >= 1) <= joins
    assert result.rows[0].resident == 4 << 20


def test_pages_hold_what_ranges_hold() -> None:
    result = run_conversions(size=1 << 20, lengths=(4096, 1 << 20), seconds=0.1, structure="pages")
    assert result.ok


@pytest.mark.parametrize("generation", [name for name in GENERATIONS if name != "mappability"])
def test_exits_say_flags_gpa_and_size(generation: str) -> None:
    with GmemVm(16 * PAGE, vcpus=1, states=generation, targets=[3, 5]) as vm:
        assert vm.access(SHARED_READ, 5)
        assert not vm.access(PRIVATE_READ, 5)
        assert vm.exit(0) == (8, 5 * PAGE, PAGE)
        vm.convert(4, 7, private=True)
        assert not vm.access(SHARED_WRITE, 5)
        assert vm.exit(0) == (0, 5 * PAGE, PAGE)
        assert vm.access(PRIVATE_WRITE, 5)
        assert vm.access(SHARED_READ, 3), "its neighbour is shared still"
        vm.convert(5, 5, private=False)
        assert vm.access(SHARED_READ, 5)
        assert vm.counts()["vcpu_saw_private"] == 0, "it was cleared before it was shared"


def test_a_refused_conversion_changes_nothing_for_the_guest() -> None:
    with GmemVm(16 * PAGE, vcpus=1) as vm:
        assert vm.access(SHARED_READ, 5)
        faults = vm.counts()["vcpu_faults"]
        with vm.file.pin(5 * PAGE, PAGE), pytest.raises(Exception, match="EAGAIN"):
            vm.convert(0, 15, private=True)
        assert vm.access(SHARED_READ, 5)
        assert vm.counts()["vcpu_faults"] == faults, "its translation is there still"


def test_what_is_broken_for_real_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command notices if the right conversion leaves the guest's mappings: the pair no longer differs."""

    @contextmanager
    def nothing(*_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(GmemVm, "_invalidation", nothing)
    assert main(["conversions", "--size", "1M", "--seconds", "0.05"]) == 1
    out = capsys.readouterr().out
    assert "guest mappings left: NOT CAUGHT" in out
    assert out.splitlines()[-1] == "FAILED"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversions", "--size", "1M", "--seconds", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert set(found["caught"]) == {"guest mappings left", "host mappings left"}
    assert found["rows"][0]["per_second"] >= 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "magic"], "model: 'magic' is not one of attributes, mappability, shareability, vm-attributes"),
        (["--structure", "tree"], "structure: 'tree' is not one of ranges, pages"),
        (["--size", "12"], "size: '12' is not a number with K, M or G, such as 512M"),
        (["--size", "0M"], "size: 0x0 is not a positive multiple of 0x1000"),
        (["--size", "-1G"], "size: '-1G' is not a number with K, M or G, such as 512M"),
        (["--vcpus", "0"], "Invalid value for '--vcpus': 0 is not in the range 1<=x<=64."),
    ],
)
def test_bad_input(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conversions", *arguments]) == 2
    assert capsys.readouterr().err == f"guestmem: {line}\n"
    with pytest.raises(UsageError, match="less than every length"):
        run_conversions(size=4096, lengths=(8192,))
