"""All designs by name. A new one is a file beside this one, and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import NamedTuple

from ..engines import Capability, Engine
from ..errors import CapabilityError, UsageError
from ..memslots import Change

__all__ = ["BROKEN", "DESIGNS", "LOGS", "Design", "control", "find"]


@cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __package__)


_ANSWERS, _RETRIES = Capability.ANSWER_MMIO.value, Capability.RETRY_EXITS.value


@cache
def _difference(needs: Capability, capabilities: Capability) -> tuple[Capability, int]:
    """What is needed and missing; what can be done and is not needed. Flags are slow: once for each pair."""
    return needs & ~capabilities, (capabilities & ~needs).value


LOGS = {
    "before": "the caller takes a slot's log before the call that ends it; what vCPUs write in between is in no log",
    "stopped": "the caller takes them while no vCPU runs",
    "kept": "bits stay with pairs of frame and host page that stay; those of pairs that end are handed back",
    "partly": "the same for what the design does itself; the rest is sequential's, with the log taken before",
}
"""What can become of dirty logs."""


class Design(NamedTuple):
    """One way of applying changes: its name is that of its file, ``summary`` says in a line what it does."""

    name: str
    summary: str
    broken: bool = False
    """Whether it is wrong on purpose, to be caught by the measurements."""
    logs: str = "before"
    """What becomes of dirty logs: one of LOGS."""

    @property
    def claims_logs(self) -> bool:
        """Whether it claims that every write of a vCPU is in a log that its caller was handed."""
        return self.logs in {"stopped", "kept"}

    @property
    def keeps_logs(self) -> bool:
        """Whether what it does itself, in phases, keeps bits, and hands back those of pairs that end."""
        return self.logs in {"kept", "partly"}

    @property
    def module(self) -> ModuleType:
        """The file that carries it out: ``NEEDS``, ``prepare(engine)``, ``apply(engine, changes)``."""
        return _module(self.name)

    @property
    def needs(self) -> Capability:
        """What it needs of an engine."""
        needs: Capability = self.module.NEEDS
        return needs

    def refuse_unless_able(self, engine: Engine) -> None:
        """CapabilityError, in one line, if ``engine`` cannot do what this design needs."""
        missing, _ = _difference(self.needs, engine.capabilities)
        if missing:
            raise CapabilityError(f"design {self.name}: engine {engine.name} cannot {missing.name}")

    def prepare(self, engine: Engine, *, reset: bool = True) -> Callable[[Engine, Sequence[Change]], None]:
        """Set the engine up for this design; returns its ``apply``. CapabilityError if the engine cannot do it.

        What another design has set up is undone. Not so without ``reset``: an exit of a running vCPU may still belong
        to an update of that design.
        """
        self.refuse_unless_able(engine)
        if reset:
            _, spare = _difference(self.needs, engine.capabilities)
            if spare & _ANSWERS:
                engine.answer_mmio(False)
            if spare & _RETRIES:
                engine.retry_exits(False)
        self.module.prepare(engine)
        apply: Callable[[Engine, Sequence[Change]], None] = self.module.apply
        return apply


DESIGNS = (
    Design("sequential", "one call a change: KVM today"),
    Design("sequential_answered", "the same, and the VMM answers MMIO that falls into a hole"),
    Design("pause", "stop all vCPUs, then sequential", logs="stopped"),
    Design("pause_if_overlap", "stop them only if a removed range overlaps an added one: QEMU since 8.0"),
    Design("exit_retry", "nobody is stopped; exits that fall into the update are carried out after it"),
    Design("mmio_retry", "a fetch that fails in the update is run again after it; data accesses are not"),
    Design("batch", "invalidate all, swap, apply all, swap: the 2022 RFC"),
    Design("user_exit", "what goes is flagged: who touches it exits, and is held until all is applied"),
    Design("kick_all", "block all vCPUs in the kernel, apply all as one batch, let them go on", logs="kept"),
    Design("replace_all", "all slots are replaced by a new list: every translation goes"),
    Design(
        "primitives", "split, merge, grow, truncate, toggle read-only in one call each; else sequential", logs="partly"
    ),
    Design("resize_notify", "a slot is resized in place; else sequential", logs="partly"),
    Design("overlay", "single frames are shown other memory above the slots, 64 at most; else sequential"),
    Design("attributes", "rights (NR, NW, NX) are taken and given above the slots; else sequential", logs="partly"),
    Design("atomic", "one instant for all changes; only vCPUs that touch them wait", logs="kept"),
    Design("atomic_unacknowledged", "atomic without the wait for acknowledgements", broken=True, logs="kept"),
)
"""In the order in which tables show them."""
_BY_NAME = {design.name: design for design in DESIGNS}

BROKEN = "atomic_unacknowledged"
"""The design that every measurement has to catch; on an engine that cannot do it, ``sequential``."""


def control(engine: Engine) -> Design:
    """The design that a measurement on ``engine`` has to catch, or its zeros mean nothing."""
    broken = find(BROKEN)
    return find("sequential") if broken.needs & ~engine.capabilities else broken


def find(name: str) -> Design:
    """The design called ``name``; UsageError lists them.

    >>> find("atomic").summary
    'one instant for all changes; only vCPUs that touch them wait'
    """
    design = _BY_NAME.get(name) if isinstance(name, str) else None
    if design is None:
        given = name if isinstance(name, str) else type(name).__name__
        raise UsageError(f"design: {given!r} is not one of {', '.join(_BY_NAME)}")
    return design
