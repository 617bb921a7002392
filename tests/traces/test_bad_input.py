"""What cannot be read, or cannot have happened, is a one-line error that says what and where."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.errors import TraceError, UsageError
from guestmem.memslots.changes import Change, ChangeKind

if TYPE_CHECKING:
    from guestmem.traces import Timeline

EXAMPLES = Path(__file__).parents[2] / "examples" / "traces"


def line(slot: int, gpa: int, size: int, ua: int = 0x7F0000000000, flags: int = 0, ret: int = 0) -> str:
    return f"kvm_set_user_memory Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x} ret={ret}\n"


def read(tmp_path: Path, text: str | bytes) -> Timeline:
    path = tmp_path / "trace.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return traces.read(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(TraceError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "trace.log"))
    return message.removeprefix(str(tmp_path / "trace.log"))


def test_an_empty_file(tmp_path: Path) -> None:
    assert refusal(tmp_path, "") == ": the file is empty"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x7fELF\0\0", "a binary file"),
        (b"\xff" * 8 + b"\x47\x98\x0a\xcb", "QEMU's binary trace"),
        (b"PERFILE2\x68", "perf script"),
        (b"\x17\x08Dtracing6", "trace-cmd report"),
        (b"\x1f\x8b\x08", "gzip"),
        ("kvm".encode("utf-16"), "a binary file"),
    ],
)
def test_a_binary_file(tmp_path: Path, head: bytes, said: str) -> None:
    assert said in refusal(tmp_path, head)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_an_error_and_nothing_worse(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    refusal(tmp_path, bytes(rng.randrange(1, 256) for _ in range(rng.randrange(1, 300))))


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_trace_is_an_error_or_a_timeline_and_nothing_worse(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(["pc-seabios-smp2.log", "pc-migration.log", "strace-pc.txt"])
    damaged = bytearray((EXAMPLES / name).read_bytes())
    for _ in range(rng.randrange(1, 20)):
        damaged[rng.randrange(len(damaged))] = rng.choice(b"0123456789abcdefx=#@:, {}()\n<")
    try:
        read(tmp_path, bytes(damaged))
        message = ""
    except TraceError as error:
        message = str(error)
    assert "\n" not in message, f"seed {seed}"


def test_a_file_without_any_event_says_which_formats_are_known(tmp_path: Path) -> None:
    message = refusal(tmp_path, "hello\nworld\n")
    assert "no memslot event in 2 lines" in message
    for word in ("kvm_set_user_memory", "KVM_SET_USER_MEMORY_REGION", "kvm_entry", "strace", "perf"):
        assert word in message


def test_a_trace_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = "".join((EXAMPLES / "pc-seabios-smp2.log").read_text().splitlines(keepends=True)[:4])
    ends = {i for i in range(len(whole) + 1) if whole[:i].endswith(("\n", "ret=0"))}
    for end in range(1, len(whole)):
        path = tmp_path / "trace.log"
        path.write_text(whole[:end])
        if end in ends:
            assert len(traces.read(path).changes) == whole[:end].count("ret=0")
        else:
            with pytest.raises(TraceError, match=rf"trace.log:{whole[:end].count(chr(10)) + 1}: "):
                traces.read(path)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be read: Is a directory"):
        traces.read(tmp_path)


@pytest.mark.parametrize("name", ["missing.log", "a/b/c", "x" * 5000, "nul\0"])
def test_a_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError) as caught:
        traces.read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gap", [-1.0, float("nan"), float("inf")])
def test_a_gap_that_is_no_pause(gap: float) -> None:
    with pytest.raises(UsageError, match="gap"):
        traces.read(EXAMPLES / "pc-seabios-smp2.log", gap=gap)


def test_a_vm_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(TraceError, match="no memslot change of thread 8; there are some of thread 21669"):
        traces.read(EXAMPLES / "pc-seabios-smp2.log", vm=8)


def test_a_delete_of_a_slot_that_never_was_means_that_it_was_there_before(tmp_path: Path) -> None:
    timeline = read(tmp_path, line(3, 0x1000, 0))
    assert [str(slot) for slot in timeline.assumed.values()] == ["Slot 3 [0x1000, 0x2000) 4 KiB -> 0x7f0000000000"]
    assert "assumed" in timeline.notes[0]


def test_a_delete_of_a_slot_that_is_gone(tmp_path: Path) -> None:
    text = line(3, 0x1000, 0x1000) + line(3, 0x1000, 0) + line(3, 0x1000, 0)
    assert refusal(tmp_path, text).startswith(":3: KVM would have refused it (EINVAL: slot 3: no such slot")


@pytest.mark.parametrize(
    ("gpa", "size"), [(0x1000, 0x1000), (0x0, 0x2000), (0x2000, 0x10000), (0x0, 0x100000), (0x2000, 0x1000)]
)
def test_slots_that_overlap(tmp_path: Path, gpa: int, size: int) -> None:
    text = line(0, 0x1000, 0x2000) + line(1, gpa, size)
    assert ":2: slot 1: " in refusal(tmp_path, text)
    assert "overlaps slot 0 [0x1000, 0x3000) 8 KiB: KVM would have refused it (EEXIST)" in refusal(tmp_path, text)


def test_neighbours_and_other_address_spaces_do_not_overlap(tmp_path: Path) -> None:
    text = line(0, 0x1000, 0x2000) + line(1, 0x3000, 0x1000) + line(2, 0, 0x1000) + line(65536, 0x1000, 0x2000)
    assert len(read(tmp_path, text).changes) == 4


def test_slots_that_share_host_memory_are_legal(tmp_path: Path) -> None:
    assert len(read(tmp_path, line(0, 0, 0x1000, 0x5000) + line(1, 0x1000, 0x1000, 0x5000)).changes) == 2


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (line(0, 0x1000, 0x3000), "npages"),
        (line(0, 0x1000, 0x2000, 0x1000), "userspace_addr"),
        (line(0, 0x9000, 0x2000, flags=2), "flags 0x2 differs from 0x0"),
    ],
)
def test_changes_of_a_slot_that_kvm_does_not_allow(tmp_path: Path, second: str, said: str) -> None:
    message = refusal(tmp_path, line(0, 0x1000, 0x2000) + second)
    assert said in message
    assert message.startswith(":2: KVM would have refused it (EINVAL")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (line(0, 0, 1 << 64), "memory_size 0x10000000000000000 is past 2^64"),
        (line(0, 1 << 64, 0x1000), "guest_phys_addr 0x10000000000000000 is past 2^64"),
        (line(0, 0, 0x1000, 1 << 64), "userspace_addr 0x10000000000000000 is past 2^64"),
        (line(0, 0, 0x1000, flags=1 << 32), "flags 0x100000000 has more than 32 bits"),
        (line(1 << 32, 0, 0x1000), "slot 0x100000000 has more than 32 bits"),
        (line(0, (1 << 64) - 0x1000, 0x1000), "reaches past 2^64"),
        (line(0, 0x1000, 0x1000, (1 << 64) - 0x1000), "reaches past 2^64"),
        (line(0, 0x1800, 0x1000), "guest_phys_addr 0x1800 is not a multiple of the page size 0x1000"),
        (line(0, 0x1000, 0x1800), "memory_size 0x1800 is not a multiple of the page size 0x1000"),
        (line(0, 0x1000, 0x1000, 0x7F0000000800), "userspace_addr 0x7f0000000800 is not a multiple"),
        (line(0, 0, 1 << 47), "memory_size 0x800000000000 is more than 0x7fffffff0000"),
        (line(32767, 0, 0x1000), "slot 32767: below 32767 is allowed"),
    ],
)
def test_fields_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    message = refusal(tmp_path, "other\n" + text)
    assert said in message
    assert message.startswith(":2: ")


def test_a_refused_change_is_kept_and_marked_and_not_applied(tmp_path: Path) -> None:
    timeline = read(
        tmp_path,
        line(0, 0x1000, 0x2000)
        + line(1, 0x2000, 0x1000, ret=-17)
        + line(0, 0x1000, 0x3000, ret=-22)
        + line(7, 0x1000, 0, ret=-22)
        + line(2, 0x1800, 0x800, ret=-22)
        + line(0, 0x1000, 0),
    )
    assert [each.applied for each in timeline.changes] == [True, False, False, False, False, True]
    assert [each.line for each in timeline.refused] == [2, 3, 4, 5]
    assert [each.line for group in timeline.transactions for each in group.changes] == [1, 6]
    assert [each.removed for each in timeline.refused] == [None] * 4
    assert [each.added for each in timeline.refused] == [None] * 4
    assert timeline.changes[4].change == Change(2, 1, 1, 0x7F0000000000)  # an odd size is no delete


def test_two_formats_in_one_file_are_an_error(tmp_path: Path) -> None:
    strace = (
        "5 ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=4096, "
        "userspace_addr=0x1000}) = 0\n"
    )
    assert ":2: a change as strace prints it, after changes as qemu" in refusal(tmp_path, line(0, 0, 0x1000) + strace)


def test_an_error_in_a_line_without_a_newline_is_that_error(tmp_path: Path) -> None:
    assert "overlaps slot 0" in refusal(tmp_path, line(0, 0, 0x2000) + line(1, 0x1000, 0x1000).rstrip())


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("length", [1 << 15, 1 << 20])
def test_one_overlong_line_is_refused_for_what_it_is(tmp_path: Path, length: int, end: str) -> None:
    message = refusal(tmp_path, "x" * length + end)
    assert "a line of more than 16384 characters, of which the rest is not looked at (line 1)" in message
    assert "truncated" not in message


@pytest.mark.parametrize("end", ["", "\n"])
def test_an_overlong_line_at_the_end_of_a_trace_is_said(tmp_path: Path, end: str) -> None:
    timeline = read(tmp_path, line(0, 0, 4096) + "x" * 20000 + end)
    assert len(timeline.changes) == 1
    assert any("more than 16384 characters" in note for note in timeline.notes)


FTRACE = "  qemu-system-x86-77      [001] ..... {}: tracing_mark_write: "
LOSSES = ("CPU:1 [LOST 12 EVENTS]\n", "CPU:1 [LOST EVENTS]\n", "# entries-in-buffer/entries-written: 9/250280   #P:8\n")


@pytest.mark.parametrize("lost", LOSSES)
def test_lost_events_of_qemu_s_ftrace_may_be_changes(tmp_path: Path, lost: str) -> None:
    event = FTRACE.format("95526.400000") + line(0, 0, 4096)
    missing = "the recorder dropped events: changes may be missing from the trace (line 1)"
    assert missing in read(tmp_path, lost + event).notes
    assert missing not in read(tmp_path, event).notes
    assert missing not in read(tmp_path, lost + "7@95526.400000:" + line(0, 0, 4096)).notes


def test_a_cut_change_is_refused_for_what_it_is(tmp_path: Path) -> None:
    """Wherever it is cut: a line that ends too soon, and a file that ends inside its last line."""
    whole = line(0, 0, 0x1000).rstrip("\n")
    for end in range(whole.index("gpa="), len(whole) - 1):
        cut = refusal(tmp_path, whole[:end] + "\n")
        assert ":1: kvm_set_user_memory: its fields cannot be read: " in cut
        assert "truncated" not in cut
        assert "; the file ends inside this line: truncated?: " in refusal(tmp_path, whole[:end])


def test_a_refused_change_of_a_vm_that_nobody_asked_for_leaves_its_slots_as_they_were(tmp_path: Path) -> None:
    """A move onto another slot that is recorded as done is damage; what follows is not to end in a traceback."""
    call = (
        "7 1700000000.{:06} ioctl({}, KVM_SET_USER_MEMORY_REGION, {{slot={}, flags=0, guest_phys_addr={:#x}, "
        "memory_size={}, userspace_addr=0x10000}}) = 0 <0.000001>\n"
    )
    calls = [(4, 0, 0, 4096), (5, 0, 0, 4096), (5, 1, 0x10000, 4096), (5, 0, 0x10000, 4096)]
    calls += [(5, 0, 0, 0), (5, 1, 0x10000, 0), (5, 2, 0, 4096), (5, 2, 0, 0), (4, 0, 0, 0)]
    path = tmp_path / "trace"
    path.write_text("".join(call.format(i, *each) for i, each in enumerate(calls)))
    assert [each.kind for each in traces.read(path, vm=4).changes] == [ChangeKind.CREATE, ChangeKind.DELETE]
    with pytest.raises(TraceError, match=r":4: slot 0: .* overlaps slot 1 "):
        traces.read(path, vm=5)
