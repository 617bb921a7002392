"""Mutations by operation: what is done to which function, found in its syntax tree.

So a comment, a longer line or another statement beside it does not break a mutant.

Each operator returns what ``Mutant`` takes as ``file``, ``old``, ``new``: the whole text of the function before and
after. ``n`` counts from 0, in the order of the text. UsageError if there is no such place.

>>> file, old, new = weaken("memslots/phases.py", "publish", "store_release")
>>> [line.strip() for line in new.splitlines() if line not in old.splitlines()]
['store_relaxed(memslots, desk[SPACE], edited)']
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from ..errors import UsageError

__all__ = [
    "always",
    "drop_branch",
    "drop_call",
    "drop_fence",
    "drop_operand",
    "drop_statement",
    "never",
    "off_by_one",
    "other_bound",
    "skip",
    "swap",
    "swap_at",
    "weaken",
]

Texts = tuple[str, str, str]
_PACKAGE = Path(__file__).parents[1]
_WEAKER = {
    "store_release": "store_relaxed",
    "load_acquire": "load_relaxed",
    "host_load_acquire": "host_load",
    "host_store_release": "host_store",
}


@cache
def _tree(file: str, changed: int) -> tuple[bytes, ast.Module]:
    del changed
    text = (_PACKAGE / file).read_bytes()
    return text, ast.parse(text)


class _Function:
    """A function's text and tree; ``replaced`` gives both texts for an edit of some of its nodes."""

    def __init__(self, file: str, name: str) -> None:
        self.file, self.name = file, name
        self.text, tree = _tree(file, (_PACKAGE / file).stat().st_mtime_ns)
        self._lines = [0]
        for line in self.text.split(b"\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)
        *where, last = name.split(".")
        body: list[ast.stmt] = tree.body
        for part in where:
            body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part)
        found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == last]
        if len(found) != 1:
            raise UsageError(f"mutation: {file} has {len(found)} functions {name}")
        self.node = found[0]

    def place(self, nodes: Iterator[ast.AST], n: int, what: str) -> ast.AST:
        """The ``n``th of some nodes."""
        for found in nodes:
            if n == 0:
                return found
            n -= 1
        raise UsageError(f"mutation: {self.file}: {self.name} has no such {what}")

    def nodes(self) -> Iterator[ast.AST]:
        """All nodes, in the order of the text."""
        found = [node for node in ast.walk(self.node) if hasattr(node, "lineno") and node is not self.node]
        return iter(sorted(found, key=self._place))

    def _place(self, node: ast.AST) -> tuple[int, int]:
        start, end = self.span(node)
        return start, -end

    def blocks(self) -> Iterator[list[ast.stmt]]:
        """All lists of statements."""
        for node in ast.walk(self.node):
            for name in ("body", "orelse", "finalbody"):
                if isinstance(block := getattr(node, name, None), list) and block:
                    yield block

    def span(self, first: ast.AST, last: ast.AST | None = None) -> tuple[int, int]:
        """Bytes of a node, or from one to another."""
        end = last or first
        return (
            self._lines[first.lineno - 1] + first.col_offset,  # type: ignore[attr-defined]
            self._lines[end.end_lineno - 1] + end.end_col_offset,  # type: ignore[attr-defined]
        )

    def of(self, node: ast.AST) -> bytes:
        """A node's text."""
        start, end = self.span(node)
        return self.text[start:end]

    def replaced(self, *edits: tuple[tuple[int, int], bytes]) -> Texts:
        """File, the function's text, and that text with each span replaced."""
        start, end = self.span(self.node)
        new, at = b"", start
        for (first, last), text in sorted(edits):
            new += self.text[at:first] + text
            at = last
        return self.file, self.text[start:end].decode(), (new + self.text[at:end]).decode()

    def without(self, statement: ast.stmt) -> Texts:
        """The function without a statement."""
        return self.replaced((self.span(statement), b"pass"))


def _calls(function: _Function, callee: str) -> Iterator[ast.AST]:
    for node in function.nodes():
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == callee:
            yield node


def drop_call(file: str, name: str, callee: str, n: int = 0) -> Texts:
    """The ``n``th statement that is nothing but a call of ``callee`` is not carried out."""
    function = _Function(file, name)
    calls = {id(call) for call in _calls(function, callee)}
    found = (node for node in function.nodes() if isinstance(node, ast.Expr) and id(node.value) in calls)
    statement = function.place(found, n, f"statement {callee}()")
    assert isinstance(statement, ast.stmt)
    return function.without(statement)


def drop_fence(file: str, name: str, n: int = 0) -> Texts:
    """The ``n``th full fence is not there."""
    return drop_call(file, name, "fence", n)


def drop_statement(file: str, name: str, text: str) -> Texts:
    """The one statement that reads ``text`` is not carried out."""
    function = _Function(file, name)
    wanted = ast.dump(ast.parse(text).body[0])
    found = [node for node in function.nodes() if isinstance(node, ast.stmt) and ast.dump(node) == wanted]
    if len(found) != 1:
        raise UsageError(f"mutation: {file}: {name} has {len(found)} statements {text!r}")
    return function.without(found[0])


def weaken(file: str, name: str, callee: str, n: int = 0) -> Texts:
    """The ``n``th call of an atomic operation has no order: acquire and release become relaxed."""
    function = _Function(file, name)
    call = function.place(_calls(function, callee), n, f"call of {callee}()")
    assert isinstance(call, ast.Call)
    return function.replaced((function.span(call.func), _WEAKER[callee].encode()))


def _condition(file: str, name: str, n: int, value: bytes) -> Texts:
    function = _Function(file, name)
    found = (node for node in function.nodes() if isinstance(node, ast.If | ast.While | ast.IfExp))
    place = function.place(found, n, "condition")
    return function.replaced((function.span(place.test), value))  # type: ignore[attr-defined]


def never(file: str, name: str, n: int = 0) -> Texts:
    """The condition of the ``n``th ``if`` or ``while`` never holds."""
    return _condition(file, name, n, b"False")


def always(file: str, name: str, n: int = 0) -> Texts:
    """The condition of the ``n``th ``if`` or ``while`` always holds."""
    return _condition(file, name, n, b"True")


def drop_branch(file: str, name: str, n: int = 0) -> Texts:
    """The ``n``th ``if``, with all its branches, is not there."""
    function = _Function(file, name)
    place = function.place((node for node in function.nodes() if isinstance(node, ast.If)), n, "branch")
    assert isinstance(place, ast.stmt)
    return function.without(place)


def drop_operand(file: str, name: str, n: int, operand: int) -> Texts:
    """Of the ``n``th ``and`` or ``or``, one operand is not asked."""
    function = _Function(file, name)
    place = function.place((node for node in function.nodes() if isinstance(node, ast.BoolOp)), n, "and, or")
    assert isinstance(place, ast.BoolOp)
    word = b" and " if isinstance(place.op, ast.And) else b" or "
    values = [value for at, value in enumerate(place.values) if at != operand]
    if len(values) == len(place.values):
        raise UsageError(f"mutation: {file}: {name}: there is no operand {operand}")
    left = word.join(b"(" + function.of(value) + b")" for value in values)
    return function.replaced((function.span(place), b"(" + left + b")"))


def off_by_one(file: str, name: str, n: int = 0) -> Texts:
    """The ``n``th ``+ _ONE``, ``- _ONE`` or ``+ 1`` is not there."""
    function = _Function(file, name)

    def steps() -> Iterator[ast.AST]:
        for node in function.nodes():
            step = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
            if step and ast.unparse(node.right) in {"_ONE", "ONE", "1", "u64(1)"}:  # type: ignore[attr-defined]
                yield node

    place = function.place(steps(), n, "step of one")
    assert isinstance(place, ast.BinOp)
    return function.replaced((function.span(place), function.of(place.left)))


def swap(file: str, name: str, first: str) -> Texts:
    """The one statement that begins with ``first`` is carried out after the one that follows it."""
    function = _Function(file, name)
    for block in function.blocks():
        for one, two in pairwise(block):
            if function.of(one).startswith(first.encode()):
                return function.replaced((function.span(one), function.of(two)), (function.span(two), function.of(one)))
    raise UsageError(f"mutation: {file}: {name} has no statement {first!r} with one behind it")


def other_bound(file: str, name: str, n: int = 0) -> Texts:
    """The ``n``th comparison by order has its bound inside if it was outside, and the other way round."""
    function = _Function(file, name)
    other = {"<": b"<=", "<=": b"<", ">": b">=", ">=": b">"}
    found = (
        node
        for node in function.nodes()
        if isinstance(node, ast.Compare) and isinstance(node.ops[-1], ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    )
    place = function.place(found, n, "comparison by order")
    assert isinstance(place, ast.Compare)
    before = place.comparators[-2] if len(place.comparators) > 1 else place.left
    last = place.comparators[-1]
    between = (function.span(before)[1], function.span(last)[0])
    sign = function.text[between[0] : between[1]].decode()
    bare = sign.strip(" ()")
    return function.replaced((between, sign.replace(bare, other[bare].decode()).encode()))


def _works(statement: ast.stmt) -> bool:
    """Whether a statement is a call, or stores to a word, and nothing else."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AugAssign):
        targets = [statement.target]
    return bool(targets) and all(isinstance(target, ast.Subscript) for target in targets)


def skip(file: str, name: str, n: int = 0) -> Texts:
    """The ``n``th statement that is a call, or stores to a word, is not carried out."""
    function = _Function(file, name)
    found = (node for node in function.nodes() if isinstance(node, ast.stmt) and _works(node))
    statement = function.place(found, n, "call or store")
    assert isinstance(statement, ast.stmt)
    return function.without(statement)


def _bound_by(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _named_in(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _calls_something(statement: ast.stmt) -> bool:
    plain = isinstance(statement, ast.Expr | ast.Assign | ast.AugAssign)
    names = (ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call))
    return plain and any(name not in {"u64", "wrapping", "bool"} for name in names)


def swap_at(file: str, name: str, n: int = 0) -> Texts:
    """The ``n``th pair of statements, both of which call something and neither of which names what the other binds."""
    function = _Function(file, name)
    pairs = [
        (one, two)
        for block in function.blocks()
        for one, two in pairwise(block)
        if _calls_something(one) and _calls_something(two)
        if not _bound_by(one) & _named_in(two) and not _bound_by(two) & _named_in(one)
    ]
    pairs.sort(key=lambda pair: function.span(pair[0]))
    if n >= len(pairs):
        raise UsageError(f"mutation: {file}: {name} has no such pair")
    one, two = pairs[n]
    return function.replaced((function.span(one), function.of(two)), (function.span(two), function.of(one)))
