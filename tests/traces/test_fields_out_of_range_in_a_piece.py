"""What a change's field may be does not depend on whether its line is taken alone or with many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guestmem import traces
from guestmem.errors import TraceError
from guestmem.memslots import Change
from guestmem.traces import lines, pieces

GOOD = {"slot": 1, "flags": "0", "gpa": 0x100000, "size": 0x1000, "hva": 0x7F0000000000}


def line(thread: int, at: int, call: str) -> str:
    return f"{thread} 1700000000.{at:06} {call} <0.000001>\n"


def change(values: dict[str, Any]) -> str:
    return (
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags={flags}, guest_phys_addr={gpa:#x}, "
        "memory_size={size}, userspace_addr={hva:#x}}}) = 0"
    ).format(**values)


def read(path: Path, runs: int, **fields: Any) -> Change | str:
    """The second change that is read, among so many whole KVM_RUNs on each side, or what is said against it."""
    found = [line(7, 0, change(GOOD | {"slot": 9, "gpa": 1 << 50, "hva": 1 << 51}))]
    found += [line(20, i, "ioctl(12, KVM_RUN, 0) = 0 (KVM_EXIT_IO)") for i in range(1, runs)]
    found.append(line(7, runs, change(GOOD | fields)))
    found += [line(20, runs + i, "ioctl(12, KVM_RUN, 0) = 0 (KVM_EXIT_IO)") for i in range(1, runs)]
    path.write_text("".join(found))
    try:
        _, second = traces.read(path).changes
    except TraceError as error:
        where, _, said = str(error).partition(f":{runs + 1}: ")
        assert where == str(path)
        return said.partition(": '")[0]
    return second.change


@pytest.mark.parametrize(
    ("field", "value", "is_refused"),
    [
        ("slot", 1, False),
        ("slot", 0x7FFF, True),
        ("slot", 0xF0001, False),
        ("slot", 0x100001, False),
        ("flags", "0x4 /* KVM_MEM_GUEST_MEMFD */", False),
        ("flags", "0x8 /* KVM_MEM_??? */", False),
        ("gpa", 0x100800, True),
        ("gpa", 1 << 63, False),
        ("gpa", (1 << 64) - 0x1000, True),
        ("size", 0x1800, True),
        ("size", 0x7FFFFFFF0000, False),
        ("size", 0x7FFFFFFF0000 + 0x1000, True),
        ("size", 1 << 62, True),
        ("hva", 0x7F0000000800, True),
        ("hva", 1 << 63, False),
    ],
)
def test_it_is_taken_or_refused_as_alone(
    field: str, value: object, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = read(tmp_path / "alone", 2, **{field: value})
    assert isinstance(alone, str) == is_refused, alone
    monkeypatch.setattr(lines, "BLOCK", 4000)
    monkeypatch.setattr(pieces, "SHORTEST", 3)
    assert read(tmp_path / "among many", 400, **{field: value}) == alone
