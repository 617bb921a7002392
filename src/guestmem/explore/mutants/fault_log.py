"""Mutants of the dirty log on the engine's fault path."""

from __future__ import annotations

from ..operators import drop_call
from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _LOG = "engines/soft/user_mem_abort.py", "engines/soft/dirty_log.py"
_MARK = "        _mark(memslots, own, record, gfn - base)\n"

MUTANTS = (
    Mutant(
        "log-mark-before-lock",
        "a page is marked, its bit is taken, and then its leaf lets writes through",
        *(
            _FAULT,
            "    read_lock(mmu, lock, walker)\n    if must_retry",
            f"    if logged and writable:\n{_MARK}    read_lock(mmu, lock, walker)\n    if must_retry",
        ),
        models=("fault-log",),
        origin="own: mark_page_dirty_in_slot() outside mmu_lock and before the entry",
        also=(Mutation(_FAULT, f"EBUSY below.\n{_MARK}", "EBUSY below.\n        pass\n"),),
    ),
    Mutant(
        "log-no-mark",
        "a fault makes a page writable that no log will name",
        *(_FAULT, "    if bitmap != 0 and bitmap_mark(", "    if False and bitmap_mark("),
        models=("fault-log", "fault-log-again"),
    ),
    Mutant(
        "log-no-flush",
        "the page is copied while a vCPU writes through a translation from before",
        *drop_call(_LOG, "take_and_protect", "invalidate_range"),
        models=("fault-log-again",),
        origin="own: the flush that kvm_get_dirty_log_protect() owes",
    ),
    Mutant(
        "log-no-protection",
        "pages whose bits were taken may still be written",
        *(
            _LOG,
            "    if bitmap_take(bitmap, half) != 0:\n",
            "    if bitmap_take(bitmap, half) == 77:\n",
        ),
        models=("fault-log-again",),
    ),
)
