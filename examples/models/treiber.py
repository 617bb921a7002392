"""A Treiber stack of three nodes, and what becomes of it without a tag in its head (ABA).

guestmem explore examples/models/treiber.py              # clean, under every memory model
guestmem explore examples/models/treiber.py --mutants    # its mistakes are found
guestmem explore examples/models/treiber.py --mutant no-tag
"""

from guestmem.explore import Model, Mutant, Scene, View


def build(scene: Scene) -> None:
    """Set the scene up: words, threads, and what must hold."""
    atomics = scene.room("atomics")
    head = scene.words("head", [1])  # tag << 8 | node
    after = scene.words("next", [0, 2, 3, 0])  # 1 -> 2 -> 3
    owner = scene.words("owner", 4)  # who has popped a node; 0: it is in the stack

    def tagged(seen: int, node: int) -> int:
        return ((seen >> 8) + 1) << 8 | node

    def pop(me: int) -> int:
        while True:
            seen = atomics.load_acquire(head, 0)
            node = seen & 255
            if not node:
                return 0
            then = atomics.load_relaxed(after, node)
            if atomics.compare_exchange(head, 0, seen, tagged(seen, then)) == seen:
                assert atomics.exchange(owner, node, me) == 0, f"node {node} popped by two"
                return node

    def push(node: int) -> None:
        atomics.store_relaxed(owner, node, 0)
        while True:
            seen = atomics.load_acquire(head, 0)
            atomics.store_relaxed(after, node, seen & 255)
            if atomics.compare_exchange(head, 0, seen, tagged(seen, node)) == seen:
                return

    def first() -> int:
        return pop(1)

    def second() -> int:
        a, b = pop(2), pop(2)
        if a:
            push(a)
        return b

    scene.thread("first", first)
    scene.thread("second", second)

    def disjoint(view: View) -> None:
        node, seen = view.word("head", 0) & 255, []
        while node:
            assert node not in seen, "a cycle"
            assert view.word("owner", node) == 0, f"node {node} is in the stack, and {view.word('owner', node)} has it"
            seen.append(node)
            node = view.word("next", node)

    scene.final("stack and owners are disjoint", disjoint)


MODELS = (Model("treiber", "no node is popped twice", "2 threads, 3 nodes", build, stale=True),)
MUTANTS = (
    Mutant(
        "no-tag",
        "the head has no tag: ABA",
        "",
        "        return ((seen >> 8) + 1) << 8 | node",
        "        return node",
        ("treiber",),
    ),
    Mutant(
        "owned-late",
        "a node is given back after it can be popped",
        "",
        "        atomics.store_relaxed(owner, node, 0)\n        while True:",
        "        while True:",
        ("treiber",),
    ),
)
