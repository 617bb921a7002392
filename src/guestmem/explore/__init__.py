"""Explore: deterministic schedules over the very functions that run; so far, the twin import."""

from __future__ import annotations

from .twin import Mutation, Twin, load

__all__ = ["Mutation", "Twin", "load"]
