"""Every instruction of 64-bit user code that accesses memory, in an update: as natively, or refused. Here: some.

A decoder makes the list; the oracle is the processor. All of them: ``python tests/support/instruction_sweep.py``.
"""

from __future__ import annotations

import pytest

from kvm_window import Window

pytestmark = pytest.mark.compiled_only
pytest.importorskip("iced_x86")

from instruction_sweep import NAMES, Player, sweep  # noqa: E402 - it imports the decoder

REFUSED = {
    "CALL": "far: two stores, of which KVM's emulator hands out the last",
    "MOV": "of a segment register: eight bytes with REX.W, and not the selector that the guest sees",
    "PUSH": "of a segment register: not the selector that the guest sees",
    "PUSHF": "not the flags that the guest sees",
    "PUSHFQ": "not the flags that the guest sees",
    "ENTER": "of 16 bits: pushes eight bytes instead of two",
    "LEAVE": "of 16 bits: not run",
    "SLDT": "not what the guest sees",
    "STR": "not what the guest sees",
    "SMSW": "not what the guest sees",
    "LFS": "loads a segment",
    "LGS": "loads a segment",
    "LSS": "loads a segment",
}
"""Those that may be refused, and why; and all with xacquire and xrelease, which are no promise of any processor."""


def test_some_of_them() -> None:
    result = sweep(0, 48, 400)
    assert not result["different"]
    assert not result["unsteady"]
    for name, found in result["refused"].items():
        assert name in REFUSED or all("xacquire" in each or "xrelease" in each for each in found), found
    assert sum(map(len, result["answered"].values())) > 5
    assert sum(map(len, result["native"].values())) > 5


@pytest.mark.parametrize(
    "code",
    ["8c03", "488c03", "9c", "669c", "0fa0", "0fa8", "660fa0", "660fa8", "66c8030000", "66c9", "0f0003", "0f0123"],
)
def test_what_is_emulated_otherwise_is_refused(code: str) -> None:
    with Player() as player:
        assert player.play(bytes.fromhex(code), {}) == "refused"


@pytest.mark.parametrize("code", ["f3480fbc03", "f3480fbd03", "9d", "669d", "480f38f003"])
def test_what_changes_registers_only_is_run_again(code: str) -> None:
    with Player() as player:
        assert player.play(bytes.fromhex(code), {"rsp": 0x25000}) == "run again"


@pytest.mark.parametrize("code", ["0fae3b", "660fae3b", "d93b", "dd3b", "f348ab", "f348a5"])
def test_what_is_rare_is_answered(code: str) -> None:
    """clflush, clflushopt, fnstcw, fnstsw, and strings that repeat."""
    with Player() as player:
        assert player.play(bytes.fromhex(code), {}) == "answered"


@pytest.mark.parametrize("code", ["0f0103", "0f010b"])
def test_sgdt_and_sidt_never_leave_the_guest(code: str) -> None:
    """Their stores are KVM's own (``segmented_write_std()``): it tries again and again until memory is there."""
    with Player() as player:
        assert player.play(bytes.fromhex(code), {}) == "spun"


@pytest.mark.parametrize("code", ["6a9c", "c8100000", "6689448c03", "488903", "58", "680000000fa0", "b80fa0000050"])
def test_what_only_ends_like_one_is_answered(code: str) -> None:
    """Push of an immediate 9c; enter; a 16-bit store whose address looks like a move of es."""
    with Window() as guest:
        guest.engine.retry_exits(True)
        registers = {"rcx": 1, "rsp": 0x29000}
        guest.prepare(bytes.fromhex(code), **registers)
        native = guest.run()
        guest.prepare(bytes.fromhex(code), **registers)
        assert guest.run_in_a_hole() == native


def test_names_are_the_decoders() -> None:
    assert REFUSED.keys() <= set(NAMES.values())
