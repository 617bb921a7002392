"""Each remark is made where there is reason for it, with its lines, and not where there is none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import LINTS, check
from guestmem.report.check import print_report

if TYPE_CHECKING:
    from guestmem.check import Remark, Report

EXAMPLES = Path(__file__).parents[2] / "examples" / "traces"
DOCS = Path(__file__).parents[2] / "docs" / "traces.md"
MIB = 1 << 20
HVA = 0x7F0000000000


def change(
    slot: int,
    gpa: int,
    size: int,
    *,
    hva: int | None = None,
    flags: int = 0,
    ret: int = 0,
    gmem: str = "",
    time: float = 1,
) -> str:
    hva = HVA + gpa if hva is None else hva
    return (
        f"7@{time:.6f}:kvm_set_user_memory AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} "
        f"ua={hva:#x}{gmem} ret={ret}\n"
    )


def report_of(tmp_path: Path, *lines: str) -> Report:
    (tmp_path / "trace.log").write_text("".join(lines))
    return check(traces.read(tmp_path / "trace.log"))


def remarks(tmp_path: Path, *lines: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(each.lint.name, each.lines) for each in report_of(tmp_path, *lines).remarks]


def only(tmp_path: Path, *lines: str) -> Remark:
    (remark,) = report_of(tmp_path, *lines).remarks
    return remark


def test_an_add_that_kvm_refused_with_eexist(tmp_path: Path) -> None:
    create, again = change(0, MIB, MIB), change(1, MIB, MIB, ret=-17)
    assert remarks(tmp_path, create, again) == [("add-without-delete", (2,))]
    assert remarks(tmp_path, create, change(0, MIB, 0), change(1, MIB, MIB)) == []
    assert remarks(tmp_path, create, change(1, MIB, MIB, ret=-22)) == []


def test_a_listener_that_is_told_twice(tmp_path: Path) -> None:
    add = "7@1.0:vfio_listener_region_add_ram region_add [ram] 0xfebd1000 - 0xfebd1fff [0x7fa916d1c000]\n"
    delete = "7@1.5:vfio_listener_region_del region_del 0xfebd1000 - 0xfebd1fff\n"
    base = change(0, 0, MIB)
    assert remarks(tmp_path, base, add, add) == [("add-without-delete", (2, 3))]
    assert remarks(tmp_path, base, add, delete, add) == []


def test_numbers_that_are_never_used_again(tmp_path: Path) -> None:
    def plug(reuse: bool) -> list[str]:
        lines = [change(0, 0, MIB)]
        for i in range(12):
            slot = 1 if reuse else i + 1
            lines += [change(slot, 16 * MIB, MIB, time=10 * i + 1), change(slot, 16 * MIB, 0, time=10 * i + 2)]
        return lines

    (name, lines) = remarks(tmp_path, *plug(reuse=False))[0]
    assert (name, lines[0]) == ("ids-only-grow", 4)
    assert remarks(tmp_path, *plug(reuse=True)) == []


def test_slots_that_pile_up(tmp_path: Path) -> None:
    lines = [change(0, 0, MIB), change(1, 2 * MIB, MIB)]
    for i in range(10):
        time = 10.0 * (i + 1)
        lines += [change(1, 2 * MIB, 0, time=time), change(1, 2 * MIB, MIB, time=time)]
        lines += [change(10 + i, (10 + 2 * i) * MIB, MIB, time=time)]
    assert [name for name, _ in remarks(tmp_path, *lines)] == ["slots-leaked"]
    kept = [line for i, line in enumerate(lines) if i < 2 or (i - 2) % 3 != 2]
    assert remarks(tmp_path, *kept) == []


def test_neighbours_on_different_host_memory(tmp_path: Path) -> None:
    low, high = change(0, MIB, MIB), change(1, 2 * MIB, MIB, hva=HVA + 64 * MIB)
    remark = only(tmp_path, low, high)
    assert (remark.lint.name, remark.lines) == ("split-buffer", (1, 2))
    assert "meet at 0x200000" in remark.text
    assert remarks(tmp_path, low, change(1, 2 * MIB, MIB)) == []  # the same host memory
    assert remarks(tmp_path, low, change(1, 3 * MIB, MIB, hva=HVA)) == []  # they do not meet
    assert remarks(tmp_path, low, change(1, 2 * MIB, MIB, hva=HVA, flags=2)) == []  # no buffer lies in a ROM
    assert remarks(tmp_path, change(0, 0, MIB // 2), change(1, MIB // 2, MIB // 2, hva=HVA + MIB)) == []  # firmware's
    assert remarks(tmp_path, low, high, change(1, 2 * MIB, 0)) == []  # no longer


def gmem(fd: int, offset: int) -> str:
    return f" guest_memfd={fd} guest_memfd_offset={offset:#x}"


def test_a_slot_with_a_guest_memfd_that_is_deleted(tmp_path: Path) -> None:
    create = change(0, 0, MIB, flags=4, gmem=gmem(15, 0))
    remark = only(tmp_path, create, change(0, 0, 0, gmem=gmem(15, 0)))
    assert (remark.lint.name, remark.lines) == ("guest-memfd-deleted", (2,))
    assert remarks(tmp_path, create) == []
    assert remarks(tmp_path, change(0, 0, MIB, gmem=gmem(15, 0)), change(0, 0, 0)) == []


def test_one_range_of_a_file_bound_twice(tmp_path: Path) -> None:
    first = change(0, 0, MIB, flags=4, gmem=gmem(15, 0))
    refused = change(1, 4 * MIB, MIB, hva=HVA, flags=4, gmem=gmem(15, MIB // 2), ret=-22)
    assert remarks(tmp_path, first, refused) == [("guest-memfd-bound-twice", (1, 2))]
    other = change(1, 4 * MIB, MIB, flags=4, gmem=gmem(16, 0))
    assert remarks(tmp_path, first, other) == []
    after = change(1, 4 * MIB, MIB, hva=HVA, flags=4, gmem=gmem(15, 0))
    assert [name for name, _ in remarks(tmp_path, first, change(0, 0, 0), after)] == ["guest-memfd-deleted"]


def test_a_file_bound_under_another_address_than_the_rest_of_it(tmp_path: Path) -> None:
    first = change(0, 0, MIB, flags=4, gmem=gmem(15, 0))
    elsewhere = change(1, 4 * MIB, MIB, hva=HVA + 9 * MIB, flags=4, gmem=gmem(15, MIB))
    assert remarks(tmp_path, first, elsewhere) == [("guest-memfd-elsewhere", (1, 2))]
    assert remarks(tmp_path, first, change(1, 4 * MIB, MIB, hva=HVA + MIB, flags=4, gmem=gmem(15, MIB))) == []


def test_a_dirty_log_that_goes_with_its_slot(tmp_path: Path) -> None:
    assert remarks(tmp_path, change(0, 0, MIB, flags=1), change(0, 0, 0)) == [("dirty-log-lost", (2,))]
    assert remarks(tmp_path, change(0, 0, MIB, flags=1), change(0, 0, MIB), change(0, 0, 0)) == []


def test_a_flag_that_was_switched_by_delete_and_create(tmp_path: Path) -> None:
    create, delete = change(0, 0, MIB), change(0, 0, 0)
    remark = only(tmp_path, create, delete, change(0, 0, MIB, flags=1))
    assert (remark.lint.name, remark.lines, "KVM_MEM_LOG_DIRTY_PAGES" in remark.text) == (
        "toggle-by-delete",
        (2, 3),
        True,
    )
    assert "KVM_MEM_READONLY" in only(tmp_path, create, change(0, 0, MIB, flags=2)).text  # QEMU's, in one line
    assert remarks(tmp_path, create, change(0, 0, MIB, flags=1)) == []
    assert remarks(tmp_path, create, delete, change(0, 0, MIB // 2, flags=1)) == []


def test_hundreds_of_updates_and_what_they_took(tmp_path: Path) -> None:
    def lines(count: int) -> list[str]:
        pairs = [(change(0, 0, MIB, time=i / 10), change(0, 0, 0, time=i / 10 + 0.001)) for i in range(count // 2)]
        return [line for pair in pairs for line in pair]

    remark = only(tmp_path, *lines(200))
    assert (remark.lint.name, remark.lines) == ("many-updates", (1, 200))
    assert "200 changes in 200 transactions" in remark.text
    assert "within 9.9 s" in remark.text
    assert remarks(tmp_path, *lines(198)) == []


def test_what_calls_took_is_summed_up_where_the_trace_tells(tmp_path: Path) -> None:
    region = (
        "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=%d, userspace_addr=0})"
    )
    text = "".join(f"7 {i}.000000 {region % (4096 * (i % 2 == 0))} = 0 <0.002000>\n" for i in range(200))
    (tmp_path / "strace.txt").write_text(text)
    (remark,) = check(traces.read(tmp_path / "strace.txt")).remarks
    assert "the calls took 400 ms, 2.00 ms each" in remark.text


@pytest.mark.parametrize("name", ["pc-seabios-smp2.log", "q35-seabios-smp2.log", "strace-pc.txt"])
def test_a_plain_boot_has_none(name: str) -> None:
    assert check(traces.read(EXAMPLES / name)).remarks == ()


def test_a_kind_with_many_remarks_says_how_many_more_there_are(tmp_path: Path) -> None:
    lines = [change(0, MIB, MIB), *(change(1, MIB, MIB, ret=-17) for _ in range(20))]
    found = report_of(tmp_path, *lines).remarks
    assert len(found) == 8
    assert found[-1].text == "and 13 more of the kind, from this one on"


def test_they_are_printed_below_the_holes_and_can_be_left_out(tmp_path: Path) -> None:
    report = report_of(tmp_path, change(0, 0, MIB, flags=1), change(0, 0, 0))
    text = io.StringIO()
    print_report(report, stream=text)
    assert "bitten: QEMU" in text.getvalue()
    assert "line 2: 1 deletes of slots that were logged, 256 pages in all" in text.getvalue()
    assert check(traces.read(tmp_path / "trace.log"), with_lint=False).remarks == ()


def test_the_docs_have_the_same_table() -> None:
    table = DOCS.read_text().split("| lint | what is there | why it matters | who was bitten |\n")[1].split("\n\n")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()[1:]]
    assert rows == [(each.name, each.what, each.why, each.bitten) for each in LINTS.values()]
