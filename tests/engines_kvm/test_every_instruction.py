"""Every instruction of 64-bit user code that accesses memory: whole in an update, or refused; a part of them.

A decoder makes the list; the oracle is the processor, which runs each natively first, twice. Here every 24th runs. Of
the others push fs, push gs and movbe are known to differ, and are answered all the same: docs/exit-retry.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from guestmem.errors import GuestmemError
from kvm_every_instruction import every_instruction, stores
from kvm_window import Window, died

pytestmark = pytest.mark.compiled_only
iced = pytest.importorskip("iced_x86")

REFUSED = {
    "CALL": "far: two stores, of which KVM's emulator hands out the last",
    "LZCNT": "taken for bsr",
    "TZCNT": "taken for bsf",
    "MOV": "of a segment register: eight bytes with REX.W, and not the selector that the guest sees",
    "PUSHF": "not the flags that the guest sees",
    "PUSHFQ": "not the flags that the guest sees",
    "POPF": "sets other flags",
    "POPFQ": "sets other flags",
    "ENTER": "of 16 bits: pushes eight bytes instead of two",
}
"""Those that may be refused, and why."""
_LEFT_OUT = {
    "SGDT": "it never came to wait in a hole here, for a reason that was not found",
    "SIDT": "as sgdt",
}
NAMES = {getattr(iced.Mnemonic, name): name for name in dir(iced.Mnemonic) if name.isupper()}


def name_of(instruction: Any) -> str:
    return NAMES[instruction.mnemonic]


def play(code: bytes) -> str:
    """What becomes of it in an update: "whole", "refused", "skipped" where it does not do the same twice natively."""
    with Window() as guest:
        guest.engine.retry_exits(True)

        def prepare() -> None:
            guest.prepare(code, rcx=3)

        prepare()
        native = guest.run()
        prepare()
        if not died(native.exit) or guest.run() != native:
            return "skipped"
        prepare()
        try:
            found = guest.run_in_a_hole()
        except AssertionError as error:
            if guest.ended and isinstance(guest.ended[0], GuestmemError):
                return "refused"
            if "nothing held it up" in str(error):  # prefetches, nops
                return "skipped"
            raise
        return "whole" if found == native else "different"


def sweep(part: int, of: int) -> dict[str, int]:
    count = {"whole": 0, "refused": 0, "skipped": 0}
    for text, code, instruction in [*every_instruction(iced)][part::of]:
        name = name_of(instruction)
        if name in _LEFT_OUT:
            continue
        became = play(code)
        assert became in count, (text, code.hex(), became)
        assert became != "refused" or name in REFUSED, (text, code.hex())
        count[became] += 1
    return count


def test_some_of_them() -> None:
    assert sweep(0, 24)["whole"] > 5


@pytest.mark.parametrize(
    "code", ["8c03", "488c03", "9c", "669c", "9d", "669d", "66c8030000", "f3480fbc03", "f3480fbd03"]
)
def test_what_is_emulated_otherwise_is_refused(code: str) -> None:
    assert play(bytes.fromhex(code)) == "refused"


@pytest.mark.parametrize("code", ["6a9c", "c8100000", "6689448c03", "488903", "58"])
def test_what_only_ends_like_one_is_answered(code: str) -> None:
    """Push of an immediate 9c; enter; a 16-bit store whose address looks like a move of es."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        registers = {"rcx": 1, "rsp": 0x29000}
        guest.prepare(bytes.fromhex(code), **registers)
        native = guest.run()
        guest.prepare(bytes.fromhex(code), **registers)
        assert guest.run_in_a_hole() == native


@pytest.mark.no_kvm
def test_what_stores_more_than_once_is_the_far_call() -> None:
    """By the decoder; enter with levels, xsave and their like it counts as one. These KVM's emulator does not know."""
    several = {name_of(found) for _, _, found in every_instruction(iced) if stores(iced, found) > 1}
    assert several == {"CALL"}
    assert all(found.is_call_far_indirect for _, _, found in every_instruction(iced) if stores(iced, found) > 1)
