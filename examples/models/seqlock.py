"""A seqlock: a reader that spins until it has seen a pair whole.

guestmem explore examples/models/seqlock.py
guestmem explore examples/models/seqlock.py --mutant no-fence
"""

from guestmem.explore import Model, Mutant, Scene


def build(scene: Scene) -> None:
    """Set the scene up: words, threads, and what must hold."""
    atomics = scene.room("atomics")
    seq, data = scene.words("seq", 1), scene.words("data", 2)

    def writer() -> None:
        seen = atomics.load_relaxed(seq, 0)
        atomics.store_relaxed(seq, 0, seen + 1)
        atomics.fence()  # odd before the data
        atomics.store_relaxed(data, 0, 1)
        atomics.store_relaxed(data, 1, 1)
        atomics.store_release(seq, 0, seen + 2)

    def reader() -> int:
        while True:
            seen = atomics.load_acquire(seq, 0)
            if seen & 1:
                continue
            first, second = atomics.load_relaxed(data, 0), atomics.load_relaxed(data, 1)
            atomics.fence()  # the data before the second look
            if atomics.load_relaxed(seq, 0) == seen:
                assert first == second, f"torn: {first} {second}"
                return first

    scene.thread("writer", writer)
    scene.thread("reader", reader)


MODELS = (Model("seqlock", "a reader sees a pair whole", "1 write, 1 reader that spins", build, stale=True),)
MUTANTS = (
    Mutant(
        "no-fence",
        "the data may be seen before the odd number",
        "",
        "        atomics.fence()  # odd before the data\n",
        "",
        ("seqlock",),
        memory="relaxed",
    ),
    Mutant(
        "no-second-look",
        "the reader does not look again",
        "",
        "            if atomics.load_relaxed(seq, 0) == seen:",
        "            if seen == seen:",
        ("seqlock",),
    ),
    Mutant(
        "no-acquire",
        "the data may be older than the number",
        "",
        "seen = atomics.load_acquire(seq, 0)",
        "seen = atomics.load_relaxed(seq, 0)",
        ("seqlock",),
        memory="stale",
    ),
)
