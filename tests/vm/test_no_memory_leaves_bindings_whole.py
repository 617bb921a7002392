"""Where memory fails while what slots have bound of a guest_memfd is made good, the rest follows all the same."""

from __future__ import annotations

from typing import Any

import pytest

from guestmem.abi.model import KvmModel
from guestmem.gmem.bindings import Bindings
from guestmem.vm import Vm
from guestmem.vm.guest_memfd import File

PAGE, PAGES = 0x1000, 16


def forth(vm: Vm[Any, KvmModel], file: File) -> None:
    """Slot 0 is split, loses two pages in the middle, and half moves."""
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.create(0, gpa=0, size=8 * PAGE, host=host, guest_memfd=file)
        far = host + 10 * PAGE
        change.create(1, gpa=0x100000, size=6 * PAGE, host=far, guest_memfd=file, offset=10 * PAGE)


def back(vm: Vm[Any, KvmModel], file: File) -> None:
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.delete(1)
        change.create(0, gpa=0, size=PAGES * PAGE, host=host, guest_memfd=file)


@pytest.mark.parametrize("call", range(5))
def test_in_the_middle_of_what_is_bound_anew(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """At each call that puts or removes one of the slots: the rest follows."""
    with Vm() as vm:
        file = vm.create_guest_memfd(PAGES * PAGE)
        vm.memory.create(0, gpa=0, size=PAGES * PAGE, guest_memfd=file)
        forth(vm, file)
        left = call

        def failing(original: Any) -> Any:
            def fails(*arguments: Any, **named: Any) -> None:
                nonlocal left
                left -= 1
                if left == -1:
                    raise MemoryError
                original(*arguments, **named)

            return fails

        for name in ("put", "remove"):
            monkeypatch.setattr(Bindings, name, failing(getattr(Bindings, name)))
        back(vm, file)
        vm.model.check()
        vm.engine.files.check()
        assert [slot.npages for slot in vm.memory] == [PAGES]
        assert left < 0 or call > 2
