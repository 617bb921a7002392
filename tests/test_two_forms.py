"""One source, two forms: every compiled function keeps the rules that make them one, and the lint catches breaches."""

from __future__ import annotations

import pytest

from two_forms import Package, package, sources

TEXTS = sources()
PACKAGE = package()

HEAD = """
from .atomics import address_of, fetch_add, load_acquire, load_relaxed, store_release, wait, wake
from .compiled import Own, U64, Words, compiled, const, u64, wrapping
_ONE = const(1)
"""

BAD = {
    "subscript of shared words": (
        "plain use of w, which is Words",
        """
def f(w: Words, i: U64) -> U64:
    return w[i]
""",
    ),
    "store to shared words": (
        "plain use of w, which is Words",
        """
def f(w: Words, i: U64) -> None:
    w[i] = u64(0)
""",
    ),
    "another name for shared words": (
        "plain use of w, which is Words",
        """
def f(w: Words, i: U64) -> U64:
    v = w
    return load_relaxed(v, i)
""",
    ),
    "shared words in a place for own words": (
        "plain use of w, which is Words",
        """
def g(w: Own, i: U64) -> U64:
    return w[i]
@compiled
def f(w: Words, i: U64) -> U64:
    return g(w, i)
""",
    ),
    "own words in a place for shared words": (
        "plain use of w, which is Own",
        """
def f(w: Own, i: U64) -> U64:
    return load_relaxed(w, i)
""",
    ),
    "length of own words": (
        "plain use of w, which is Own",
        """
def f(w: Own) -> bool:
    return len(w) > 5
""",
    ),
    "length of shared words": (
        "plain use of w, which is Words",
        """
def f(w: Words) -> U64:
    return u64(len(w))
""",
    ),
    "recursion": (
        "f: recursion",
        """
def f(w: Words, i: U64) -> U64:
    return f(w, i)
""",
    ),
    "mutual recursion": (
        "g: recursion",
        """
def f(w: Words, i: U64) -> U64:
    return g(w, i)
@compiled
def g(w: Words, i: U64) -> U64:
    return f(w, i)
""",
    ),
    "never below 0": (
        "never below 0",
        """
def f(i: U64) -> bool:
    return i >= 0
""",
    ),
    "never below 0, the other way round": (
        "never below 0",
        """
def f(i: U64) -> bool:
    return u64(0) > i
""",
    ),
    "literal in a sum": (
        "literal 1 outside",
        """
def f(i: U64) -> U64:
    return i + 1
""",
    ),
    "literal in an assignment": (
        "literal 0 outside",
        """
def f(i: U64) -> U64:
    s = 0
    return s
""",
    ),
    "literal as an argument": (
        "literal 0 outside",
        """
def f(w: Words) -> None:
    store_release(w, 0, u64(1))
""",
    ),
    "literal left of a shift": (
        "literal 1 outside",
        """
def f(i: U64) -> U64:
    return 1 << i
""",
    ),
    "float": (
        "0.5 is no word",
        """
def f(i: U64) -> U64:
    return u64(i * 0.5)
""",
    ),
    "division": (
        "/ is a float",
        """
def f(i: U64, j: U64) -> U64:
    return u64(i / j)
""",
    ),
    "negative": (
        "a negative word",
        """
def f(i: U64) -> U64:
    return wrapping(-i)
""",
    ),
    "shift by 64": (
        "shift by 64",
        """
def f(i: U64) -> U64:
    return i << 64
""",
    ),
    "spin in the test": (
        "a bare spin",
        """
def f(w: Words, i: U64) -> None:
    while load_acquire(w, i) != 0:
        pass
""",
    ),
    "spin in the body": (
        "a bare spin",
        """
def f(w: Words, i: U64) -> U64:
    seen = load_acquire(w, i)
    while seen != 0:
        seen = load_acquire(w, i)
    return seen
""",
    ),
    "spin that only counts": (
        "a bare spin",
        """
def f(w: Words, i: U64) -> U64:
    n = u64(0)
    while True:
        if load_acquire(w, i) != 0:
            break
        n += _ONE
    return n
""",
    ),
    "spin through a callee": (
        "a bare spin",
        """
def g(w: Words) -> bool:
    return load_relaxed(w, _ONE) != 0
@compiled
def f(w: Words) -> None:
    while not g(w):
        pass
""",
    ),
    "spin inside a loop that waits": (
        "a bare spin",
        """
def f(w: Words, i: U64) -> None:
    while True:
        while load_acquire(w, i) != 0:
            pass
        wait(w, i, _ONE)
""",
    ),
    "waits with the GIL": (
        "holds the GIL",
        """
def f(w: Words, i: U64) -> None:
    wait(w, i, _ONE)
""",
    ),
    "raises": (
        "raise",
        """
def f(i: U64) -> None:
    raise ValueError
""",
    ),
    "allocates": (
        "a list",
        """
def f(i: U64) -> U64:
    return max([i])
""",
    ),
    "unknown function": (
        "calls abs",
        """
def f(i: U64) -> U64:
    return abs(i)
""",
    ),
    "keyword argument": (
        "go by position",
        """
def f(w: Words, i: U64) -> U64:
    return load_relaxed(w, index=i)
""",
    ),
    "plain use of what a bundle is taken apart into": (
        "plain use of w, which is Words",
        """
class Pair(NamedTuple):
    w: Words
    o: Own
@compiled
def f(pair: Pair) -> U64:
    w, o = pair
    return w[0] + o[0]
""",
    ),
    "a bundle is taken apart in another order": (
        "plain use of w, which is Own",
        """
class Pair(NamedTuple):
    w: Words
    o: Own
@compiled
def f(pair: Pair) -> U64:
    o, w = pair
    return load_relaxed(w, u64(0))
""",
    ),
    "plain use of a field of a bundle": (
        "plain use of w, which is Words",
        """
class Pair(NamedTuple):
    w: Words
    o: Own
@compiled
def f(pair: Pair) -> U64:
    w, o = pair.w, pair.o
    return w[0] + o[0]
""",
    ),
    "nested": (
        "not at the top of the module",
        """
def f(i: U64) -> U64:
    @compiled
    def g(i: U64) -> U64:
        return i
    return g(i)
""",
    ),
}
"""Breach: what the lint says, and a sample."""

GOOD = {
    "scan": """
def f(w: Words, n: U64) -> bool:
    i = u64(0)
    while i < n:
        if load_acquire(w, i) != 0:
            return False
        i += _ONE
    return True
""",
    "binary search": """
def f(w: Words, n: U64, x: U64) -> U64:
    low = u64(0)
    high = n
    while low < high:
        middle = (low + high) >> 1
        if load_relaxed(w, middle) <= x:
            low = middle + _ONE
        else:
            high = middle
    return low
""",
    "walk of a list": """
def f(w: Words, x: U64) -> U64:
    while x != 0:
        x = load_acquire(w, x + _ONE)
    return x
""",
    "compare and exchange until it works": """
def f(w: Words, i: U64) -> None:
    while fetch_add(w, i, _ONE) != 7:
        pass
""",
    "cursor in own words": """
def g(w: Words, o: Own) -> U64:
    o[0] += _ONE
    return load_relaxed(w, o[0])
@compiled
def f(w: Words, o: Own) -> None:
    while True:
        if g(w, o) == 0:
            break
""",
    "a bundle taken apart": """
class Pair(NamedTuple):
    w: Words
    o: Own
@compiled
def f(pair: Pair) -> U64:
    w, o = pair
    o[0] = load_relaxed(w, u64(0))
    return o[0]
""",
    "fields of a bundle": """
class Pair(NamedTuple):
    w: Words
    o: Own
@compiled
def f(pair: Pair) -> U64:
    o = pair.o
    o[0] = load_relaxed(pair.w, u64(0))
    return o[0]
""",
    "own words": """
def f(o: Own, i: U64) -> U64:
    o[0] = max(o[i], u64(3) & ~_ONE)
    return o[i] + u64(len(o))
""",
}


def violations(body: str, decorator: str = "@compiled") -> list[str]:
    texts = {path: TEXTS[path] for path in ("atomics.py", "compiled.py", "clock.py")}
    return Package({**texts, "sample.py": f"{HEAD}\n{decorator}{body}"}).violations("sample.py")


@pytest.mark.parametrize("path", sorted({function.path for function in PACKAGE.compiled()}))
def test_every_compiled_function_keeps_the_rules(path: str) -> None:
    assert PACKAGE.violations(path) == []


@pytest.mark.parametrize("breach", BAD)
def test_the_lint_catches(breach: str) -> None:
    message, sample = BAD[breach]
    found = violations(sample)
    assert any(message in each for each in found), found


@pytest.mark.parametrize("sample", GOOD)
def test_the_lint_allows(sample: str) -> None:
    assert violations(GOOD[sample]) == []


def test_a_waiting_function_without_the_gil_is_allowed() -> None:
    assert violations(BAD["waits with the GIL"][1], "@compiled(nogil=True)") == []


def test_the_lint_sees_the_package() -> None:
    names = {function.name for function in PACKAGE.compiled()}
    assert {"peek", "srcu_enter", "srcu_wait", "reclaim"} <= names
