"""Slots from before the trace began are in the page's data, with the change that told of each."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from guestmem import traces
from guestmem.check import check
from guestmem.report.page import page

if TYPE_CHECKING:
    from pathlib import Path

EVENT = "7@{}:kvm_set_user_memory AddrSpace#0 Slot#{} flags=0x0 gpa={:#x} size={:#x} ua={:#x} ret=0\n"
SLOTS = [
    {"slot": 0, "guest_phys_addr": 0, "memory_size": "0xa0000", "userspace_addr": "0x7f0000000000"},
    {"slot": 3, "guest_phys_addr": "0x100000", "memory_size": "0x100000", "userspace_addr": "0x7f0000100000"},
    {"guest_phys_addr": "0xfffc0000", "memory_size": "0x40000", "flags": 2},
]


def test_what_is_touched_and_what_is_not(tmp_path: Path) -> None:
    trace, assumed = tmp_path / "trace", tmp_path / "slots.json"
    trace.write_text(EVENT.format("1.0", 0, 0, 0, 0x7F0000000000) + EVENT.format("1.1", 0, 0, 0x8000, 0x7F0000000000))
    assumed.write_text(json.dumps(SLOTS))
    timeline = traces.read(trace, assume_slots=assumed)
    html = page(check(timeline), timeline)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data)["assumed"] == [
        [0, 0, 0, 0, 0xA0, 0x7F0000000, 0],
        [-1, 0, 3, 0x100, 0x100, 0x7F0000100, 0],
        [-1, 0, -1, 0xFFFC0, 0x40, 0, 2],
    ]
    assert "no line: slot 3 at" in html
    assert "no line: a slot at" in html
