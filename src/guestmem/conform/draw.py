"""Sequences of calls, drawn by Hypothesis' stateful testing: a VM an example, a burst of calls a step.

Each step of a ``RuleBasedStateMachine`` costs some milliseconds, however little it draws; so a rule draws as many calls
as go into 512 bytes, and is about one thing: any calls, memory, one kind of call, a log and those who write into it.
Hypothesis leaves rules out at random (swarm testing), so that VMs differ in what happens to them, too.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..abi.structures import MemoryCap
from ..errors import CapabilityError
from .calls import ARENA, CALL_BYTES, CAP_ARGUMENTS, ODD_GPAS, ODD_HVAS, PROLOGUES, RANGES, Call, decode

__all__ = ["BURST_CALLS", "STEPS", "drawn"]

BURST_CALLS = 64
STEPS = 7
"""Bursts a VM, at most."""
_ALL = tuple(RANGES)
_MEMORY = ("region", "region", "region2", "write", "write2", "read", "get_log", "clear_log")
_BITMAPS = ("region", "write", "write2", "write", "read", "get_log", "clear_log", "clear_log")
_RINGS = ("region", "write", "write2", "write", "read", "harvest", "harvest2", "harvest", "reset", "reset")
_FILES = ("guest_memfd", "region2", "region2", "region2", "region2", "region2", "region", "get_log")
_WIDE = Call("region", (6, 1, 9 << 20, 0x100000, ARENA + 0xC00000))
"""Has more pages than a ring of a page has entries."""
_ODD_PLACE = 13 << 20
_RING_CAPS = (MemoryCap.DIRTY_LOG_RING, MemoryCap.DIRTY_LOG_RING_ACQ_REL)
_FEW = ("region", "region2", "get_log", "clear_log", "cap", "cap", "guest_memfd", "extension", "vcpu", "bad_pointer")
_FEW_CALLS = 8
_BACKEND = "guestmem-conform"


def _calls(block: bytes, kinds: tuple[str, ...]) -> Iterator[Call]:
    """The calls of a burst, all of ``kinds``: which of them, the first byte of each says."""
    for at in range(0, len(block), CALL_BYTES):
        first = block[at]
        if first and kinds is not _ALL:
            range_ = RANGES[kinds[first % len(kinds)]]
            first = range_[first // len(kinds) % len(range_)]
        call = decode(bytes([first]) + block[at + 1 : at + CALL_BYTES])
        if call is not None:
            yield call


def _machine(vms: list[list[Call]], pressed: Callable[[], bool]) -> Any:
    """The state machine, which appends to ``vms`` the calls of each of its runs."""
    from hypothesis import stateful, strategies

    many = strategies.binary(min_size=CALL_BYTES * BURST_CALLS, max_size=CALL_BYTES * BURST_CALLS)
    few = strategies.binary(min_size=CALL_BYTES * _FEW_CALLS, max_size=CALL_BYTES * _FEW_CALLS)

    class Sequence(stateful.RuleBasedStateMachine):
        """One VM. What it is decides which bursts there can be."""

        def __init__(self) -> None:
            if pressed():
                raise KeyboardInterrupt
            super().__init__()
            self.calls: list[Call] = []
            self.rings = self.home = self.second = False
            vms.append(self.calls)

        @stateful.initialize(begin=strategies.sampled_from(PROLOGUES))
        def begin(self, begin: tuple[Call, ...]) -> None:
            self.calls += begin
            self.home = Call("home") in begin
            self.second = Call("second") in begin
            self.rings = any(call.kind == "cap" and call.args[0] in _RING_CAPS for call in begin)

        @stateful.rule(burst=many)
        def anything(self, burst: bytes) -> None:
            self.calls += _calls(burst, _ALL)

        @stateful.rule(burst=many)
        def memory(self, burst: bytes) -> None:
            self.calls += _calls(burst, _MEMORY)

        @stateful.rule(burst=few)
        def files(self, burst: bytes) -> None:
            self.calls += _calls(burst, _FILES)

        @stateful.rule(burst=few, kind=strategies.sampled_from(_FEW))
        def one_kind(self, burst: bytes, kind: str) -> None:
            self.calls += _calls(burst, (kind,))

        @stateful.precondition(lambda self: self.home and not self.rings)
        @stateful.rule(burst=many)
        def bitmaps(self, burst: bytes) -> None:
            self.calls += _calls(burst, _BITMAPS)

        @stateful.precondition(lambda self: self.rings)
        @stateful.rule(burst=many)
        def rings_(self, burst: bytes) -> None:
            self.calls += _calls(burst, _RINGS)

        @stateful.rule(size=strategies.sampled_from(CAP_ARGUMENTS))
        def ring_size(self, size: int) -> None:
            self.calls.append(Call("cap", (int(MemoryCap.DIRTY_LOG_RING), 0, size)))

        @stateful.rule(gpa=strategies.sampled_from(ODD_GPAS), size=strategies.sampled_from((0x1000, 0x2000)))
        def odd_frames(self, gpa: int, size: int) -> None:
            region = (5, 0, gpa, size, ARENA)
            self.calls += [Call("region", region), Call("region2", (*region, 0, 0, 1))]

        @stateful.precondition(lambda self: self.home)
        @stateful.rule(hva=strategies.sampled_from(ODD_HVAS), touch=strategies.sampled_from(("write", "read")))
        def odd_memory(self, hva: int, touch: str) -> None:
            self.calls += [Call("region", (0, 0, _ODD_PLACE, 0x1000, hva)), Call(touch, (_ODD_PLACE, 1))]

        @stateful.precondition(lambda self: self.rings)
        @stateful.rule(page=strategies.integers(0, 55), give_back=strategies.booleans())
        def fill(self, page: int, give_back: bool) -> None:
            who = "2" * self.second  # fill_both has the first's
            self.calls += [_WIDE, Call(f"write{who}", (_WIDE.args[2] + (page << 12), 200)), Call(f"harvest{who}")]
            self.calls += [Call("reset")] * give_back

        @stateful.precondition(lambda self: self.rings and self.second)
        @stateful.rule(page=strategies.integers(0, 55), second=strategies.integers(0, 255))
        def fill_both(self, page: int, second: int) -> None:
            """Two rings of one VM: one full, the other with what the first did not write."""
            at = _WIDE.args[2]
            self.calls += [_WIDE, Call("write", (at + (page << 12), 200)), Call("write2", (at + (second << 12), 1))]
            self.calls += [Call("harvest"), Call("harvest2"), Call("reset")]

    return Sequence


@functools.cache
def _backend() -> str:
    """Name of a backend of Hypothesis that draws no constants of the modules that happen to be loaded.

    Its own does so, now and then, from all that are not installed as packages (``constants_ast.py``), so what a seed
    gave depended on what else was imported. Source: "Alternative backends for Hypothesis", in its documentation.
    """
    from hypothesis.internal.conjecture import providers

    class Seeded(providers.HypothesisProvider):
        """Hypothesis' own, but for constants."""

        def _maybe_draw_constant(self, *_choice: Any, **_how: Any) -> None:
            return None

    providers.AVAILABLE_PROVIDERS[_BACKEND] = Seeded
    return _BACKEND


def drawn(seed: int, count: int, pressed: Callable[[], bool] = lambda: False) -> list[list[Call]]:
    """Some ``count`` sequences, which ``seed`` and Hypothesis' version decide; CapabilityError without Hypothesis.

    KeyboardInterrupt, between two of them, once ``pressed()``: a handler that raises anywhere may do so in a callback
    of the garbage collector, of which Hypothesis has one, and there Python prints the exception and goes on.
    """
    try:
        import hypothesis
        from hypothesis import configuration, stateful
    except ImportError:
        raise CapabilityError("conform: Hypothesis is not installed; pip install 'guestmem[conform]'") from None
    vms: list[list[Call]] = []
    settings = hypothesis.settings(
        backend=_backend(),
        max_examples=count,
        stateful_step_count=STEPS,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    seeded: Callable[[Any], Any] = hypothesis.seed(seed)
    with tempfile.TemporaryDirectory() as directory:  # else Hypothesis leaves one where conform is run
        configuration.set_hypothesis_home_dir(Path(directory))
        try:
            stateful.run_state_machine_as_test(seeded(_machine(vms, pressed)), settings=settings)
        finally:
            configuration.set_hypothesis_home_dir(None)
    return [calls for calls in vms if calls]
