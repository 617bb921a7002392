"""Mutants of slots, SRCU, requests, core tokens, designs and dirty logs.

Origins: commits of Linux by their first twelve digits; ``vcpu-requests.rst`` is ``Documentation/virt/kvm/``.
"""

from __future__ import annotations

from ..operators import drop_branch, drop_call, drop_fence, drop_operand, swap, weaken
from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_SRCU, _DEFERRED = "rcu/srcu.py", "rcu/deferred.py"
_REQUESTS, _VCPU, _CORES = "engines/soft/requests.py", "engines/soft/vcpu.py", "engines/soft/cores.py"
_FLUX, _ENGINE = "engines/soft/flux.py", "engines/soft/engine.py"
_FAULT = "engines/soft/user_mem_abort.py"
_PHASES, _LOOKUP, _UPDATE = "memslots/phases.py", "memslots/lookup.py", "memslots/update.py"
_ATOMIC, _PAUSE = "designs/atomic.py", "designs/pause.py"
_BITMAP, _RING = "dirty/bitmap.py", "dirty/ring.py"

_LEFT = (
    "    from ...atomics import store_relaxed\n"
    "    store_relaxed(vm, VCPUS + VCPU * vcpu + MODE, mode)\n    acknowledge(vm)\n"
)
_ASKED = "    requested = load_acquire(vm, base + at.REQUESTED)\n    epoch = load_acquire(vm, at.LOAD)\n"
_RELEASE = "the order that Linux's rcu_assign_pointer() keeps"
_RST = "vcpu-requests.rst: why vcpu->mode and requests need barriers"

MUTANTS = (
    # SRCU and deferred free.
    Mutant(
        "srcu-enter-fence",
        "a section's loads may go before its entry is seen",
        *drop_fence(_SRCU, "srcu_enter"),
        models=("srcu", "deferred-2"),
    ),
    Mutant(
        "srcu-exit-fence",
        "an exit may look for waiters before it is seen",
        *drop_fence(_SRCU, "srcu_exit"),
        models=("srcu",),
    ),
    Mutant(
        "srcu-start-fences",
        "the look at the readers may go before what was published",
        *(_SRCU, "    fence()\n    epoch = fetch_add(srcu, base, ONE) + ONE\n    fence()\n", ""),
        models=("srcu",),
        also=(Mutation(_SRCU, "return wrapping(epoch)", "return wrapping(fetch_add(srcu, base, ONE) + ONE)"),),
    ),
    Mutant(
        "srcu-no-wait",
        "what readers may hold is destroyed before the grace period is over",
        *(_SRCU, "return srcu_wait(srcu, base, readers, srcu_start(srcu, base))", "return u64(0)"),
        models=("srcu", "memslots"),
        origin="Linux 2ee3757424be: KVM: Destroy I/O bus devices on unregister failure _after_ sync'ing SRCU",
    ),
    Mutant(
        "srcu-waits-too-little",
        "readers of the period before are not waited for",
        *(_SRCU, "if epoch != 0 and epoch < cookie:", "if epoch != 0 and epoch + ONE < cookie:"),
        models=("srcu",),
    ),
    Mutant(
        "srcu-look-before-count",
        "an exit between the look at the readers and the wait is missed",
        *swap(_SRCU, "srcu_wait_for", "exits = load_acquire(srcu, base + _EXITS"),
        models=("srcu",),
    ),
    Mutant(
        "srcu-wake-uncounted",
        "an exit wakes, but does not change the word that is waited on",
        *drop_call(_SRCU, "srcu_exit", "fetch_add"),
        models=("srcu",),
    ),
    Mutant(
        "deferred-too-early",
        "items are handed back whose grace period goes on",
        *drop_branch(_DEFERRED, "_hand_back"),
        models=("deferred", "deferred-2"),
    ),
    Mutant(
        "deferred-looks-again",
        "after a wait the readers are looked at again: one just entering keeps items from being handed back",
        *(_DEFERRED, "freed, limit, last)", "freed, limit, srcu_oldest(srcu, srcu_base, readers))"),
        models=("deferred",),
        origin="own: this project's drain until its model found it",
    ),
    # Requests, flushes, pauses.
    Mutant(
        "enter-fence",
        "a vCPU may look for requests before it is seen in the guest",
        *drop_fence(_VCPU, "enter_guest"),
        models=("flush", "pause"),
        origin=_RST,
    ),
    Mutant(
        "request-fence",
        "an updater may look at modes before its requests are seen",
        *drop_fence(_REQUESTS, "request_all"),
        models=("flush",),
        origin=_RST,
    ),
    Mutant(
        "acknowledge-fence",
        "a vCPU may look for who waits before its acknowledgement is seen",
        *drop_fence(_REQUESTS, "acknowledge"),
        models=("flush",),
    ),
    Mutant(
        "leave-not-acknowledged",
        "a vCPU that leaves the guest does not tell who waits for it",
        *drop_call(_REQUESTS, "leave_guest", "acknowledge"),
        models=("flush", "pause"),
        origin="own: the first pause protocol lost an acknowledgement",
    ),
    Mutant(
        "flush-not-done",
        "a request is acknowledged, what it asked for is not done",
        *drop_call(_VCPU, "service", "take_load"),
        models=("flush", "atomic-1", "dirty-log", "dirty-ring-log"),
    ),
    Mutant(
        "flush-not-asked",
        "vCPUs are kicked, what they are to do is not told",
        *("engines/soft/vcpu_threads.py", "        poke(self._vm, int(at.LOAD), self._epoch)\n", ""),
        models=("load-change",),
    ),
    Mutant(
        "acknowledgement-not-awaited",
        "an updater goes on while a vCPU in the guest has not flushed",
        *(_REQUESTS, "if not _holds_up(vm, vcpu, targets[vcpu]):\n                break", "break"),
        models=("flush", "dirty-log", "dirty-ring-log"),
    ),
    Mutant(
        "acknowledgement-look-before-count",
        "an acknowledgement between the look and the wait is missed",
        *swap(_REQUESTS, "wait_for_acknowledgements", "acks = load_acquire(vm, ACKS)"),
        models=("flush",),
    ),
    Mutant(
        "resume-wakes-nobody",
        "the end of a pause wakes no vCPU",
        *drop_call(_REQUESTS, "resume_all", "wake"),
        models=("pause", "pause-batch"),
    ),
    Mutant(
        "pause-not-awaited",
        "the changes of a pause begin while a vCPU is in the guest",
        *(_ENGINE, "counts.slept += patiently(wait_until_outside, self._vm, self.vcpus)", "counts.slept += 0"),
        models=("pause-batch",),
    ),
    # Core tokens.
    Mutant(
        "give-core-fence",
        "a vCPU may look for tickets before its token is seen back",
        *drop_fence(_CORES, "give_core"),
        models=("cores",),
    ),
    Mutant(
        "give-core-wakes-one",
        "the one that is woken need not be the next in line",
        *(_CORES, "wake(vm, SERVING, u64(0x7FFFFFFF))", "wake(vm, SERVING, u64(1))"),
        models=("cores-3",),
    ),
    Mutant(
        "take-core-one-too-many",
        "one vCPU more than there are cores holds a token",
        *(_CORES, "if ticket < serving + cores:", "if ticket <= serving + cores:"),
        models=("cores", "cores-2"),
    ),
    # Slots.
    Mutant(
        "invalid-is-a-hole",
        "an access that finds a slot on its way out exits instead of trying again",
        *(_FAULT, "outcome = INVALID", "outcome = HOLE"),
        models=("production-batch",),
        origin="Linux e0c378684b65: KVM: x86/mmu: Retry page faults that hit an invalid memslot",
    ),
    Mutant(
        "publish-both-order",
        "the set that is to be published last is published first",
        *(
            _PHASES,
            "    publish(memslots, desk)\n    publish(memslots, last)\n",
            "    publish(memslots, last)\n    publish(memslots, desk)\n",
        ),
        models=("memslots-both",),
    ),
    Mutant(
        "publish-both-free",
        "of two sets published in one call, free records and nodes are not handed over between their desks",
        *(_PHASES, "        other[word] = desk[word]\n", "        other[word] = other[word]\n"),
        models=("memslots-both",),
    ),
    Mutant(
        "publish-relaxed",
        "a reader may see the new set before what is in it",
        *weaken(_PHASES, "publish", "store_release"),
        models=("memslots",),
        origin=_RELEASE,
    ),
    Mutant(
        "no-grace-period",
        "the set that was active is edited while a reader is in it",
        *(_UPDATE, "slept = self.memslots.srcu.synchronize()", "slept = 0"),
        models=("cached-slot",),
    ),
    Mutant(
        "cached-slot-any-generation",
        "a remembered record is used whatever has happened since",
        *drop_operand(_LOOKUP, "find_hinted", 0, 1),
        models=("cached-slot",),
    ),
    Mutant(
        "generation-counted-once",
        "what was found in the old set is remembered with the new set's generation, which stays",
        _LOOKUP,
        "        hint[at + ONE] = seen\n",
        "        hint[at + ONE] = load_relaxed(memslots, active_set(memslots, as_id) + GENERATION)\n",
        models=("cached-slot",),
        origin="Linux ee3d1570b586: kvm: fix potentially corrupt mmio cache",
        also=(
            Mutation(_PHASES, "wrapping(old + load_relaxed(memslots, ADDRESS_SPACES))", "old"),
            Mutation(
                _PHASES,
                "old | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS",
                "wrapping(old + load_relaxed(memslots, ADDRESS_SPACES))",
            ),
        ),
    ),
    # Designs.
    Mutant(
        "atomic-no-stall",
        "nothing is put in flux, nothing flushed",
        *drop_call(_ATOMIC, "apply_with", "stall"),
        models=("atomic-1", "atomic-readonly"),
    ),
    Mutant(
        "atomic-not-acknowledged",
        "the new set is published while old translations are in use",
        *(_ATOMIC, "net_effect(), wait=wait)", "net_effect(), wait=False)"),
        models=("atomic-1",),
        origin="the designs/atomic_unacknowledged of this project",
    ),
    Mutant(
        "release-before-publish",
        "who waited finds the old set again",
        *swap(_ATOMIC, "apply_with", "update.publish()"),
        models=("atomic-1",),
    ),
    Mutant(
        "release-wakes-nobody",
        "vCPUs that wait for a range in flux are not woken",
        *drop_call(_FLUX, "flux_release", "wake"),
        models=("atomic-1",),
    ),
    Mutant(
        "flux-after-the-set",
        "the set is looked at before the ranges in flux: an update in between is missed",
        _FAULT,
        "    flux = load_acquire(vm, at.FLUX)\n    stalls_writes = False\n",
        "    srcu_enter(srcu, _ZERO, own[at.READER])\n    early = active_set(memslots, own[at.AS_ID])\n"
        "    srcu_exit(srcu, _ZERO, own[at.READER])\n    flux = load_acquire(vm, at.FLUX)\n    stalls_writes = False\n",
        models=("production-atomic",),
        also=(
            Mutation(_FAULT, "record = find(memslots, own[at.AS_ID], gfn)", "record = find_in(memslots, early, gfn)"),
            Mutation(
                _FAULT,
                "from ...memslots.lookup import find\n",
                "from ...memslots.layout import active_set\nfrom ...memslots.lookup import find_in\n",
            ),
        ),
    ),
    Mutant(
        "reads-lift-protection",
        "a read in a range that stalls writes fills a writable entry from the old set",
        *(_FAULT, "denied & NW == 0 and not stalls_writes and", "denied & NW == 0 and"),
        models=("production-readonly",),
    ),
    Mutant(
        "pause-left-out",
        "delete and create while vCPUs run: a hole between them",
        *(_PAUSE, "    engine.pause()\n    try:\n", "    engine.kick()\n    try:\n"),
        models=("pause-batch",),
        origin="KVM today; QEMU has paused vCPUs for it since 8.0 (November 2022, Emanuele Giuseppe Esposito)",
        also=(Mutation(_PAUSE, "        engine.resume()", "        pass"),),
    ),
    # Dirty logs.
    Mutant(
        "take-not-exchanged",
        "a bit that is set between the look at a word and its clearing is lost",
        _BITMAP,
        "            bits = exchange(bitmap, word, u64(0))\n",
        "            bits = load_relaxed(bitmap, word)\n            store_relaxed(bitmap, word, u64(0))\n",
        models=("dirty-log",),
    ),
    Mutant(
        "mark-not-or",
        "two writers of one word of the bitmap lose a bit",
        _BITMAP,
        "    return fetch_or(bitmap, word, bit) & bit == 0\n",
        "    store_relaxed(bitmap, word, load_relaxed(bitmap, word) | bit)\n    return True\n",
        models=("dirty-log",),
    ),
    Mutant(
        "clear-not-and",
        "a bit that is set between the look at a word and its clearing is lost, of a page that was not asked for",
        _BITMAP,
        "            mask &= fetch_and(bitmap, first + at, mask ^ _ONES)\n",
        "            was = load_relaxed(bitmap, first + at)\n"
        "            store_relaxed(bitmap, first + at, was & (mask ^ _ONES))\n"
        "            mask &= was\n",
        models=("dirty-log-clear",),
    ),
    Mutant(
        "ring-push-relaxed",
        "user space may see an entry before its offset",
        *weaken(_RING, "ring_push", "store_release"),
        models=("dirty-ring",),
        origin="Linux 8929bc965964: KVM: Use acquire/release semantics when accessing dirty ring GFN state",
    ),
    Mutant(
        "ring-harvest-relaxed",
        "user space may read an entry's offset before its flags",
        *weaken(_RING, "ring_harvest", "load_acquire"),
        models=("dirty-ring",),
        origin="Linux 8929bc965964: KVM: Use acquire/release semantics when accessing dirty ring GFN state",
    ),
    Mutant(
        "ring-reset-index-first",
        "an entry is given back before it is cleared",
        _RING,
        "        store_release(ring, entry, u64(0))\n        index = (index + ONE) & _LOW\n"
        "        store_release(ring, RESET_INDEX, index)\n",
        "        index = (index + ONE) & _LOW\n        store_release(ring, RESET_INDEX, index)\n"
        "        store_release(ring, entry, u64(0))\n",
        models=("dirty-ring",),
    ),
    Mutant(
        "ring-reset-unharvested",
        "reset gives entries back that user space has not taken",
        *(_RING, "if first & _HARVESTED == 0:", "if first == 0:"),
        models=("dirty-ring",),
    ),
    Mutant(
        "ring-reset-relaxed",
        "a reset may read an entry's offset before its flags, and write-protect another page",
        *weaken(_RING, "ring_reset", "load_acquire"),
        models=("dirty-ring",),
        origin="Linux 8929bc965964: KVM: Use acquire/release semantics when accessing dirty ring GFN state",
    ),
    Mutant(
        "ring-reset-forgets-a-neighbour",
        "of neighbours that become one run only the first is write-protected again",
        *(_RING, "                mask |= ONE << ahead\n", "                mask |= u64(0)\n"),
        models=("dirty-ring",),
    ),
    Mutant(
        "ring-reset-last-run",
        "the last pages that a reset gives back are not write-protected again",
        *(_RING, "        found += ONE\n    runs[0] = found\n", "    runs[0] = found\n"),
        models=("dirty-ring-log", "dirty-ring"),
    ),
    Mutant(
        "leave-guest-relaxed",
        "accesses through the TLB may come after the vCPU is seen outside the guest",
        *(_REQUESTS, "    store_release(vm, VCPUS + VCPU * vcpu + MODE, mode)\n    acknowledge(vm)\n", _LEFT),
        models=("dirty-log",),
        memory="stale",
    ),
    Mutant(
        "flushes-before-requested",
        "a vCPU reads which load is in force before it reads what it is asked for",
        *(_VCPU, _ASKED, "".join(reversed(_ASKED.splitlines(keepends=True)))),
        models=("flush-again",),
    ),
)
