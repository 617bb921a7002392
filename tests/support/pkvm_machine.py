"""A machine under pKVM and what a naive walker sees in its tables."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from guestmem.atomics import peek
from guestmem.errors import Stage2Error
from guestmem.stage2.arm import ArmFormat, arm_stage2
from guestmem.stage2.format import Annotations, Format
from guestmem.stage2.geometry import Geometry
from guestmem.stage2.pkvm import Pkvm, ProtectedVm
from guestmem.stage2.pkvm.layout import EL2_FIXED
from guestmem.stage2.pool import Pool
from naive_walker import Seen, arm_owned, arm_pages, reader

__all__ = ["KINDS", "Machine", "outcome", "tiny"]

Memory = list[tuple[int, int]]


def tiny() -> Format:
    """Tables of 8 entries: blocks of 64 and 8 pages, 1024 pages of input."""
    return ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1)


KINDS: dict[str, tuple[Callable[[], Format], Memory]] = {
    # Regions that hold blocks of all sizes, and one that starts and ends inside blocks.
    "8-entries": (tiny, [(0x40000, 0x80000), (0x10A000, 0x57000)]),
    "arm-4k": (lambda: arm_stage2(0x1000, 40), [(0x4000_0000, 0x60_0000)]),
    "arm-16k": (lambda: arm_stage2(0x4000, 40), [(0x4000_0000, 0x400_0000)]),
}


def outcome(call: Callable[..., object], *args: Any, **named: Any) -> str:
    """The errno's name, or "" if it was done."""
    try:
        call(*args, **named)
    except Stage2Error as error:
        return "EHWPOISON" if error.errno == 133 else errno.errorcode[error.errno or 0]
    return ""


class Machine(Pkvm):
    """``Pkvm``, with a pool at a made-up address."""

    def __init__(self, kind: str = "8-entries", *, pool_pages: int = 600, **named: Any) -> None:
        make, memory = KINDS[kind]
        format_ = make()
        pool = Pool(pool_pages, format_.geometry.page_shift, base=0x1000_0000)
        super().__init__(format_, named.pop("memory", memory), pool=pool, **named)
        geometry = format_.geometry
        self.page, self.block = geometry.page_size, geometry.size(2)
        stride = geometry.stride if kind == "8-entries" else None
        self.where: dict[str, Any] = {
            "granule": self.page >> 10,
            "ipa_bits": geometry.ipa_bits,
            "start": geometry.start_level,
            "stride": stride,
        }
        self.sizes = [geometry.size(level) for level in range(4)]

    def leaves(self, vm: ProtectedVm | None = None) -> dict[int, Seen]:
        """What the host's table maps, or a guest's, by first address."""
        root = vm.table.root if vm else self.host.root
        return arm_pages(reader(self.pool.words, self.pool.base), root, **self.where)

    def marks(self, vm: ProtectedVm | None = None) -> dict[int, int]:
        """Invalid entries that are not 0."""
        root = vm.table.root if vm else self.host.root
        found = arm_owned(reader(self.pool.words, self.pool.base), root, **self.where)
        return {at: word for at, (word, _level) in found.items()}

    def mapped(self, vm: ProtectedVm | None = None) -> dict[int, int]:
        """Output address of every page mapped."""
        return {
            at + offset: leaf.pa + offset
            for at, leaf in self.leaves(vm).items()
            for offset in range(0, self.sizes[leaf.level], self.page)
        }

    def everything(self) -> object:
        """All that a refused transition must not change."""
        return (
            self.leaves(),
            self.marks(),
            [(self.leaves(vm), self.marks(vm), self.vm_pages(vm)) for vm in self.vms.values()],
            [peek(self.el2, at) for at in range(int(EL2_FIXED), len(self.el2))],
        )

    def fault_all(self) -> None:
        """Touch every page of memory that the host has."""
        for start, end in self.regions:
            for at in range(start, end, self.page):
                outcome(self.host_fault, at)
