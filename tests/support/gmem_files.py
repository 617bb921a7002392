"""Short words for tests of guest_memfd: a slot for a whole file, and the errno of what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guestmem.errors import GuestmemError
from guestmem.gmem import GuestMemfd
from guestmem.memslots.slot import Slot

PAGE = 4096


def whole(file: GuestMemfd, base_gfn: int = 0x100, slot: int = 1) -> Slot:
    """A slot that has bound all of ``file``."""
    bound = Slot(0, slot, base_gfn, file.inode.npages, 0x7000_0000_0000)
    file.bind(bound, 0, vm=file.vm)
    return bound


def errno_of(call: Callable[[], Any]) -> int:
    """The errno that ``call`` is refused with."""
    with pytest.raises(GuestmemError) as caught:
        call()
    assert caught.value.errno is not None
    return caught.value.errno
