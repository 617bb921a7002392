"""gfn_to_pfn_cache against an MMU notifier that frees the page: when a refresh has to be tried again.

The idea of virt/kvm/pfncache.c in Linux: a refresh looks the page up without the lock, then asks whether an
invalidation is under way (a count) or was over since it began (a sequence number). Both looks are needed.

guestmem explore examples/models/pfncache.py
guestmem explore examples/models/pfncache.py --mutant no-count
"""

from guestmem.explore import Model, Mutant, Scene

VALID, PFN = 0, 1
COUNT, SEQ = 0, 1
FREED, OLD, NEW = 0, 1, 2
TRIES = 2


def build(scene: Scene) -> None:
    """Set the scene up: words, threads, and what must hold."""
    atomics = scene.room("atomics")
    locks = scene.words("lock", 3, lambda index: ("cache", "notifiers", "mmu_lock")[index])
    cache = scene.words("cache", 2, lambda index: ("valid", "pfn")[index])
    kvm = scene.words("kvm", 2, lambda index: ("invalidations under way", "invalidate seq")[index])
    pte = scene.words("pte", [OLD])
    pages = scene.words("page", [FREED, 1, 1])

    def must_retry(seq: int) -> bool:
        if atomics.load_relaxed(kvm, COUNT):
            return True
        atomics.fence()  # the count before the number
        return bool(atomics.load_relaxed(kvm, SEQ) != seq)

    def refresh() -> bool:
        scene.lock(locks, 0)
        atomics.store_relaxed(cache, VALID, 0)
        seq = atomics.load_relaxed(kvm, SEQ)
        atomics.fence()  # the number before the page is looked up
        scene.unlock(locks, 0)
        pfn = atomics.load_relaxed(pte, 0)
        scene.lock(locks, 0)
        again = pfn == 0 or must_retry(seq)
        if not again:
            atomics.store_relaxed(cache, PFN, pfn)
            atomics.store_relaxed(cache, VALID, 1)
        scene.unlock(locks, 0)
        return not again

    def user() -> None:
        for _ in range(TRIES):
            if refresh():
                scene.lock(locks, 0)
                if atomics.load_relaxed(cache, VALID):
                    assert atomics.load_relaxed(pages, atomics.load_relaxed(cache, PFN)) != FREED, (
                        "a freed page is used"
                    )
                scene.unlock(locks, 0)
                return

    def notifier() -> None:
        scene.lock(locks, 1)
        atomics.store_relaxed(kvm, COUNT, atomics.load_relaxed(kvm, COUNT) + 1)
        scene.unlock(locks, 1)
        scene.lock(locks, 0)
        if atomics.load_relaxed(cache, VALID):
            atomics.store_relaxed(cache, VALID, 0)
        scene.unlock(locks, 0)
        atomics.store_release(pte, 0, 0)
        atomics.fence()
        atomics.store_relaxed(pages, OLD, FREED)
        atomics.store_release(pte, 0, NEW)
        scene.lock(locks, 2)
        atomics.store_relaxed(kvm, SEQ, atomics.load_relaxed(kvm, SEQ) + 1)
        atomics.fence()  # the number before the count
        scene.unlock(locks, 2)
        scene.lock(locks, 1)
        atomics.store_relaxed(kvm, COUNT, atomics.load_relaxed(kvm, COUNT) - 1)
        scene.unlock(locks, 1)

    scene.thread("user", user)
    scene.thread("notifier", notifier)


_SIZE = f"1 refresh and use ({TRIES} tries), 1 invalidation"
MODELS = (Model("pfncache", "no page is used once its invalidation has freed it", _SIZE, build, stale=True),)
MUTANTS = (
    Mutant(
        "no-count",
        "a refresh does not see an invalidation under way",
        "",
        "        if atomics.load_relaxed(kvm, COUNT):\n            return True\n",
        "",
        ("pfncache",),
    ),
    Mutant(
        "no-seq",
        "a refresh does not see that an invalidation came and went",
        "",
        "        return bool(atomics.load_relaxed(kvm, SEQ) != seq)\n",
        "        return False\n",
        ("pfncache",),
    ),
)
