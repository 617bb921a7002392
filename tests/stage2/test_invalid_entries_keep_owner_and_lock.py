"""Invalid entries: owner's notes and the locked mark, in the form of Linux 6.2 to 7.0 and in that of 7.1."""

from __future__ import annotations

import random

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2 import (
    Annotations,
    Empty,
    Format,
    InvalidType,
    Locked,
    Malformed,
    Owned,
    amd_npt,
    arm_stage2,
    guest_payload,
    host_payload,
)

OLD, NEW = Annotations.LINUX_6_2, Annotations.LINUX_7_1
BOTH = pytest.mark.parametrize("make", [arm_stage2, amd_npt])


@BOTH
def test_known_words(make: type[Format]) -> None:
    old, new = make(annotations=OLD), make(annotations=NEW)  # type: ignore[call-arg]
    assert (old.locked, old.owned(0, 1), old.owned(0, 0xFF)) == (1 << 10, 1 << 2, 0x3FC)
    assert new.locked == 1 << 60
    assert new.owned(InvalidType.HOST_DONATION, host_payload(3)) == 2 << 60 | 3 << 1
    assert new.owned(InvalidType.HOST_DONATION, guest_payload(2, 0xBEEF, 0x12345)) == (
        2 << 60 | 2 << 1 | 0xBEEF << 4 | 0x12345 << 20
    )
    assert new.owned(InvalidType.GUEST_POISONED, 0) == 3 << 60


@BOTH
@pytest.mark.parametrize("annotations", Annotations)
def test_every_invalid_word_is_one_thing(make: type[Format], annotations: Annotations, rng: random.Random) -> None:
    format_ = make(annotations=annotations)  # type: ignore[call-arg]
    kinds = set()
    words = [0, format_.locked, *(rng.getrandbits(64) & ~1 for _ in range(500)), *range(2, 0x800, 2)]
    for word in words:
        for level in range(4):
            entry = format_.decode(word, level)
            assert format_.encode(entry) == word
            kinds.add(type(entry))
    assert kinds == {Empty, Locked, Owned, Malformed}


BAD = [
    (OLD, lambda f: f.owned(0, 0), "owner: 0x0 of kind 0 is not kind 0 and 0x1..0xff"),
    (OLD, lambda f: f.owned(0, 0x100), "owner: 0x100 of kind 0 is not kind 0 and 0x1..0xff"),
    (OLD, lambda f: f.owned(2, 1), "owner: 0x1 of kind 2 is not kind 0 and 0x1..0xff"),
    (NEW, lambda f: f.owned(0, 1), "kind: 0 is not in 2..15: 0 is an empty entry, 1 a locked one"),
    (NEW, lambda f: f.owned(1, 1), "kind: 1 is not in 2..15: 0 is an empty entry, 1 a locked one"),
    (NEW, lambda f: f.owned(16, 1), "kind: 16 is not in 2..15: 0 is an empty entry, 1 a locked one"),
    (NEW, lambda f: f.owned(2, 1 << 59), "payload: 0x800000000000000 is not within 59 bits"),
    (NEW, lambda f: host_payload(8), "owner: 0x8 and metadata 0x0 are not within 3 and 56 bits"),
    (NEW, lambda f: guest_payload(1, 1 << 16, 0), "handle: 0x10000 and gfn 0x0 are not within 16 and 40 bits"),
]


@pytest.mark.parametrize(("annotations", "call", "message"), BAD)
def test_bad_notes(annotations: Annotations, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(Stage2Error) as caught:
        call(arm_stage2(annotations=annotations))
    assert str(caught.value) == f"EINVAL: {message}"
