"""Mutants of faults against invalidations, and of the kernel engine's update lock.

Origins: commits of Linux by their first twelve digits; arch/arm64/kvm/mmu.c if nothing else is said.
"""

from __future__ import annotations

from ..operators import drop_call, drop_fence, drop_operand, off_by_one, swap, weaken
from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _RETRY, _ZAP = "engines/soft/user_mem_abort.py", "stage2/retry.py", "stage2/zap.py"
_LOCK, _ANSWERS = "engines/kvm/update_lock.py", "engines/kvm/answers.py"
_KICKS, _LOOP = "engines/kvm/kicks.py", "engines/kvm/run_loop.py"

_SEQ = "    seq = invalidate_seq(mmu)\n    flux = load_acquire(vm, at.FLUX)\n"
_FIND = "    record = find(memslots, own[at.AS_ID], gfn)\n"

MUTANTS = (
    # The invalidation sequence.
    Mutant(
        "fault-retry-forgotten",
        "a fault maps what it found although an invalidation ran meanwhile",
        *(
            _FAULT,
            "    if must_retry(mmu, seq, ipa, ipa + size):\n        read_unlock",
            "    if False:\n        read_unlock",
        ),
        models=("fault", "fault-notifier", "fault-flux"),
    ),
    Mutant(
        "fault-seq-after-slots",
        "the sequence is read after the slot was looked up",
        *(_FAULT, _SEQ, "    flux = load_acquire(vm, at.FLUX)\n"),
        models=("fault", "fault-flux"),
        origin="Linux 13ec9308a857: the sequence before the mmap lock is dropped",
        also=(Mutation(_FAULT, _FIND, f"{_FIND}    seq = invalidate_seq(mmu)\n"),),
    ),
    Mutant(
        "fault-seq-after-flux",
        "the sequence is read after the ranges in flux",
        *swap(_FAULT, "stage2_fault", "seq = invalidate_seq(mmu)"),
        models=("fault-flux",),
    ),
    Mutant(
        "fault-seq-relaxed",
        "what a fault looks at may be older than the sequence that it read",
        *weaken(_RETRY, "invalidate_seq", "load_acquire"),
        models=("fault-flux",),
        memory="stale",
    ),
    Mutant(
        "invalidation-not-counted",
        "an invalidation that is over leaves the sequence as it was",
        *off_by_one(_RETRY, "invalidate_end"),
        models=("fault", "fault-flux"),
    ),
    Mutant(
        "invalidation-under-way-ignored",
        "a fault that began within an invalidation maps before its end",
        *(_RETRY, "return under_way and start <", "return False and start <"),
        models=("fault-notifier",),
    ),
    Mutant(
        "zap-no-invalidation",
        "a zap that faults do not notice",
        *(_ZAP, "    _begin(mmu, ranges, count, frames)\n", ""),
        models=("fault", "fault-flux"),
        also=(
            Mutation(
                _ZAP,
                "    _free(table, chain)\n    invalidate_end(mmu)\n",
                "    _free(table, chain)\n",
            ),
        ),
    ),
    # The update lock.
    Mutant(
        "answer-during-update",
        "a vCPU that finds an update under way answers nevertheless",
        *(
            _LOCK,
            "    if load_acquire(vm, UPDATES) & ONE == 0:\n        return True\n",
            "    if load_acquire(vm, UPDATES) != 77:\n        return True\n",
        ),
        models=("update-lock", "update-lock-2"),
    ),
    Mutant(
        "update-waits-for-nobody",
        "an update begins while an exit is answered",
        *(_LOCK, "        if answering == 0:\n            return slept\n", "        return slept\n"),
        models=("update-lock", "update-lock-2"),
    ),
    Mutant(
        "answer-fence",
        "a vCPU may look for updates before it is seen to answer",
        *drop_fence(_LOCK, "try_shared"),
        models=("update-lock",),
        origin="vcpu-requests.rst: store, then look, on two sides, needs full barriers",
    ),
    Mutant(
        "update-fence",
        "an updater may look for who answers before its update is seen",
        *drop_fence(_LOCK, "take_exclusive"),
        models=("update-lock",),
        origin="vcpu-requests.rst: store, then look, on two sides, needs full barriers",
    ),
    Mutant(
        "answered-wakes-nobody",
        "the last vCPU that answers does not tell the updater that waits",
        *drop_call(_LOCK, "give_shared", "wake"),
        models=("update-lock", "update-lock-2"),
    ),
    Mutant(
        "update-over-wakes-nobody",
        "who stepped back is not told that the update is over",
        *drop_call(_LOCK, "give_exclusive", "wake"),
        models=("update-lock", "update-lock-fetch"),
    ),
    Mutant(
        "fetch-under-way-forgotten",
        "a fetch that failed within the update in which its run began is taken for genuine",
        *drop_operand(_LOCK, "updates_since", 0, 0),
        models=("update-lock-fetch",),
    ),
    Mutant(
        "fetch-ended-forgotten",
        "a fetch that failed is taken for genuine when the update is over by then",
        *drop_operand(_LOCK, "updates_since", 0, 1),
        models=("update-lock-fetch",),
    ),
    # A pause of the kernel engine.
    Mutant(
        "kvm-pause-forgets-held-exits",
        "a vCPU that still has an exit to answer is taken for one that is outside",
        *(
            _KICKS,
            "    if state == HOLDING:\n        return whole\n",
            "    if state == HOLDING:\n        return False\n",
        ),
        models=("kvm-pause", "kvm-pause-update", "kvm-pause-2", "kvm-pause-update-2"),
    ),
    Mutant(
        "kvm-enter-fence",
        "a vCPU may look for pauses before it is seen to be inside",
        *(
            _LOOP,
            "        store_release(vm, base + at.STATE, at.IN_KVM_RUN)\n        fence()\n",
            "        store_release(vm, base + at.STATE, at.IN_KVM_RUN)\n",
        ),
        models=("kvm-pause", "kvm-pause-2"),
        origin="vcpu-requests.rst: store, then look, on two sides, needs full barriers",
    ),
    Mutant(
        "kvm-enter-into-pause",
        "a vCPU goes into the guest although a pause is in force",
        *(_LOOP, "        if paused == 0:\n", "        if paused != 77:\n"),
        models=("kvm-pause", "kvm-pause-update", "kvm-pause-2", "kvm-pause-update-2"),
    ),
    Mutant(
        "kvm-resume-wakes-nobody",
        "vCPUs that wait for the end of a pause are not told",
        *(
            _KICKS,
            "    if fetch_add(vm, PAUSED, _MINUS_ONE) == 1:\n        wake(vm, PAUSED, _EVERYBODY)\n",
            "    fetch_add(vm, PAUSED, _MINUS_ONE)\n",
        ),
        models=("kvm-pause", "kvm-pause-update", "kvm-pause-2", "kvm-pause-update-2"),
    ),
    Mutant(
        "kvm-resume-wakes-one",
        "of vCPUs that wait for the end of a pause one is told",
        *(_KICKS, "        wake(vm, PAUSED, _EVERYBODY)\n", "        wake(vm, PAUSED, ONE)\n"),
        models=("kvm-pause-2", "kvm-pause-update-2"),
    ),
    Mutant(
        "kvm-pause-waits-for-one",
        "a pause returns when the first vCPU is outside",
        *(
            _KICKS,
            "    while vcpu < vcpus:\n        looks = u64(0)\n",
            "    while vcpu < 1:\n        looks = u64(0)\n",
        ),
        models=("kvm-pause-2", "kvm-pause-update-2"),
    ),
    Mutant(
        "kvm-resume-ends-all-pauses",
        "the end of one pause is taken for the end of all",
        *(
            _KICKS,
            "    if fetch_add(vm, PAUSED, _MINUS_ONE) == 1:\n",
            "    store_release(vm, PAUSED, u64(0))\n    if True:\n",
        ),
        models=("kvm-pause-nested",),
    ),
)
