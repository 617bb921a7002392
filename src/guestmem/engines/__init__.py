"""Engines: what carries updates out. ``soft`` runs anywhere; each says what it can do."""

from __future__ import annotations

from .protocol import Capability, Counts, Engine, Update

__all__ = ["Capability", "Counts", "Engine", "Update"]
