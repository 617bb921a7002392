"""What tests of guest_memfd share: files that are closed and checked at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guestmem.gmem import GuestMemfd

Make = Callable[..., GuestMemfd]


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(pages, flags=3, **options)``: a file, checked and closed at the end of the test."""
    made: list[GuestMemfd] = []

    def of(pages: int, flags: int = 3, **options: Any) -> GuestMemfd:
        made.append(GuestMemfd(pages * 4096, flags, **options))
        return made[-1]

    yield of
    for file in made:
        file.check()
        if not file.closed:
            file.close()
