"""Mutants of what changes whose a page is under pKVM while the host faults on it."""

from __future__ import annotations

from ..operators import drop_call
from . import Mutant

__all__ = ["MUTANTS"]

_RECLAIM, _HYP = "stage2/pkvm/reclaim.py", "stage2/pkvm/hyp.py"
_SHARE = """    status = _checked(shape, el2, page, count, OWNED, NOPAGE)
    if status == OK:
        _set_states(shape, el2, page, count, SHARED_OWNED, SHARED_BORROWED)
"""

MUTANTS = (
    Mutant(
        "pkvm-reclaim-not-returned",
        "a page that is taken back from a dying guest stays nobody's",
        *drop_call(_RECLAIM, "host_reclaim_guest", "_return_page"),
        models=("stage2-reclaim",),
    ),
    Mutant(
        "pkvm-reclaim-still-mapped",
        "a guest keeps its mapping of a page that is taken back from it",
        *drop_call(_RECLAIM, "force_reclaim", "annotate_range"),
        models=("stage2-reclaim-force",),
    ),
    Mutant(
        "pkvm-guest-share-unsaid",
        "a guest's page that the host may use has not that state",
        *drop_call("stage2/pkvm/transitions.py", "guest_share_host", "set_host_state"),
        models=("stage2-guest-share",),
    ),
    Mutant(
        "pkvm-share-hyp-unlocked",
        "pages are shared with the hypervisor without the host's lock",
        _HYP,
        f"    write_lock(host, lock, load_relaxed(host, VCPUS))\n{_SHARE}    write_unlock(host, lock)\n",
        _SHARE,
        models=("stage2-share-hyp",),
    ),
)
