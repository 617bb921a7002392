"""Which branches of a source a run takes: calls put into its syntax tree, one where each branch begins.

A branch is a function's body; what an ``if`` does when its test holds, and what when not (also where nothing is
written); a loop's body, and its end; a handler of an exception; either side of ``a if test else b``; and the right side
of an ``and`` or ``or``. The call returns at once and leaves nothing behind, so a thread can do after it what it could.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["PROBE", "UNPROBED", "Branch", "Probe", "probed"]

PROBE = "_probe"
"""What modules that are probed call."""

UNPROBED = frozenset({"atomics.py", "cache_lines.py", "compiled.py", "clock.py", "structure.py", "system.py"})
"""What no search looks into: operations are carried out by the explorer, whatever stands here."""

Probe = Callable[[Sequence["Branch"]], Callable[[int], None]]
"""Makes, of a module's branches, what the module calls."""

_ATOMICS = frozenset(
    {
        *("load_relaxed", "load_acquire", "store_relaxed", "store_release", "compare_exchange", "exchange"),
        *("fetch_add", "fetch_and", "fetch_or", "fence", "wait", "wait_for", "wake", "wake_all", "peek", "poke"),
        "count_at_most",
        *("host_load", "host_store", "host_fetch_add", "host_fetch_or", "lock", "unlock"),
    }
)
_PLAIN = frozenset({"Own", "U64", "bool", "None"})


class Branch(NamedTuple):
    """A branch: ``function`` is qualified, ``line`` the first of what it is of, ``what`` says which of its ways.

    ``atomics``: how many operations on shared words stand in it, not counting branches in it. ``shared``: whether the
    function is one of those that are compiled and work on words that threads share.
    """

    file: str
    function: str
    line: int
    what: str
    atomics: int
    shared: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.what}"


def probed(text: str, file: str) -> tuple[ast.Module, tuple[Branch, ...]]:
    r"""A source with calls of ``PROBE(number)`` in it, and the branches by number, in the order of lines.

    >>> tree, branches = probed("def f(a):\n    if a:\n        return 1\n    return 2\n", "f.py")
    >>> [(branch.line, branch.what) for branch in branches]
    [(1, 'called'), (2, 'if a: holds'), (2, 'if a: does not hold')]
    """
    tree = ast.parse(text)
    pass_ = _Pass(file)
    pass_.visit(tree)
    order = sorted(range(len(pass_.branches)), key=lambda k: (pass_.branches[k].line, k))
    places = {old: new for new, old in enumerate(order)}
    for constant in pass_.numbers:
        constant.value = places[int(str(constant.value))]
    return ast.fix_missing_locations(tree), tuple(pass_.branches[k] for k in order)


class _Pass(ast.NodeTransformer):
    def __init__(self, file: str) -> None:
        self.file = file
        self.branches: list[Branch] = []
        self.numbers: list[ast.Constant] = []
        self._names: list[str] = []
        self._functions: list[bool] = []

    # What stands where.

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._names.append(node.name)
        self._functions.append(_is_shared(node))
        begin = 1 if ast.get_docstring(node, clean=False) is not None else 0
        own = node.body[begin:]
        call = self._call(node.lineno, "called", own)
        node.body = [*node.body[:begin], call, *self._all(own)]
        self._functions.pop()
        self._names.pop()
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if not self._functions:
            self.generic_visit(node)
            return node
        test = f"if {_short(node.test)}"
        yes, no = (
            self._call(node.lineno, f"{test}: holds", node.body),
            self._call(node.lineno, f"{test}: does not hold", node.orelse),
        )
        node.test = self.visit(node.test)
        node.body = [yes, *self._all(node.body)]
        node.orelse = [no, *self._all(node.orelse)]
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        if not self._functions:
            return node
        test = f"while {_short(node.test)}"
        body = self._call(node.lineno, f"{test}: goes round", node.body)
        if not isinstance(node.test, ast.Constant):
            end = self._call(node.lineno, f"{test}: ends", node.orelse)
            node.orelse = [end, *self._all(node.orelse)]
        node.test = self.visit(node.test)
        node.body = [body, *self._all(node.body)]
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        if not self._functions:
            self.generic_visit(node)
            return node
        test = f"for {_short(node.target)} in {_short(node.iter)}"
        body, end = (
            self._call(node.lineno, f"{test}: goes round", node.body),
            self._call(node.lineno, f"{test}: ends", node.orelse),
        )
        node.iter = self.visit(node.iter)
        node.body = [body, *self._all(node.body)]
        node.orelse = [end, *self._all(node.orelse)]
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        if self._functions:
            what = f"except {_short(node.type)}" if node.type else "except"
            node.body = [self._call(node.lineno, what, node.body), *self._all(node.body)]
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        if self._functions:
            test = f"… if {_short(node.test)} else …"
            yes = self._number(node.lineno, f"{test}: holds", [node.body])
            no = self._number(node.lineno, f"{test}: does not hold", [node.orelse])
            node.body, node.orelse = _first(yes, self.visit(node.body)), _first(no, self.visit(node.orelse))
            node.test = self.visit(node.test)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._functions:
            word = "and" if isinstance(node.op, ast.And) else "or"
            values = [self.visit(node.values[0])]
            for value in node.values[1:]:
                number = self._number(value.lineno, f"… {word} {_short(value)}: looked at", [value])
                values.append(_first(number, self.visit(value)))
            node.values = values
        return node

    # What is put in.

    def _all(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return [self.visit(each) for each in body]

    def _number(self, line: int, what: str, inside: list[ast.stmt] | list[ast.expr]) -> ast.Constant:
        name = ".".join(self._names)
        self.branches.append(Branch(self.file, name, line, what, _atomics(inside), any(self._functions)))
        number = ast.Constant(len(self.branches) - 1)
        self.numbers.append(number)
        return number

    def _call(self, line: int, what: str, inside: list[ast.stmt]) -> ast.stmt:
        call = ast.Expr(_called(self._number(line, what, inside)))
        at = inside[0] if inside else None
        for node in ast.walk(call):
            node.lineno = node.end_lineno = at.lineno if at is not None else line  # type: ignore[attr-defined]
            node.col_offset = node.end_col_offset = 0  # type: ignore[attr-defined]
        return call


def _called(number: ast.Constant) -> ast.Call:
    return ast.Call(ast.Name(PROBE, ast.Load()), [number], [])


def _first(number: ast.Constant, value: ast.expr) -> ast.expr:
    """The value, after the call: which returns None, so the value it is."""
    return ast.copy_location(ast.BoolOp(ast.Or(), [_called(number), value]), value)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_shared(node: ast.FunctionDef) -> bool:
    """Whether a function is compiled, and takes anything but words of one thread."""
    names = [decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list]
    if not any(isinstance(name, ast.Name) and name.id == "compiled" for name in names):
        return False
    kinds = {ast.unparse(each.annotation) for each in node.args.args if each.annotation is not None}
    return bool(kinds - _PLAIN)


def _atomics(inside: list[ast.stmt] | list[ast.expr]) -> int:
    """How many operations of atomics stand in some statements, or in tests of branches in them, not in the branches."""
    count = 0
    todo: list[ast.AST] = list(inside)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If | ast.While):
            todo.append(node.test)
        elif isinstance(node, ast.For):
            todo.append(node.iter)
        elif isinstance(node, ast.IfExp):
            todo.append(node.test)
        elif isinstance(node, ast.BoolOp):
            todo.append(node.values[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler | ast.Lambda):
            continue
        else:
            todo += ast.iter_child_nodes(node)
            if isinstance(node, ast.Call):
                function = node.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                count += name in _ATOMICS
    return count
