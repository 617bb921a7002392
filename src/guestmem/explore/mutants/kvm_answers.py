"""Mutants of the kernel engine's answers: what a stop keeps, what a pause waits for, marks, halves, a vCPU's owner."""

from __future__ import annotations

from ..operators import drop_statement
from . import Mutant

__all__ = ["MUTANTS"]

_ANSWERS, _LOOP, _FRAGMENTS = "engines/kvm/answers.py", "engines/kvm/run_loop.py", "engines/kvm/fragments.py"
_COMPLETED = "    if status != at.GO_ON:\n        return status\n    status = complete"

MUTANTS = (
    Mutant(
        "kvm-exit-outside",
        "a vCPU that leaves KVM_RUN with an exit to answer is outside in the eyes of a pause",
        _LOOP,
        "        leave(vm, vcpu, at.HOLDING)\n        return handle_mmio",
        "        leave(vm, vcpu, at.OUTSIDE)\n        return handle_mmio",
        models=("kvm-answers-paused",),
    ),
    Mutant(
        "kvm-stop-drops-exit",
        "a stop drops the exit that is still to be answered",
        *(_ANSWERS, "    if status != at.GO_ON:\n        own[at.PENDING] = ONE\n", "    if status != at.GO_ON:\n"),
        models=("kvm-answers-stopped",),
    ),
    Mutant(
        "kvm-hole-reported",
        "an exit is answered without a wait for the update's end: there is no slot yet",
        *(_ANSWERS, "    while not try_shared(vm):\n", "    try_shared(vm)\n    while False:\n"),
        models=("kvm-answers", "kvm-answers-stores"),
    ),
    Mutant(
        "kvm-mark-before-write",
        "the mark of an answered write is set before the write",
        _FRAGMENTS,
        "        copy_fragment(own[at.STAGED_HOST], source, size)\n"
        "    mark_answered(entries, own[at.STAGED_ENTRY], own[at.STAGED_PLACE])\n",
        "        mark_answered(entries, own[at.STAGED_ENTRY], own[at.STAGED_PLACE])\n"
        "        copy_fragment(own[at.STAGED_HOST], source, size)\n",
        models=("kvm-answers-logged",),
    ),
    Mutant(
        "kvm-halves-land-apart",
        "a store of 16 bytes lands by halves",
        *(_FRAGMENTS, "    if own[at.STAGED] == 8 and size == 8 and", "    if own[at.STAGED] == 9 and size == 8 and"),
        models=("kvm-answers-stores",),
    ),
    Mutant(
        "kvm-write-left-waiting",
        "what an instruction stored last stays where it waited",
        *drop_statement(_ANSWERS, "retry_mmio", "land(entries, own)"),
        models=("kvm-answers-stores", "kvm-answers-paused"),
    ),
    Mutant(
        "kvm-readonly-unasked",
        "a write that KVM computed from a read-only slot that is gone goes to the one that is there now",
        *(_ANSWERS, "    return not was_readonly(entries, place)\n", "    return True\n"),
        models=("kvm-answers-readonly",),
    ),
    Mutant(
        "kvm-claim-unasked",
        "a thread runs a vCPU that another one has",
        *(_LOOP, "    if claim(vm, vcpu, tid) != 0:\n        return at.TAKEN\n", "    claim(vm, vcpu, tid)\n"),
        models=("kvm-claim",),
    ),
    Mutant(
        "kvm-device-in-pause",
        "an instruction that a device has answered goes on in a pause",
        _ANSWERS,
        f"    status = take_turn(vm, own, vcpu)\n{_COMPLETED}",
        f"    status = keep_turn(vm, own)\n{_COMPLETED}",
        models=("kvm-answers-device",),
    ),
)
