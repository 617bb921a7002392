"""What KVM hands out in fragments of 8 bytes, others see as a whole, where the processor's own access would be one.

The first part needs no kernel: fragments are handed in one by one, and memory is looked at between them.
"""

from __future__ import annotations

import ctypes

import pytest

from guestmem.compiled import Own, own, words
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.address_map import map_begin, map_find, map_insert, map_words
from guestmem.engines.kvm.fragments import land, load_fragment, store_fragment
from kvm_window import Window

pytestmark = pytest.mark.compiled_only
GPA, PAGE = 0x5000, 0x1000
OLD = bytes(range(0x40, 0x60))


class Fragments:
    """A vCPU's words and its kvm_run, a page of guest memory, and a map that has it."""

    def __init__(self) -> None:
        self.run = ctypes.create_string_buffer(8192)
        self.held = ctypes.create_string_buffer(2 * PAGE)
        self.host = -(-ctypes.addressof(self.held) // 64) * 64
        self.own: Own = own(at.OWN_WORDS)
        self.own[int(at.RUN)] = -(-ctypes.addressof(self.run) // PAGE) * PAGE
        self.entries = words(map_words(1))
        map_begin(self.entries, 1)
        map_insert(self.entries, GPA, GPA + PAGE, self.host, 0)
        ctypes.memmove(self.host, OLD, len(OLD))

    def store(self, offset: int, content: bytes) -> None:
        ctypes.memmove(int(self.own[int(at.RUN)]) + 40, content.ljust(8, b"?"), 8)
        entry = map_find(self.entries, GPA)
        store_fragment(self.entries, self.own, entry, GPA + offset, self.host + offset, len(content))

    def load(self, offset: int, size: int) -> bytes:
        load_fragment(self.entries, self.own, GPA + offset, self.host + offset, size)
        return ctypes.string_at(int(self.own[int(at.RUN)]) + 40, size)

    def land(self) -> None:
        land(self.entries, self.own)

    def memory(self) -> bytes:
        return ctypes.string_at(self.host, len(OLD))


@pytest.mark.no_kvm
def test_a_store_of_16_bytes_lands_at_once() -> None:
    parts = Fragments()
    parts.store(0, b"12345678")
    assert parts.memory() == OLD, "half of it is not there"
    parts.store(8, b"abcdefgh")
    assert parts.memory() == OLD
    parts.land()
    assert parts.memory() == b"12345678abcdefgh" + OLD[16:]
    assert parts.own[int(at.WIDE)] == 1


@pytest.mark.no_kvm
@pytest.mark.parametrize(("first", "second"), [(8, 16), (0, 16), (16, 8), (4, 12)])
def test_others_land_one_after_the_other(first: int, second: int) -> None:
    """Not aligned to 16, or not one behind the other: the processor makes no single access of these, either."""
    parts = Fragments()
    parts.store(first, b"12345678")
    parts.store(second, b"abcdefgh")
    expected = bytearray(OLD)
    expected[first : first + 8] = b"12345678"
    assert parts.memory() == bytes(expected)
    parts.land()
    expected[second : second + 8] = b"abcdefgh"
    assert parts.memory() == bytes(expected)
    assert parts.own[int(at.WIDE)] == 0


@pytest.mark.no_kvm
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_a_small_store_lands_when_its_instruction_ends(size: int) -> None:
    parts = Fragments()
    parts.store(3, b"12345678"[:size])
    parts.land()
    assert parts.memory() == OLD[:3] + b"12345678"[:size] + OLD[3 + size :]
    parts.land()
    assert parts.memory()[3 : 3 + size] == b"12345678"[:size]


@pytest.mark.no_kvm
def test_both_halves_of_a_load_are_of_one_moment() -> None:
    parts = Fragments()
    assert parts.load(0, 8) == OLD[:8]
    ctypes.memmove(parts.host, b"x" * 16, 16)  # another processor
    assert parts.load(8, 8) == OLD[8:16]
    assert parts.load(8, 8) == b"x" * 8, "once"


@pytest.mark.no_kvm
def test_a_load_elsewhere_is_of_its_own_moment() -> None:
    parts = Fragments()
    assert parts.load(0, 8) == OLD[:8]
    ctypes.memmove(parts.host, b"x" * 32, 32)
    assert parts.load(16, 8) == b"x" * 8
    assert parts.load(8, 8) == b"x" * 8, "the half that was read ahead was dropped"


@pytest.mark.no_kvm
def test_a_load_sees_the_store_before_it() -> None:
    parts = Fragments()
    parts.store(0, b"12345678")
    assert parts.load(0, 8) == b"12345678"


@pytest.mark.parametrize(
    ("code", "wide"),
    [
        ("660f7f03", 1),  # movdqa [rbx], xmm0
        ("0f2903", 1),  # movaps [rbx], xmm0
        ("660f6f03", 1),  # movdqa xmm0, [rbx]
        ("f3410f7f02", 0),  # movdqu [r10], xmm0: across a page
        ("48894308", 0),  # mov [rbx+8], rax
    ],
)
def test_the_kernels_fragments_are_put_together(code: str, wide: int) -> None:
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.prepare(bytes.fromhex(code))
        native = guest.run()
        guest.prepare(bytes.fromhex(code))
        assert guest.run_in_a_hole() == native
        assert guest.counts()["wide"] == wide
