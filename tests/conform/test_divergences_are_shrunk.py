"""A kernel that answers otherwise is found, shrunk to the shortest sequence, and told apart from a known difference."""

from __future__ import annotations

import dataclasses
import errno
import random
from collections.abc import Iterator, Sequence

import pytest

from guestmem import MemslotError, UsageError
from guestmem.abi import model
from guestmem.abi.checks import Host
from guestmem.abi.dirty_state import DirtyState
from guestmem.abi.model import KvmModel, ModelSlot
from guestmem.abi.versions import LINUX_7_3
from guestmem.conform import draw
from guestmem.conform.calls import ARENA, BUFFER, CALL_BYTES, Answer, Call, decode_block
from guestmem.conform.emit import heading
from guestmem.conform.modelled import ModelledVm
from guestmem.conform.run import Answers, Outcome, ask_model, conform
from guestmem.conform.shrink import shrink
from guestmem.dirty import DirtyBitmap
from guestmem.memslots import Change, ChangeKind, Memslots, Slot, SlotKey, classify


class Pretended:
    """A kernel made of the model, with one thing changed by a test."""

    name = "a pretended kernel"

    def __init__(self, host: Host, patched: tuple[object, str, object] | None = None) -> None:
        self._host, self._patched = host, patched

    def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
        with pytest.MonkeyPatch.context() as patch:
            if self._patched is not None:
                patch.setattr(*self._patched)
            vm = ModelledVm(self._host)
            return [
                vm.answer(call) if wanted is not None else None for call, wanted in zip(calls, expected, strict=True)
            ]


def run(side: Pretended, seed: int, blocks: int = 60, *, rings: bool = False) -> Outcome:
    random_ = random.Random(seed)

    def drawn(_seed: int, _count: int) -> Iterator[list[Call]]:
        for _ in range(blocks):
            block = random_.randbytes(CALL_BYTES * 200)
            if rings:
                yield [Call("cap", (192, 0, 4096)), Call("home"), *draw._calls(block, draw._RINGS)]
            else:
                yield decode_block(block)

    return conform(Host(), side, steps=1 << 40, seconds=0.001 if side._patched is None else 1e9, blocks=drawn)


def test_a_kernel_that_forgets_the_log_at_a_move(seed: int) -> None:
    keep = DirtyState.bitmap_for

    def forget(state: DirtyState, key: SlotKey, old: ModelSlot | None, npages: int) -> DirtyBitmap | None:
        return keep(state, key, old if state.ring_entries else None, npages)

    side = Pretended(Host(), (DirtyState, "bitmap_for", forget))
    found = run(side, seed).divergence
    assert found is not None
    kinds = [call.kind for call in found.calls]
    assert kinds[-1] == "get_log"
    assert found.at == len(kinds) - 1
    assert len(kinds) <= 6, [str(call) for call in found.calls]
    for left_out in range(len(kinds)):  # no call is there in vain
        fewer = [call for place, call in enumerate(found.calls) if place != left_out]
        expected = ask_model(Host(), fewer)
        assert side.answers(fewer, expected)[-1:] == expected[-1:]


def test_a_kernel_that_lets_readonly_change(seed: int) -> None:
    def lenient(change: Change, was: Slot | None) -> ChangeKind:
        try:
            return classify(change, was)
        except MemslotError as error:
            if "flags" not in str(error) or was is None:
                raise
            return classify(change._replace(flags=was.flags), was)

    found = run(Pretended(Host(), (model, "classify", lenient)), seed).divergence
    assert found is not None
    assert len(found.calls) == 2
    assert found.expected[1] == Answer(-errno.EINVAL)
    assert found.answered[1] == Answer(0)


def test_a_kernel_that_lets_neighbours_overlap(seed: int) -> None:
    refuse = Memslots.apply

    def lenient(memslots: Memslots, change: Change, **options: bool) -> ChangeKind:
        try:
            return refuse(memslots, change, **options)
        except MemslotError as error:
            if error.errno != errno.EEXIST or change.npages == 1:
                raise
            refuse(memslots, change._replace(npages=change.npages - 1), **options)
            return ChangeKind.CREATE

    found = run(Pretended(Host(), (Memslots, "apply", lenient)), seed).divergence
    assert found is not None
    assert {call.kind.rstrip("2") for call in found.calls} == {"region"}
    assert len(found.calls) <= 3
    assert found.expected[-1] == Answer(-errno.EEXIST)
    assert found.promise.startswith("overlap:")


def test_a_kernel_that_clears_a_bit_too_many(seed: int) -> None:
    clear = DirtyBitmap.clear

    def more(bitmap: DirtyBitmap, first_page: int, num_pages: int, bits: bytes) -> int:
        changed = clear(bitmap, first_page, num_pages, bits)
        if first_page + num_pages < bitmap.npages:
            clear(bitmap, first_page + num_pages, min(64, bitmap.npages - first_page - num_pages), b"\1" + bytes(7))
        return changed

    found = run(Pretended(Host(), (DirtyBitmap, "clear", more)), seed).divergence
    assert found is not None
    assert [call.kind for call in found.calls][-2:] == ["clear_log", "get_log"]
    assert len(found.calls) <= 5
    said = "\n".join(heading(found, "a kernel"))
    assert "That is, dirty in the model only: page 64." in said or "page 128." in said or "page 192." in said


def test_a_kernel_that_forgets_to_protect_at_a_reset(seed: int) -> None:
    found = run(Pretended(Host(), (DirtyState, "_protect", lambda _state, _run: None)), seed, rings=True).divergence
    assert found is not None
    kinds = [call.kind for call in found.calls]
    assert kinds[:2] == ["cap", "home"]
    assert "reset" in kinds
    assert len(kinds) <= 9


def test_what_is_not_there_again_is_told_as_it_was() -> None:
    """A kernel that answers otherwise once: the sequence is kept as it was, and the report says so."""

    class Once(Pretended):
        asked = 0

        def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
            self.asked += 1
            return [*expected[:-1], Answer(-errno.EIO)] if self.asked == 1 else list(expected)

    calls = [Call("mmu_pages", (64,)), Call("vcpu", (1,))]
    outcome = conform(Host(), Once(Host()), steps=1, blocks=lambda _seed, _count: [calls])
    found = outcome.divergence
    assert found is not None
    assert (found.at, found.repeats, found.calls) == (1, False, tuple(calls))
    assert "it depends on more than the calls" in heading(found, "a kernel")[-1]


def test_a_divergence_beside_a_known_difference_is_found() -> None:
    """The known one comes first in the block; it is named, and does not hide the other."""
    bind = [Call("region2", (slot, 4, slot << 15, 0x1000, ARENA, 0, 3, 0)) for slot in (0, 1)]
    calls = [Call("guest_memfd", (0x100000, 0)), *bind, Call("mmu_pages", (63,))]
    side = Pretended(Host(version=LINUX_7_3), (KvmModel, "_set_nr_mmu_pages", lambda _model, _count: 0))
    outcome = conform(Host(), side, steps=1, blocks=lambda _seed, _count: [calls])
    assert [name.partition(" ")[0] for name in outcome.known] == ["gmem_overlap_errno"]
    found = outcome.divergence
    assert found is not None
    assert [call.kind for call in found.calls] == ["mmu_pages"]


def test_several_known_differences_at_once_are_all_named() -> None:
    bind = [Call("region2", (slot, 4, slot << 15, 0x1000, ARENA, 0, 3, 0)) for slot in (0, 1)]
    calls = [Call("guest_memfd", (0x100000, 0)), *bind, Call("guest_memfd", (0x1000, 1))]
    there = dataclasses.replace(LINUX_7_3, gmem_flags=0)
    outcome = conform(Host(), Pretended(Host(version=there)), steps=1, blocks=lambda _seed, _count: [calls])
    assert outcome.divergence is None
    assert [name.partition(" ")[0] for name in outcome.known] == ["gmem_overlap_errno", "gmem_flags"]


def test_ctrl_c_ends_a_run_with_what_was_done() -> None:
    class Interrupted(Pretended):
        asked = 0

        def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
            self.asked += 1
            if self.asked == 3:
                raise KeyboardInterrupt
            return list(expected)

    calls = [Call("mmu_pages", (64,))] * 7
    outcome = conform(Host(), Interrupted(Host()), steps=1000, blocks=lambda _seed, _count: [calls] * 9)
    assert (outcome.interrupted, outcome.calls, outcome.divergence) == (True, 14, None)


def test_a_run_that_draws_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="no call was drawn"):
        conform(Host(), Pretended(Host()), steps=1, blocks=lambda _seed, _count: [[]])


def test_a_known_difference_is_named_and_is_no_divergence() -> None:
    bind = Call("region2", (0, 4, 0, 0x1000, ARENA, 0, 3, 0))
    calls = [Call("guest_memfd", (0x100000, 0)), bind, Call("region2", (1, 4, 0x8000, 0x1000, ARENA, 0, 3, 0))]
    side = Pretended(Host(version=LINUX_7_3))
    outcome = conform(Host(), side, steps=1, blocks=lambda _seed, _count: iter([calls]))
    assert outcome.divergence is None
    assert list(outcome.known) == [
        "gmem_overlap_errno as in Linux 7.3: errno of binding a guest_memfd range that is bound already"
    ]
    assert dataclasses.replace(Host()) == Host()


def test_shrinking_leaves_a_single_call_if_one_is_enough(rng: random.Random) -> None:
    calls = [Call("mmu_pages", (n,)) for n in range(100)]
    for wanted in range(1, 5):
        needed = set(rng.sample(calls[2:], wanted))
        assert shrink(calls, needed.issubset) == sorted(needed)


def test_numbers_become_simple() -> None:
    calls = [Call("region", (3, 2, 0x700000, 0x82000, ARENA + 5)), Call("get_log", (3, 9, BUFFER))]
    found = shrink(calls, lambda tried: [call.kind for call in tried] == ["region", "get_log"])
    assert found == [Call("region", (0, 0, 0, 0, 0)), Call("get_log", (0, 0, BUFFER))]


def test_a_slot_that_several_calls_name_becomes_simpler_in_all_of_them() -> None:
    calls = [Call("region", (4, 1, 0x700000, 0x100000, ARENA)), Call("get_log", (4, 9, BUFFER))]

    def same_slot(tried: Sequence[Call]) -> bool:
        return [call.kind for call in tried] == ["region", "get_log"] and tried[0].args[0] == tried[1].args[0]

    assert [call.args[0] for call in shrink(calls, same_slot)] == [0, 0]
