"""Engines by name, for those who are told one: ``guestmem compare --engine``, ``guestmem demo --engine``."""

from __future__ import annotations

import importlib

from ..errors import UsageError
from .protocol import MeasuredEngine

__all__ = ["ENGINES", "measured_engine"]

ENGINES = {"soft": ("soft", "SoftEngine"), "kvm": ("kvm.load_engine", "KvmLoadEngine")}
"""Name: module below this package, class."""


def measured_engine(
    name: str,
    vcpus: int,
    *,
    cores: int | None = None,
    address_spaces: int = 1,
    arch: str = "x86",
    slow_vcpu_ns: int = 0,
    seed: int = 1,
) -> MeasuredEngine:
    """A fresh engine with ``vcpus`` vCPUs. UsageError for an unknown name; CapabilityError where it cannot run."""
    if name not in ENGINES:
        raise UsageError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    module, kind = ENGINES[name]
    made: MeasuredEngine = getattr(importlib.import_module(f".{module}", __package__), kind)(
        vcpus, cores=cores, address_spaces=address_spaces, arch=arch, slow_vcpu_ns=slow_vcpu_ns, seed=seed
    )
    return made
