"""Every form in which strace prints a slot change is read the same, and what strace cannot show is said."""

from __future__ import annotations

import errno
import textwrap
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.errors import TraceError
from guestmem.memslots.changes import Change, ChangeKind

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.traces import Timeline

REGION = (
    "{slot=65539, flags=KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY, "
    "guest_phys_addr=0x100000, memory_size=2097152, userspace_addr=0x7f4500000000}"
)
CHANGE = Change(3, 0x100, 0x200, 0x7F4500000000, 3, 1)
PREFIXES: dict[str, tuple[int | None, float | None]] = {
    "": (None, None),
    "21771 ": (21771, None),
    "123   ": (123, None),
    "[pid 21771] ": (21771, None),
    "[pid   771] ": (771, None),
    "[pid 21771<qemu-system-x86>] ": (21771, None),
    "21771 02:44:27 ": (21771, 9867.0),
    "21771 02:44:27.805574 ": (21771, 9867.805574),
    "[pid 21771] 02:44:27.805574 ": (21771, 9867.805574),
    "02:44:27.805574 ": (None, 9867.805574),
    "21771 1795229067.805574 ": (21771, 1795229067.805574),
    "21771 1795229067.805574123 ": (21771, 1795229067.805574123),
    "1795229067.805574 ": (None, 1795229067.805574),
    "1795229067 ": (None, 1795229067.0),
    "21771 1795229067 ": (21771, 1795229067.0),
    "21771 02:44:27.805574 (+     0.000123) ": (21771, 9867.805574),
    "21771      0.000125 ": (21771, 0.000125),
}


def read(tmp_path: Path, text: str, *, vm: int | None = None) -> Timeline:
    path = tmp_path / "strace.txt"
    path.write_text(textwrap.dedent(text))
    return traces.read(path, vm=vm)


def set_region(slot: int, gpa: int, size: int, hva: int, *, fd: int = 8) -> str:
    return (
        f"ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, guest_phys_addr={gpa:#x}, "
        f"memory_size={size}, userspace_addr={hva:#x}}}) = 0"
    )


@pytest.mark.parametrize("duration", ["", " <0.000250>"])
@pytest.mark.parametrize("fd", ["8", "8<anon_inode:kvm-vm>"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix(tmp_path: Path, prefix: str, fd: str, duration: str) -> None:
    timeline = read(tmp_path, f"{prefix}ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {REGION}) = 0{duration}\n")
    (change,) = timeline.changes
    thread, time = PREFIXES[prefix]
    assert (change.change, change.thread, change.time, change.began) == (CHANGE, thread, time, time)
    assert (change.kind, change.ret, timeline.format) == (ChangeKind.CREATE, 0, "strace")
    assert change.ended == (None if time is None or not duration else pytest.approx(time + 0.00025))


@pytest.mark.parametrize(
    ("shown", "flags"),
    [
        ("0", 0),
        ("KVM_MEM_LOG_DIRTY_PAGES", 1),
        ("KVM_MEM_READONLY", 2),
        ("0x2 /* KVM_MEM_READONLY */", 2),
        ("KVM_MEM_LOG_DIRTY_PAGES|0x10", 17),
        ("0x10 /* KVM_MEM_??? */", 16),
        ("KVM_MEM_LOG_DIRTY_PAGES|KVM_MEM_READONLY|KVM_MEM_GUEST_MEMFD", 7),
    ],
)
def test_flags_by_name_and_by_number(tmp_path: Path, shown: str, flags: int) -> None:
    region = "{slot=0, flags=%s, guest_phys_addr=0, memory_size=0x1000, userspace_addr=NULL}"
    timeline = read(tmp_path, f"5 ioctl(8, KVM_SET_USER_MEMORY_REGION, {region % shown}) = 0\n")
    assert timeline.changes[0].change == Change(0, 0, 1, 0, flags)


@pytest.mark.parametrize("request_shown", ["0x4020ae46", "0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */"])
def test_the_request_may_be_a_number(tmp_path: Path, request_shown: str) -> None:
    timeline = read(tmp_path, f"5 ioctl(8, {request_shown}, {REGION}) = 0\n")
    assert timeline.changes[0].change == CHANGE


@pytest.mark.parametrize("name", ["EEXIST", "EINVAL", "ENOMEM"])
def test_a_failure_is_a_refused_change(tmp_path: Path, name: str) -> None:
    timeline = read(tmp_path, f"5 ioctl(8, KVM_SET_USER_MEMORY_REGION, {REGION}) = -1 {name} (Some reason)\n")
    (change,) = timeline.changes
    assert (change.ret, change.applied) == (-getattr(errno, name), False)
    assert timeline.refused == (change,)
    assert not timeline.transactions


def test_a_split_call_is_put_together_and_counts_when_it_returns(tmp_path: Path) -> None:
    head, tail = set_region(1, 0x1000, 4096, 0x1000).rsplit("}", 1)
    timeline = read(
        tmp_path,
        f"""\
        10 1.000000 {head}}} <unfinished ...>
        11 1.000100 ioctl(12, KVM_RUN, 0 <unfinished ...>
        10 1.000200 <... ioctl resumed>{tail}
        11 1.000300 <... ioctl resumed>) = 0
        10 1.000400 {set_region(1, 0x1000, 0, 0x1000)}
        """,
    )
    create, delete = timeline.changes
    assert (create.line, create.time, create.began, create.ended) == (1, 1.0, 1.0, 1.0002)
    assert (create.kind, delete.kind, delete.line) == (ChangeKind.CREATE, ChangeKind.DELETE, 5)


def test_a_call_that_never_returns_is_an_error(tmp_path: Path) -> None:
    head = set_region(1, 0x1000, 4096, 0x1000).rsplit(")", 1)[0]
    with pytest.raises(TraceError, match=r"strace.txt:1: the call never returned"):
        read(tmp_path, f"10 1.0 {head} <unfinished ...>\n11 1.1 ioctl(12, KVM_RUN, 0) = 0\n")


def test_a_call_in_which_the_process_died_is_skipped(tmp_path: Path) -> None:
    last = set_region(1, 0x1000, 0, 0x1000).replace("= 0", "= ?")
    timeline = read(tmp_path, f"10 1.0 {set_region(1, 0x1000, 4096, 0x1000)}\n10 1.1 {last}\n10 1.2 +++ killed +++\n")
    assert len(timeline.changes) == 1


def test_times_of_day_go_on_after_midnight(tmp_path: Path) -> None:
    timeline = read(
        tmp_path,
        f"""\
        5 23:59:59.999000 {set_region(1, 0x1000, 4096, 0x1000)}
        5 00:00:00.001000 {set_region(2, 0x5000, 4096, 0x1000)}
        5 00:00:00.002000 {set_region(3, 0x9000, 4096, 0x1000)}
        """,
    )
    assert [each.time for each in timeline.changes] == pytest.approx([86399.999, 86400.001, 86400.002], abs=1e-6)
    assert len(timeline.transactions) == 1


@pytest.mark.parametrize(
    "request_shown",
    [
        "KVM_SET_USER_MEMORY_REGION2, 0x7ffde882e140",
        "_IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffde882e140",
        "0x40a0ae49, 0x7ffde882e140",
    ],
)
def test_what_strace_does_not_decode_is_said(tmp_path: Path, request_shown: str) -> None:
    with pytest.raises(TraceError, match=r"strace.txt:2: strace does not decode .*2, .*-trace kvm_set_user_memory"):
        read(tmp_path, f"5 {set_region(1, 0x1000, 4096, 0x1000)}\n5 ioctl(8, {request_shown}) = 0\n")


def test_a_decoded_version_2_is_read(tmp_path: Path) -> None:
    region = REGION.replace("}", ", guest_memfd_offset=0x2000, guest_memfd=11}")
    timeline = read(tmp_path, f"5 ioctl(8, KVM_SET_USER_MEMORY_REGION2, {region}) = 0\n")
    assert timeline.changes[0].change == CHANGE


@pytest.mark.parametrize(
    "line",
    [
        "5 ioctl(8, KVM_SET_USER_MEMORY_REGION, 0x7ffde882e140) = 0",
        f"5 {set_region(0, 0, 0, 0)}".replace("flags=0", "flags=KVM_MEM_NEW"),
        f"5 {set_region(0, 0, 0, 0)}".replace("memory_size=0", "memory_size=zero"),
        "5 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=0, userspace_addr=0})",
        "5 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, mem",
        "5 ioctl(8, KVM_SET_USER_MEMORY_REGION",
        "[pid 5 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0",
    ],
)
def test_a_line_that_names_the_ioctl_and_cannot_be_read_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "strace.txt"
    path.write_text(f"5 ioctl(3, KVM_GET_API_VERSION, 0) = 12\n{line}\n")
    with pytest.raises(TraceError) as caught:
        traces.read(path)
    assert (caught.value.path, caught.value.line, caught.value.text) == (str(path), 2, line)


TWO_VMS = f"""\
    5 {set_region(0, 0, 4096, 0x1000, fd=8)}
    6 {set_region(0, 0, 8192, 0x1000, fd=9)}
    5 {set_region(0, 0, 0, 0x1000, fd=8)}
    """


def test_two_vms_are_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"strace.txt:2: .*fd 8 and fd 9: choose one with --vm 8 or --vm 9"):
        read(tmp_path, TWO_VMS)


@pytest.mark.parametrize(("vm", "lines"), [(8, [1, 3]), (9, [2])])
def test_one_of_two_vms_can_be_chosen(tmp_path: Path, vm: int, lines: list[int]) -> None:
    assert [each.line for each in read(tmp_path, TWO_VMS, vm=vm).changes] == lines


def test_a_vm_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no memslot change on fd 7; there are some on fd 8, fd 9"):
        read(tmp_path, TWO_VMS, vm=7)


def test_two_vms_one_after_the_other_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"strace.txt:4: .*both on fd 8 .*created in line 3"):
        read(
            tmp_path,
            f"""\
            5 ioctl(3, KVM_CREATE_VM, 0) = 8
            5 {set_region(0, 0, 4096, 0x1000)}
            5 ioctl(3, KVM_CREATE_VM, 0) = 8
            5 {set_region(0, 0, 4096, 0x1000)}
            """,
        )


def test_relative_times_are_summed_up(tmp_path: Path) -> None:
    timeline = read(
        tmp_path,
        f"5      0.000000 {set_region(1, 0, 4096, 0)}\n5      0.250000 getpid() = 5\n"
        f"5      0.500000 {set_region(2, 8192, 4096, 0)}\n",
    )
    assert [each.time for each in timeline.changes] == [0.0, 0.75]
