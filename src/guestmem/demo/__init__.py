"""Demo: scenes to watch."""

from __future__ import annotations

from .bios_relocation import DEFAULT_UPDATES, DESIGNS_SHOWN, Scene, SceneRow, bios_relocation

__all__ = ["DEFAULT_UPDATES", "DESIGNS_SHOWN", "Scene", "SceneRow", "bios_relocation"]
