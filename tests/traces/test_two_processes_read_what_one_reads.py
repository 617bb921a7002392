"""A second process that reads ahead changes nothing of what is read, wherever the file is cut into blocks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rare_renderings
import renderings
from guestmem import traces
from guestmem.check import check
from guestmem.errors import TraceError
from guestmem.traces import dispatch, event_pieces, lines, pieces, reading
from guestmem.traces.second_process import Ahead
from true_histories import simulate

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "examples" / "traces", Path(__file__).parent / "cases")
FILES = sorted(path for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".log", ".txt", ".strace"))
EVENT = "{}@{:.6f}:kvm_set_user_memory AddrSpace#0 Slot#{} flags=0x0 gpa={:#x} size={:#x} ua={:#x} ret=0\n"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def text_of(rng: random.Random, count: int) -> str:
    """Changes of two threads: slots come and go."""
    there: dict[int, int] = {}
    found = []
    for i in range(count):
        slot = rng.randrange(40)
        size = 0 if slot in there else 0x1000
        there.pop(slot, None) if slot in there else there.update({slot: i})
        found.append(
            EVENT.format(rng.choice((7, 8)), 1 + i / 1e3, slot, slot << 20, size, 0x7F0000000000 + (slot << 20))
        )
    return "".join(found)


def told(path: Path) -> Any:
    try:
        timeline = traces.read(path)
    except TraceError as error:
        return str(error)
    state, report = timeline.run_state, check(timeline, jobs=1).as_dict()
    if state is None:
        return list(timeline.changes), report
    events = {
        str(vcpu): [(piece, state.returns(vcpu, *piece[:2])) for piece in state.stretches(vcpu)] for vcpu in state.vcpus
    }
    if timeline.format == "strace":  # of which lines tell some events twice
        report.pop("run_state")
        events = {}
    return list(timeline.changes), report, events, state.losses.all, state.first, state.last


def both(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> tuple[Any, Any, int]:
    """What one process reads, what two read, and how many blocks the second one made."""
    made: list[object] = []
    take = dispatch.Lines.take_block

    def counted(self: Any, number: int, text: str, there: object) -> int:
        made.extend(() if there is None else (there,))
        return take(self, number, text, there)

    with monkeypatch.context() as patch:
        patch.setattr(lines, "BLOCK", block)
        patch.setattr(reading, "cores", lambda _: 1)
        alone = told(path)
        patch.setattr(reading, "cores", lambda _: 2)
        patch.setattr(reading, "LARGE", 0)
        patch.setattr(dispatch.Lines, "take_block", counted)
        return alone, told(path), len(made)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_of_recordings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (700, 1333):
        alone, together, _ = both(path, monkeypatch, block)
        assert together == alone


FORMS = (
    renderings.strace,
    renderings.qemu_kvm_log,
    renderings.bpftrace,
    rare_renderings.strace_with_options,
    rare_renderings.simpletrace,
    lambda history, rng: renderings.tracepoints(history, rng, history.calls),
)


def test_of_each_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """True histories, with lines that are cut, or of another format, now and then."""
    path = tmp_path / "trace"
    made = kept = 0
    for room in (event_pieces, pieces):

        def counted(*arguments: Any, take: Any = room._take) -> Any:
            nonlocal kept
            found = take(*arguments)
            kept += found > 0
            return found

        monkeypatch.setattr(room, "_take", counted)
        monkeypatch.setattr(room, "SHORTEST", 2)
    for form in FORMS:
        for _ in range(20):
            found = form(simulate(rng), rng).splitlines(keepends=True)
            if rng.random() < 0.4:
                at = rng.randrange(len(found))
                found[at : at + 1] = rng.choice(([found[at][: rng.randrange(1, 60)] + "\n"], [EVENT, found[at]], []))
            path.write_text("".join(found) or "\n")
            alone, together, more = both(path, monkeypatch, rng.choice((400, 1000, 3000)))
            assert together == alone
            made += more
    assert made > 50
    assert kept > 30


def test_at_every_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    path = tmp_path / "trace"
    text = text_of(rng, 60)
    path.write_text(text)
    made = 0
    for block in range(150, 1500, 41):
        alone, together, more = both(path, monkeypatch, block)
        assert together == alone, block
        made += more
    assert made > 200


def test_of_what_is_not_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Lines left out, doubled, refused, of another thread, or of no trace at all, in any block."""
    path = tmp_path / "trace"
    refused = made = 0
    for _ in range(60):
        found = text_of(rng, 80).splitlines(keepends=True)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(found))
            found[at : at + 1] = rng.choice(
                (
                    [],
                    [found[at]] * 2,
                    ["noise\n", found[at]],
                    [found[at].replace("ret=0", "ret=-17")],
                    ["9" + found[at]],
                    ["7@1.000000:kvm_vcpu_ioctl cpu_index 0, type 0xae80, arg (nil)\n", found[at]],
                    [found[at][: rng.randrange(1, 80)] + "\n"],
                )
            )
        path.write_text("".join(found))
        alone, together, more = both(path, monkeypatch, rng.choice((300, 500, 900)))
        assert together == alone
        refused += isinstance(alone, str)
        made += more
    assert refused > 5
    assert made > 50


def test_a_second_process_that_dies_or_reads_another_file_leaves_the_work_to_the_first() -> None:
    ours = os.getpid()

    def blocks() -> Iterator[str]:
        yield from ("a\n", "b\n", "c\n" if os.getpid() == ours else "x\n", "d\n")

    ahead = Ahead(blocks(), str.upper, 4)
    assert [ahead.of(each) for each in blocks()] == [None, "B\n", None, None]
    ahead.close()

    def dies(block: str) -> str:
        if block == "c\n":
            os._exit(9)
        return block.upper()

    ahead = Ahead(iter(["a\n", "b\n", "c\n", "d\n"]), dies, 4)
    assert [ahead.of(each) for each in ["a\n", "b\n", "c\n", "d\n"]] == [None, "B\n", None, None]
    ahead.close()


def children() -> set[str]:
    """Of this process, those that nobody waited for among them; other tests may have left some, and threads."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update((task / "children").read_text().split())
    return found


def test_it_ends_when_reading_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """With an error in the middle as well."""
    path = tmp_path / "trace"
    path.write_text(text_of(rng, 400) + "7@9.000000:kvm_set_user_memory broken\n" + text_of(rng, 4000))
    before = children()
    alone, together, made = both(path, monkeypatch, 2000)
    assert "its fields cannot be read" in together
    assert together == alone
    assert made
    assert children() <= before


def test_a_loss_lies_between_the_events_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever put them together: after a marker the next event says more than itself."""
    point = " CPU 0/KVM-2000    [002] d..1. {:.6f}: kvm_{}\n"
    events = ("entry: vcpu 0, rip 0xfff0", "exit: vcpu 0 reason HLT rip 0xff")
    points = [point.format(2 + i / 1e3, events[i % 2]) for i in range(200)]
    points.insert(120, "CPU:2 [LOST 3 EVENTS]\n")
    path = tmp_path / "trace"
    path.write_text(EVENT.format(7, 1.0, 0, 0, 4096, 4096) + "".join(points))
    for block in (700, 1500, 4000):
        with monkeypatch.context() as patch:
            patch.setattr(lines, "BLOCK", block)
            patch.setattr(reading, "cores", lambda _: 2)
            patch.setattr(reading, "LARGE", 0)
            state = traces.read(path).run_state
        assert state is not None
        (loss,) = state.losses.all
        assert (loss.after, loss.before) == (2.119, 2.12)


def test_a_descriptor_that_becomes_another_vms_is_not_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "{} 17000000{:02}.000000 ioctl("
    change = (
        "{}, KVM_SET_USER_MEMORY_REGION, {{slot=0, flags=0, guest_phys_addr=0, memory_size=4096, "
        "userspace_addr=0x10000}}) = 0 <0.000001>\n"
    )
    runs = [f"9 1700000030.{i:06} ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.000001>\n" for i in range(0, 400, 10)]
    found = []
    for vm, start in ((4, 10), (8, 40)):
        found.append(head.format(7, start) + f"3, KVM_CREATE_VM, 0) = {vm} <0.000001>\n")
        found.append(head.format(7, start + 1) + f"{vm}, KVM_CREATE_VCPU, 0) = 5 <0.000001>\n")
        found.append(head.format(7, start + 2) + change.format(vm))
        found += [each.replace("1700000030", f"17000000{start + 5}") for each in runs]
    path = tmp_path / "trace"
    path.write_text("".join(found))
    with monkeypatch.context() as patch:
        patch.setattr(lines, "BLOCK", 1000)
        patch.setattr(reading, "cores", lambda _: 2)
        patch.setattr(reading, "LARGE", 0)
        state = traces.read(path, vm=4).run_state
    assert state is not None
    (vcpu,) = state.vcpus
    assert len(state.returns(vcpu, 0.0, 2e9)) == len(runs)
