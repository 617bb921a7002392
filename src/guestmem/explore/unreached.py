"""Why no model runs some concurrent functions, and what stands for them. A function that is not here has no reason."""

from __future__ import annotations

from .probes import Branch

__all__ = ["REASONS", "reason"]

_KERNEL = "works on what KVM_RUN came back with, and no model has a kernel; tests/engines_kvm run it on /dev/kvm"
_ALONE = "runs before any vCPU is there, or after the last one has gone: nobody is beside it"
_CHECK = "looks a structure through when nobody is at work: models call it as a property, once threads have ended"
_LOOP = "the vCPU's own loop: models run what it goes through, one access at a time, with a loop of their own"
_PKVM = "searched in tests/stage2/test_pkvm_schedules.py, whose models are in no list"
_LOCKED = (
    "under a lock for writing that excludes all others, from its first operation to its last; tests compare results"
)
_SETS = "edits a set that nobody reads; models have too few slots for nodes to fill, empty, or lie beside each other"
_READS = "reads what a reader's section holds, as the functions do that models call; tests compare results"
_LARGE = "needs a tree of more nodes than a model can have; tests compare results"
_GAP = "a gap: no model runs it, tests do, without all orders"

REASONS: dict[str, dict[str, str]] = {
    "dirty/bitmap.py": {"bitmap_fill": _ALONE, "_address": "of a host address, which models have none of"},
    "engines/kvm": {
        "map_begin": _ALONE,
        **dict.fromkeys(("host_of", "fetch", "fetch_before", "verdict_of_store", "verdict", "count_mmio"), _KERNEL),
    },
    "engines/soft/accesses.py": {"is_held": _LOOP, "note": _LOOP},
    "engines/soft/gmem_vcpu.py": {"vcpu_run": _LOOP, "host_run": _LOOP, "clear_words": _GAP},
    "engines/soft/post_copy_vcpu.py": {"stream_run": _LOOP, "post_copy_run": _LOOP, "_fetch": _GAP},
    "engines/soft/write_pass.py": {"_pass": _LOOP},
    "engines/soft/region.py": {"attach": _SETS, "attach_now": _ALONE},
    "engines/soft/stage2_vcpu.py": {"reach": _LOOP, "stage2_access": _LOOP, "stage2_vcpu_run": _LOOP},
    "engines/soft/userfault.py": {"userfault_set": _GAP},
    "engines/soft/vcpu.py": dict.fromkeys(("stay_in_reader", "end_slice", "wait_out_update"), _LOOP),
    "gmem/folio.py": dict.fromkeys(("folios_fill", "folios_split", "folios_join"), _LOCKED)
    | dict.fromkeys(("folios_present", "folios_poisoned"), _READS),
    "gmem/inode.py": {"_sum_of_entries": _CHECK},
    "gmem/pin.py": {"_forget_reference": _GAP},
    "memslots/layout.py": {"generation": _READS, "slot_as_id": _READS, "slot_id": _READS, "format_memslots": _ALONE},
    "memslots/lookup.py": {"copy_find": _READS},
    "memslots/whole.py": {"change_at_once": "calls the phases, which models run one after the other, in one go"},
    "ranges/lookup.py": {"ranges_load_many": _READS, "ranges_gap": _READS},
    "ranges/nodes.py": {"give_subtree": _LARGE},
    "ranges/store.py": {"_next_node": _LARGE},
    "stage2/flush.py": dict.fromkeys(
        ("clean_data", "flush_range"), "changes nothing: a walk, as other models have, that counts leaves"
    ),
    "stage2/free_list.py": {
        "format_free_list": _ALONE,
        "page_is_free": _CHECK,
        "cache_drain": _ALONE,
    },
    "stage2/invariants.py": {"check_tree": _CHECK},
    "stage2/pkvm/guest.py": {"set_vm_state": _GAP},
    "stage2/pkvm/host.py": {"unmap_mmio": _GAP},
    "stage2/pkvm/hyp.py": {**dict.fromkeys(("host_donate_hyp", "hyp_donate_host"), _PKVM)},
    "stage2/pkvm/invariants.py": dict.fromkeys(("check_guest", "check_host", "check_pages", "_check_away"), _CHECK),
    "stage2/pkvm/join.py": {"join_range": _PKVM},
    "stage2/pkvm/reclaim.py": {"page_owner": _GAP},
    "stage2/pool.py": {"_count_free": _CHECK, "_clear": _ALONE},
    "stage2/tlb_strict.py": {"_may_stand": _GAP},
}
"""By file or folder, and function. Those that begin with "a gap" stand for nothing."""


def reason(branch: Branch) -> str:
    """Why no model takes a branch: as far as the whole function goes; empty if none is known."""
    for place, functions in REASONS.items():
        if branch.file == place or branch.file.startswith(f"{place}/"):
            return functions.get(branch.function, "")
    return ""
