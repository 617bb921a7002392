"""A guest whose memory comes while it runs sees no page before it is there; what is broken on purpose is caught."""

from __future__ import annotations

import json

import pytest

from guestmem import UsageError
from guestmem.cli import main
from guestmem.compare.post_copy import run_post_copy
from guestmem.engines.soft.post_copy import PostCopyVm
from guestmem.errors import InvariantError
from guestmem.explore import load
from guestmem.report.post_copy import post_copy_lines

PAGE = 4096


@pytest.mark.parametrize("stream", [True, False])
def test_a_run(stream: bool) -> None:
    told: list[float] = []
    result = run_post_copy(
        vcpus=(1, 2), size=1 << 20, latency=1000, stream=stream, progress=lambda _what, share: told.append(share)
    )
    assert result.ok, result
    assert len(result.caught) == 2
    assert [(row.vcpus, row.way) for row in result.rows] == [
        *((1, "post-copy"), (1, "before")),
        *((2, "post-copy"), (2, "before")),
    ]
    for row in result.rows:
        assert (row.stopped == 0) == (row.way == "post-copy")
        assert row.complete > 0
    if not stream:
        assert all(row.exits >= 256 for row in result.rows if row.way == "post-copy"), "each page was asked for"
    assert told == [0.0, 0.0, 0.5]
    lines = post_copy_lines(result)
    assert lines[-1] == "ok"
    assert max(map(len, lines)) <= 80


def test_an_exit_says_flag_gpa_and_size() -> None:
    with PostCopyVm(16 * PAGE, vcpus=1) as vm:
        assert not vm.enabled
        vm.enable()
        assert vm.missing(5)
        assert not vm.access(5)
        assert vm.exit() == (1 << 4, 5 * PAGE, PAGE)
        vm.fill(5)
        assert not vm.access(5), "its bit is set still"
        vm.clear(5)
        assert vm.access(5)
        assert not vm.access(6), "its neighbour is missing still"
        counts = vm.counts()
        assert (counts["userfaults"], counts["missing_seen"], counts["accesses"]) == (3, 0, 1)
        vm.check()


def test_a_bit_that_is_set_has_no_effect_until_the_flag_comes_on_anew() -> None:
    with PostCopyVm(16 * PAGE, vcpus=1) as vm:
        vm.fill(2)
        vm.clear(2)
        vm.enable()
        assert vm.access(2)
        vm.drop(2)
        assert vm.access(2), "it is mapped"
        assert vm.counts()["missing_seen"] == 1
        vm.disable()
        vm.enable()
        assert not vm.access(2)


def test_check_names_what_is_wrong() -> None:
    with PostCopyVm(16 * PAGE, vcpus=1) as vm:
        vm.populate()
        vm.check()
        vm.memory.write(3 * PAGE, bytes(8))
        with pytest.raises(InvariantError, match=r"^post-copy: page 3 came, and is not the source's$"):
            vm.check()
        vm.drop(2)
        with pytest.raises(InvariantError, match=r"^post-copy: page 2 came, and its bit is set$"):
            vm.check()


def missing_seen(vm: PostCopyVm) -> int:
    """A page that is mapped is lost; the flag comes on; then all pages come."""
    vm.fill(1)
    vm.clear(1)
    vm.access(1)
    vm.drop(1)
    vm.enable()
    for page in (1, 2):
        vm.access(page)
    vm.populate()
    for page in (1, 2, 4):
        assert vm.access(page)
    return vm.counts()["missing_seen"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("userfault.py", "if load_acquire(slot, ENABLED) != 0 and userfault_bit(slot, gfn):", "if gfn >= 16:"),
        ("userfault.py", "    if zaps:\n", "    if zaps and False:\n"),
        ("post_copy_vcpu.py", "        fill_page(own[SOURCE], own[MEMORY], page)\n", ""),
    ],
)
def test_broken_code_is_seen(file: str, old: str, new: str) -> None:
    """The same steps on production's text with one line wrong, in the interpreted form."""
    package = load([(f"engines/soft/{file}", old, new)])
    with package.room("engines.soft.post_copy").PostCopyVm(16 * PAGE, vcpus=1) as vm:
        assert missing_seen(vm) > 0


def test_right_code_shows_nothing() -> None:
    with PostCopyVm(16 * PAGE, vcpus=1) as vm:
        assert missing_seen(vm) == 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"size": 0}, "size: 0x0 is not a positive multiple of 0x1000 up to 64 GiB"),
        ({"size": 4097}, "size: 0x1001 is not a positive multiple of 0x1000 up to 64 GiB"),
        ({"vcpus": (0,)}, "vcpus: 0 is not within 1 to 64"),
        ({"vcpus": ()}, "vcpus: none is given"),
        ({"latency": -1}, "latency: -1 ns is not within 0 to a second"),
    ],
)
def test_what_cannot_be_meant_is_one_line(options: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_post_copy(**options)  # type: ignore[arg-type]
    assert str(caught.value) == line


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["post-copy", "--vcpus", "1", "--size", "1", "--latency", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert {row["way"] for row in found["rows"]} == {"post-copy", "before"}
    assert main(["post-copy", "--vcpus", "1,x"]) == 2
    assert capsys.readouterr().err == ("guestmem: vcpus: '1,x' is not a list of numbers from 1 to 64, such as 1,2,4\n")
