"""A kernel that answers otherwise is found, shrunk to the shortest sequence, and told apart from a known difference."""

from __future__ import annotations

import dataclasses
import errno
import random
from collections.abc import Iterator, Sequence

import pytest

from guestmem.conform.calls import ARENA, BUFFER, CALL_BYTES, Answer, Call, decode_block
from guestmem.conform.modelled import ModelledVm
from guestmem.conform.run import Answers, Outcome, ask_model, conform
from guestmem.conform.shrink import shrink
from guestmem.dirty import DirtyBitmap
from guestmem.memslots import Change, ChangeKind, Slot
from guestmem.memslots.checks import Host
from guestmem.memslots.versions import LINUX_7_3
from guestmem.vm.dirty_state import DirtyState
from guestmem.vm.model import KvmModel, ModelSlot


class Pretended:
    """A kernel made of the model, with one thing changed by a test."""

    name = "a pretended kernel"

    def __init__(self, host: Host, patched: tuple[type, str, object] | None = None) -> None:
        self._host, self._patched = host, patched

    def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
        with pytest.MonkeyPatch.context() as patch:
            if self._patched is not None:
                patch.setattr(*self._patched)
            vm = ModelledVm(self._host)
            return [
                vm.answer(call) if wanted is not None else None for call, wanted in zip(calls, expected, strict=True)
            ]


def run(side: Pretended, seed: int, blocks: int = 60) -> Outcome:
    random_ = random.Random(seed)

    def drawn(_seed: int, _count: int) -> Iterator[list[Call]]:
        for _ in range(blocks):
            yield decode_block(random_.randbytes(CALL_BYTES * 200))

    return conform(Host(), side, steps=1 << 40, seconds=0.001 if side._patched is None else 1e9, blocks=drawn)


def test_a_kernel_that_forgets_the_log_at_a_move(seed: int) -> None:
    keep = DirtyState.bitmap_for

    def forget(state: DirtyState, key: int, old: ModelSlot | None, npages: int) -> DirtyBitmap | None:
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
    judge = KvmModel._kind_of_existing

    def lenient(change: Change, was: Slot) -> ChangeKind:
        try:
            return judge(change, was)
        except Exception as error:
            if "flags" not in str(error):
                raise
            return judge(change._replace(flags=was.flags), was)

    found = run(Pretended(Host(), (KvmModel, "_kind_of_existing", staticmethod(lenient))), seed).divergence
    assert found is not None
    assert len(found.calls) == 2
    assert found.expected[1] == Answer(-errno.EINVAL)
    assert found.answered[1] == Answer(0)


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
