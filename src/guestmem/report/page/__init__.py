"""The page that ``guestmem check --html`` writes: one self-contained file, guest memory over time."""

from __future__ import annotations

from .render import page

__all__ = ["page"]
