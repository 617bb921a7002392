"""Michael and Scott's queue: two enqueuers and a dequeuer, nodes by index, none used again.

guestmem explore examples/models/ms_queue.py
guestmem explore examples/models/ms_queue.py --mutant plain-link
"""

from typing import Any

from guestmem.explore import Model, Mutant, Scene

HEAD, TAIL = 0, 1
DUMMY = 1


def build(scene: Scene) -> None:
    """Set the scene up: words, threads, and what must hold."""
    atomics = scene.room("atomics")
    ends = scene.words("ends", [DUMMY, DUMMY], lambda index: ("head", "tail")[index])
    following, values = scene.words("next", 8), scene.words("value", 8)

    def enqueue(node: int, value: int) -> None:
        atomics.store_relaxed(values, node, value)
        while True:
            tail = atomics.load_acquire(ends, TAIL)
            behind = atomics.load_acquire(following, tail)
            if behind:  # somebody has linked a node and not moved the tail: help
                atomics.compare_exchange(ends, TAIL, tail, behind)
                continue
            if atomics.compare_exchange(following, tail, 0, node) == 0:
                atomics.compare_exchange(ends, TAIL, tail, node)
                return

    def dequeue() -> int:
        while True:
            head = atomics.load_acquire(ends, HEAD)
            tail = atomics.load_acquire(ends, TAIL)
            behind = atomics.load_acquire(following, head)
            if head == tail:
                if behind == 0:
                    return 0
                atomics.compare_exchange(ends, TAIL, tail, behind)
                continue
            value = atomics.load_relaxed(values, behind)
            if atomics.compare_exchange(ends, HEAD, head, behind) == head:
                assert value, "a node came out before its value was written"
                return int(value)

    def first() -> None:
        enqueue(2, 11)
        enqueue(3, 12)

    def taker() -> list[int]:
        return [dequeue(), dequeue()]

    scene.thread("enqueuer 1", first)
    scene.thread("enqueuer 2", enqueue, 4, 21)
    scene.thread("dequeuer", taker)

    def in_order(view: Any) -> None:
        came = [value for value in view.result("dequeuer") if value]
        left, node = [], view.word("next", view.word("ends", HEAD))
        while node:
            left.append(view.word("value", node))
            node = view.word("next", node)
        assert sorted(came + left) == [11, 12, 21], f"{came} came out, {left} are left"
        assert (came + left).index(11) < (came + left).index(12), f"{came} came out, {left} are left"

    scene.final("each value once, each enqueuer's in order", in_order)


MODELS = (
    Model(
        "ms-queue",
        "nothing is lost, doubled, or out of order",
        "2 enqueuers (2 + 1), 1 dequeuer (2)",
        build,
        dpor=False,
    ),
)
MUTANTS = (
    Mutant(
        "plain-link",
        "a node is linked by a store: another one's is lost",
        "",
        "if atomics.compare_exchange(following, tail, 0, node) == 0:\n",
        "if atomics.store_release(following, tail, node) is None or True:\n",
        ("ms-queue",),
    ),
    Mutant(
        "link-unchecked",
        "whether the link was made is not looked at: the node is lost",
        "",
        "if atomics.compare_exchange(following, tail, 0, node) == 0:\n",
        "if atomics.compare_exchange(following, tail, 0, node) >= 0:\n",
        ("ms-queue",),
    ),
)
