"""Pools and host memory lie below 2**40, are shared with whoever gets the descriptor, and go when nobody looks."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from guestmem.errors import GuestmemError
from guestmem.low_memory import LOW_END, low_memory
from guestmem.stage2 import Pool, Rights, amd_npt


def mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16) for line in lines)


def test_many_at_once_and_all_low() -> None:
    kept = [low_memory(3 << 20) for _ in range(20)] + [low_memory(1 << 30, 1 << 30), low_memory(300 << 30)]
    spans = sorted((address, address + len(view)) for address, view, _ in kept)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start
    assert spans[-1][1] <= LOW_END
    assert all(address % (2 << 20) == 0 for address, _ in spans)
    for _, _, fd in kept:
        os.close(fd)


def test_room_comes_back() -> None:
    gc.collect()
    gc.freeze()  # or each collection looks at all that other tests have left
    for _ in range(6):  # 1.5 TiB in all
        address, view, fd = low_memory(256 << 30)
        os.close(fd)
        assert mapped(address)
        half = view[8:16]
        del view
        gc.collect()
        assert mapped(address)  # a view of a view keeps it
        half.release()
        del half
        gc.collect()
        assert not mapped(address)


def test_no_room_is_an_error() -> None:
    with pytest.raises(GuestmemError, match=r"low memory: no room for 1 TiB below 0x10000000000"):
        low_memory(1 << 40)


def test_another_mapping_of_the_pool_sees_its_tables() -> None:
    pool, npt = Pool(16), amd_npt()
    assert pool.base + (16 << 12) <= LOW_END
    page = pool.alloc()
    word = npt.leaf(3, 0x5000, npt.attributes(Rights.RWX))
    pool.store(page, 3, word)
    assert pool.fd is not None
    with mmap.mmap(pool.fd, 16 << 12, mmap.MAP_SHARED, mmap.PROT_READ) as other:
        at = page - pool.base + 24
        assert int.from_bytes(other[at : at + 8], "little") == word
    pool.close()
    pool.close()
    assert pool.load(page, 3) == word  # the memory stays while the pool does
    base = pool.base
    del pool
    gc.collect()
    assert not mapped(base)


def test_another_process_can_read_them() -> None:
    pool = Pool(16)
    page = pool.alloc()
    pool.store(page, 1, 0x123456789ABCDEF)
    assert pool.fd is not None
    command = ["od", "-An", "-tx8", f"-j{page - pool.base + 8}", "-N8"]
    seen = subprocess.run([*command, f"/proc/{os.getpid()}/fd/{pool.fd}"], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["0123456789abcdef"]
