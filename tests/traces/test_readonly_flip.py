"""A READONLY flip that QEMU prints as one line is the two calls that it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.errors import TraceError
from guestmem.memslots.changes import ChangeKind

if TYPE_CHECKING:
    from pathlib import Path

CREATE = "9@1.000000:kvm_set_user_memory Slot#3 flags=0x0 gpa=0xc0000 size=0x20000 ua=0x7f0000000000 ret=0\n"
FLIP = "9@1.000100:kvm_set_user_memory Slot#3 flags=0x3 gpa=0xc0000 size=0x20000 ua=0x7f0000000000 ret=0\n"
LOG_ONLY = "9@1.000200:kvm_set_user_memory Slot#3 flags=0x2 gpa=0xc0000 size=0x20000 ua=0x7f0000000000 ret=0\n"


def test_it_is_a_delete_and_a_create_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text(CREATE + FLIP + LOG_ONLY)
    timeline = traces.read(path)
    first, delete, create, flags = timeline.changes
    assert (delete.kind, delete.line, delete.implied, delete.old) == (ChangeKind.DELETE, 2, True, first.added)
    assert (create.kind, create.line, create.implied, create.old) == (ChangeKind.CREATE, 2, False, None)
    assert (create.added, flags.kind, flags.implied) == (create.change.as_slot(), ChangeKind.FLAGS_ONLY, False)
    assert [[each.line for each in group.changes] for group in timeline.transactions] == [[1], [2, 2], [3]]


def test_one_that_was_refused_is_one_change(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text(CREATE + FLIP.replace("ret=0", "ret=-22"))
    assert [(each.kind, each.implied) for each in traces.read(path).changes] == [
        (ChangeKind.CREATE, False),
        (ChangeKind.NOTHING, False),
    ]


def test_strace_hides_nothing_so_there_it_is_an_error(tmp_path: Path) -> None:
    shown = (
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=3, flags=%s, guest_phys_addr=0, memory_size=4096, "
        "userspace_addr=0}) = 0\n"
    )
    path = tmp_path / "strace.txt"
    path.write_text(shown % "0" + shown % "KVM_MEM_READONLY")
    with pytest.raises(TraceError, match=r"strace.txt:2: .*KVM_MEM_READONLY"):
        traces.read(path)
