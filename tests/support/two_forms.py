"""The rules of two forms as a lint over syntax trees: what keeps a function's compiled and interpreted forms one.

Each rule stands in CONTRIBUTING.md with its reason. ``Package`` reads all sources; ``violations`` lists what is wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import guestmem

__all__ = ["Function", "Package", "imports", "package", "parsed", "sources"]

ROOT = Path(guestmem.__file__).parent
PRIMITIVES = {"atomics.py", "cache_lines.py", "clock.py", "system.py"}
"""Files whose functions at the top are operations that compiled functions may call."""
LOADS = {"load_relaxed", "load_acquire", "count_at_most", "host_load", "host_load8", "host_load16", "host_load32"}
STORES = {
    *("store_relaxed", "store_release", "compare_exchange", "exchange", "fetch_add", "fetch_and", "fetch_or"),
    *("host_store", "host_store8", "host_store16", "host_store32", "host_fetch_add", "host_fetch_or", "system_call"),
}
WAITS = {"wait", "wait_for"}
BUILTINS = {"max", "min"}
REFUSED_NODES = {
    ast.AsyncFor: "async for",
    ast.Await: "await",
    ast.ClassDef: "a class",
    ast.Delete: "del",
    ast.Dict: "a dict",
    ast.DictComp: "a comprehension",
    ast.FunctionDef: "a function in a function",
    ast.GeneratorExp: "a generator",
    ast.Global: "global",
    ast.Import: "import",
    ast.ImportFrom: "import",
    ast.JoinedStr: "a string",
    ast.Lambda: "a lambda",
    ast.List: "a list",
    ast.ListComp: "a comprehension",
    ast.Nonlocal: "nonlocal",
    ast.Raise: "raise (return a status; the Python face raises)",
    ast.Set: "a set",
    ast.SetComp: "a comprehension",
    ast.Try: "try",
    ast.With: "with",
    ast.Yield: "yield",
}


def sources() -> dict[str, str]:
    """All modules of the package: path below it, text."""
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted(ROOT.rglob("*.py"))}


@cache
def parsed(text: str) -> ast.Module:
    """A module's syntax tree, parsed once: not to be changed."""
    return ast.parse(text)


@cache
def imports(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a module, wherever they stand."""
    return [node for node in ast.walk(parsed(text)) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def package() -> Package:
    """The package as it is, looked through once for all tests."""
    return Package(sources())


class Function(NamedTuple):
    """A compiled function, or a primitive (an operation of atomics, clock or compiled)."""

    path: str
    node: ast.FunctionDef
    compiled: bool

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.node.name

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Name and annotation of each parameter."""
        return [(arg.arg, ast.unparse(arg.annotation) if arg.annotation else "") for arg in self.node.args.args]

    @property
    def nogil(self) -> bool:
        return any("nogil=True" in ast.unparse(decorator) for decorator in self.node.decorator_list)


def _is_compiled(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    names = [decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list]
    return any(isinstance(name, ast.Name) and name.id == "compiled" for name in names)


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements of a module, those under a top-level ``if`` (TYPE_CHECKING or INTERPRETED) included."""
    for statement in tree.body:
        yield statement
        if isinstance(statement, ast.If):
            yield from statement.body


class Package:
    """The package's syntax trees and who calls whom. ``texts``: path below the package, source."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.trees = {path: parsed(text) for path, text in texts.items()}

    def _file(self, path: str, level: int, module: str) -> str:
        """The file that a relative import in ``path`` means, or "" if it is none of the package."""
        base = PurePosixPath(path)
        for _ in range(level):
            base = base.parent
        target = base.joinpath(*module.split(".")) if module else base
        plain, package = f"{target}.py", (target / "__init__.py").as_posix()
        return plain if plain in self.trees else package if package in self.trees else ""

    @cached_property
    def _names(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Of each file: local name to (file, name there); a module is (file, "")."""
        found: dict[str, dict[str, tuple[str, str]]] = {}
        for path, tree in self.trees.items():
            names = found.setdefault(path, {})
            for node in _top_level(tree):
                if isinstance(node, ast.ImportFrom) and node.level:
                    file = self._file(path, node.level, node.module or "")
                    for alias in node.names:
                        submodule = self._file(path, node.level, ".".join(filter(None, (node.module, alias.name))))
                        local = alias.asname or alias.name
                        names.setdefault(local, (submodule, "") if submodule else (file, alias.name))
        return found

    @cached_property
    def copies(self) -> dict[tuple[str, str], tuple[str, str]]:
        """What ``name = compiled_copy(module.function)`` at the top of a module names: (path, name) to the function."""
        return {
            (path, target.id): (self._names[path].get(module, ("", ""))[0], function)
            for path, tree in self.trees.items()
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
            for module, function in re.findall(r"^compiled_copy\((\w+)\.(\w+)\)$", ast.unparse(node.value))
        }

    @cached_property
    def functions(self) -> dict[tuple[str, str], Function]:
        """Compiled functions, plain ones with a compiled copy, and primitives, by (path, name)."""
        copied = set(self.copies.values())
        return {
            (path, node.name): Function(path, node, _is_compiled(node) or (path, node.name) in copied)
            for path, tree in self.trees.items()
            for node in _top_level(tree)
            if isinstance(node, ast.FunctionDef)
            and (
                _is_compiled(node)
                or path in PRIMITIVES
                or node.name in {"u64", "wrapping"}
                or (path, node.name) in copied
            )
        }

    @cached_property
    def bundles(self) -> dict[tuple[str, str], dict[str, str]]:
        """NamedTuples by (path, name), with their fields' annotations: what travels together as one argument."""
        return {
            (path, node.name): {
                ast.unparse(each.target): ast.unparse(each.annotation)
                for each in node.body
                if isinstance(each, ast.AnnAssign)
            }
            for path, tree in self.trees.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["NamedTuple"]
        }

    def bundle(self, path: str, name: str) -> dict[str, str] | None:
        """The fields, with their annotations, of the NamedTuple that ``name`` means in ``path``, or None."""
        for _ in range(8):
            if (path, name) in self.bundles:
                return self.bundles[path, name]
            path, name = self._names.get(path, {}).get(name, ("", ""))
        return None

    def compiled(self, path: str = "") -> list[Function]:
        """Compiled functions, of one file if it is named."""
        return [each for each in self.functions.values() if each.compiled and path in {"", each.path}]

    def resolve(self, path: str, name: str) -> Function | None:
        """The compiled function or primitive that ``name`` means in ``path``, through re-exports."""
        for _ in range(8):
            path, name = self.copies.get((path, name), (path, name))
            if (path, name) in self.functions:
                return self.functions[path, name]
            path, name = self._names.get(path, {}).get(name, ("", ""))
        return None

    def callee(self, path: str, call: ast.expr) -> Function | None:
        """As ``resolve``, for what is called: ``name`` or ``module.name``."""
        if isinstance(call, ast.Name):
            return self.resolve(path, call.id)
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name):
            file, name = self._names[path].get(call.value.id, ("", ""))
            return self.resolve(file, call.attr) if file and not name else None
        return None

    @cached_property
    def calls(self) -> dict[tuple[str, str], set[tuple[str, str]]]:
        """Of each compiled function: the compiled functions and primitives that it calls."""
        return {each.key: {callee.key for callee in self._called(each.path, each.node)} for each in self.compiled()}

    def _called(self, path: str, node: ast.AST) -> Iterator[Function]:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and (callee := self.callee(path, call.func)):
                yield callee

    def reaches(self, function: Function, names: set[str]) -> bool:
        """Whether ``function`` is, or calls at any depth, an operation of atomics in ``names``."""
        seen, todo = set(), [function.key]
        while todo:
            key = todo.pop()
            if key[0] in PRIMITIVES and key[1] in names:
                return True
            if key not in seen:
                seen.add(key)
                todo.extend(self.calls.get(key, ()))
        return False

    def does(self, path: str, node: ast.AST, names: set[str]) -> bool:
        """Whether some call below ``node`` reaches an operation in ``names``."""
        return any(self.reaches(callee, names) for callee in self._called(path, node))

    def violations(self, path: str) -> list[str]:
        """All that the rules refuse in a file, as ``path:line: what``."""
        functions = self.compiled(path)
        known = {id(function.node) for function in functions}
        found = [
            (node.lineno, f"{node.name} is compiled, but not at the top of the module")
            for node in ast.walk(self.trees[path])
            if isinstance(node, ast.FunctionDef) and _is_compiled(node) and id(node) not in known
        ]
        for function in functions:
            found += _Lint(self, function).run()
        return [f"{path}:{line}: {message}" for line, message in sorted(found)]

    @cached_property
    def named_in_python(self) -> set[tuple[str, str]]:
        """Compiled functions that plain Python of the package names: they are called with the GIL held."""
        found = set()
        for path, tree in self.trees.items():
            inside = {id(node) for function in self.compiled(path) for node in ast.walk(function.node)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inside:
                    callee = self.callee(path, node)
                    if callee and callee.compiled:
                        found.add(callee.key)
        return found


class _Lint:
    """The rules, for one compiled function."""

    def __init__(self, package: Package, function: Function) -> None:
        self.package, self.function, self.path = package, function, function.path
        self.found: list[tuple[int, str]] = []
        kinds = dict(function.kinds)
        self.words = {name for name, kind in kinds.items() if kind == "Words"}
        self.own = {name for name, kind in kinds.items() if kind == "Own"}
        self.unpacked: set[int] = set()
        """Names that a bundle is taken apart into: their first and only binding."""
        self._unpack(function)
        body = function.node.body
        docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        self.body = body[1:] if docstring else body
        self.nodes = [node for statement in self.body for node in ast.walk(statement)]
        self.parents = {id(child): node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def _unpack(self, function: Function) -> None:
        """``a, b = bundle`` and ``a = bundle.a``, of a parameter that is a NamedTuple: they are what its fields are."""
        fields = {name: self.package.bundle(self.path, kind) or {} for name, kind in function.kinds}
        for node in ast.walk(function.node):
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Name(id=name)) if name in fields:
                    if len(fields[name]) == len(names):
                        self._bind(zip(names, fields[name].values(), strict=True))
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                    self._bind((each, self._field(fields, value)) for each, value in zip(names, values, strict=True))
                case ast.Assign(targets=[ast.Name() as target], value=ast.Attribute() as value):
                    self._bind([(target, self._field(fields, value))])

    @staticmethod
    def _field(fields: Mapping[str, Mapping[str, str]], value: ast.expr) -> str:
        """What ``value`` is, if it is a field of a parameter."""
        match value:
            case ast.Attribute(value=ast.Name(id=name), attr=field):
                return fields.get(name, {}).get(field, "")
        return ""

    def _bind(self, names: Iterable[tuple[ast.expr, str]]) -> None:
        for each, kind in names:
            if isinstance(each, ast.Name) and kind in {"Words", "Own"}:
                self.unpacked.add(id(each))
                (self.words if kind == "Words" else self.own).add(each.id)

    def refuse(self, node: ast.AST, message: str) -> None:
        self.found.append((getattr(node, "lineno", 0), f"{self.function.name}: {message}"))

    def run(self) -> list[tuple[int, str]]:
        self._recursion()
        self._nogil()
        for node in self.nodes:
            if type(node) in REFUSED_NODES:
                self.refuse(node, f"{REFUSED_NODES[type(node)]} in a compiled function")
            match node:
                case ast.Name():
                    self._name(node)
                case ast.Constant():
                    self._constant(node)
                case ast.Compare():
                    self._compare(node)
                case ast.Call():
                    self._call(node)
                case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                    self.refuse(node, "/ is a float: use //")
                case ast.UnaryOp(op=ast.USub()):
                    self.refuse(node, "a negative word: use wrapping()")
                case ast.While():
                    self._loop(node)
        return self.found

    def _recursion(self) -> None:
        seen: set[tuple[str, str]] = set()
        todo = list(self.package.calls[self.function.key])
        while todo:
            key = todo.pop()
            if key == self.function.key:
                self.refuse(self.function.node, "recursion")
                return
            if key not in seen:
                seen.add(key)
                todo.extend(self.package.calls.get(key, ()))

    def _nogil(self) -> None:
        called = any(self.function.key in callees for callees in self.package.calls.values())
        from_python = self.function.key in self.package.named_in_python or not called
        if from_python and not self.function.nogil and self.package.reaches(self.function, WAITS):
            self.refuse(self.function.node, "waits and is called from Python, but holds the GIL: compiled(nogil=True)")

    def _name(self, node: ast.Name) -> None:
        if node.id not in self.words | self.own or id(node) in self.unpacked:
            return
        kind = "Words" if node.id in self.words else "Own"
        parent = self.parents.get(id(node))
        if kind == "Own" and isinstance(parent, ast.Subscript) and parent.value is node:
            return
        if kind == "Own" and self._is_length(parent):
            return
        if isinstance(parent, ast.Call) and node in parent.args:
            callee = self.package.callee(self.path, parent.func)
            kinds = [each[1] for each in callee.kinds] if callee else []
            kinds = kinds or list((self.package.bundle(self.path, ast.unparse(parent.func)) or {}).values())
            place = parent.args.index(node)
            if place < len(kinds) and kinds[place] == kind:
                return
        self.refuse(node, f"plain use of {node.id}, which is {kind}")

    def _is_length(self, node: ast.AST | None) -> bool:
        """Whether ``node`` is the ``len(...)`` of ``u64(len(...))``, the only use of a length: it is an int64."""
        outer = self.parents.get(id(node))
        return (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "len"
            and isinstance(outer, ast.Call)
            and ast.unparse(outer.func) == "u64"
        )

    def _constant(self, node: ast.Constant) -> None:
        if node.value is None or isinstance(node.value, bool):
            return
        parent = self.parents.get(id(node))
        if not isinstance(node.value, int):
            self.refuse(node, f"{node.value!r} is no word")
        elif isinstance(parent, ast.BinOp | ast.AugAssign) and isinstance(parent.op, ast.LShift | ast.RShift):
            right = parent.right if isinstance(parent, ast.BinOp) else parent.value
            if right is not node:
                self.refuse(node, f"literal {node.value} outside u64()")
            elif not 0 <= node.value < 64:
                self.refuse(node, f"shift by {node.value}")
        elif isinstance(parent, ast.Subscript) and parent.slice is node:
            return
        elif not isinstance(parent, ast.Compare) and not (
            isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in {"u64", "wrapping"}
        ):
            self.refuse(node, f"literal {node.value} outside u64()")

    def _compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for left, operation, right in zip(sides, node.ops, sides[1:], strict=False):
            below = isinstance(operation, ast.GtE | ast.Lt) and ast.unparse(right) in {"0", "u64(0)"}
            above = isinstance(operation, ast.LtE | ast.Gt) and ast.unparse(left) in {"0", "u64(0)"}
            if below or above:
                self.refuse(node, f"{ast.unparse(node)}: a word is never below 0")

    def _call(self, node: ast.Call) -> None:
        callee = self.package.callee(self.path, node.func)
        name = ast.unparse(node.func)
        bundle = self.package.bundle(self.path, name)
        if callee is None and bundle is None and name not in BUILTINS and not self._is_length(node):
            self.refuse(node, f"calls {name}, which is neither compiled nor an operation of atomics")
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            self.refuse(node, f"{name}: arguments go by position")

    def _loop(self, loop: ast.While) -> None:
        """A loop over shared words ends by waiting, by changing them, or because its own variables move on."""
        does = self.package.does
        if not does(self.path, loop, LOADS) or does(self.path, loop, WAITS | STORES):
            return
        moves: dict[str, set[str]] = {}
        conditions = [loop.test]
        for node in ast.walk(loop):
            if isinstance(node, ast.If) and any(isinstance(each, ast.Break | ast.Return) for each in ast.walk(node)):
                conditions.append(node.test)
            if isinstance(node, ast.Call):  # a callee may change the own words that it is given
                for name in (arg.id for arg in node.args if isinstance(arg, ast.Name) and arg.id in self.own):
                    moves.setdefault(name, set()).add(name)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
                read = {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    itself = isinstance(node, ast.AugAssign) or isinstance(target, ast.Subscript)
                    for name in (each.id for each in ast.walk(target) if isinstance(each, ast.Name)):
                        moves.setdefault(name, set()).update(read | {name} if itself else read)
        watched = {each.id for test in conditions for each in ast.walk(test) if isinstance(each, ast.Name)}
        if not any(_moves_on(name, moves) for name in _sources(watched, moves)):
            self.refuse(loop, "a bare spin: nothing but other threads ends this loop, and it does not wait()")


def _sources(names: set[str], moves: Mapping[str, set[str]]) -> set[str]:
    """``names`` and all that they are computed from in the loop."""
    seen: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(moves.get(name, ()))
    return seen


def _moves_on(name: str, moves: Mapping[str, set[str]]) -> bool:
    """Whether ``name`` is computed from its own value in the round before."""
    return any(name in _sources({read}, moves) for read in moves.get(name, ()))
