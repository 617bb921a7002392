"""Engines: what carries updates out. ``soft`` runs anywhere, ``kvm`` drives ``/dev/kvm``; each says what it can do."""

from __future__ import annotations

from .protocol import Capability, Counts, Engine, MeasuredEngine, Update
from .registry import ENGINES, measured_engine

__all__ = ["ENGINES", "Capability", "Counts", "Engine", "MeasuredEngine", "Update", "measured_engine"]
