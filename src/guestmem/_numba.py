"""What Numba is asked to do for ``compiled``: one declared signature, and a cache that notices every change.

Four hooks are not official, so only versions that were tried are taken (``_packages.NUMBA``), and
``tests/test_numba_hooks.py`` has one test for each:
``Dispatcher.compile`` replaced on an instance, ``Dispatcher._cache`` with a locator of ours, ``Dispatcher._compiler``,
and the option ``_nrt``.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserWideCacheLocator
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["cache_directory", "compile_fresh", "declared_signature", "dispatcher", "source_stamp"]

_PACKAGE = Path(__file__).parent
_OFTEN = 1e-4
_KEPT_DAYS = 30
_TYPES = {
    "Words": types.uint64[::1],
    "Own": types.uint64[::1],
    "Halves": types.uint32[::1],
    "U64": types.uint64,
    "bool": types.boolean,
    "None": types.void,
}


def cache_directory() -> Path:
    """Where compiled functions are kept: ``$XDG_CACHE_HOME/guestmem`` or ``~/.cache/guestmem``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guestmem"


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """The files of this package that ``path`` imports directly: relatively, as all rooms do, or as tests do."""
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = path.parents[node.level - 1] if node.level else _PACKAGE.parent
        target = base.joinpath(*(node.module or "").split("."))
        for candidate in (target, *(target / alias.name for alias in node.names)):
            for file in (candidate.with_suffix(".py"), candidate / "__init__.py"):
                if file.is_file() and file.is_relative_to(_PACKAGE):
                    found += [file]
    return tuple(found)


@cache
def source_stamp(path: Path) -> str:
    """Hash of a module and of all modules of this package that it imports, near or far.

    Numba's own cache looks at one file's time, so it keeps running an old callee from another file.
    """
    seen: set[Path] = set()
    todo = [path, Path(__file__)]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(_imports(file))
    digest = hashlib.sha256()
    for file in sorted(seen):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class _Locator(UserWideCacheLocator):
    def __init__(self, function: Any, path: str) -> None:
        super().__init__(function, path)
        self._path, self._module = Path(path), function.__module__
        self._cache_path = str(cache_directory())

    def get_source_stamp(self) -> str:
        return source_stamp(self._path)

    def get_disambiguator(self) -> str:
        # A cached function imports its module by name: a file run as a script and imported is two. What is of this
        # package is known by its text, all that it calls included, so that two checkouts share one cache. A file of
        # somebody else's is known by its place: what it imports beside it is in no stamp.
        ours = self._path.is_relative_to(_PACKAGE)
        place = source_stamp(self._path) if ours else self._path.as_posix()
        return hashlib.sha256(f"{place} {self._module}".encode()).hexdigest()[:12]


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Implementation


def _forget_old(directory: Path) -> None:
    """Remove what was compiled long ago: each edit of a source leaves what was compiled from the text before."""
    oldest = time.time() - _KEPT_DAYS * 86_400
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):  # another process does the same
                if entry.stat().st_mtime < oldest:
                    Path(entry.path).unlink()


@cache
def _can_cache() -> bool:
    """Whether compiled functions can be kept; where nothing can be written they are compiled in every process."""
    try:
        cache_directory().mkdir(parents=True, exist_ok=True)
        _forget_old(cache_directory())
    except OSError:
        return False
    # Set from outside, other locators would replace ours, which are the ones that notice changes.
    return os.access(cache_directory(), os.W_OK) and not config.CACHE_LOCATOR_CLASSES


def _type_of(annotation: str | None, names: dict[str, Any]) -> Any:
    """The Numba type of an annotation, or None: a word, an array of words, or a NamedTuple of such."""
    if annotation in _TYPES:
        return _TYPES[annotation]
    bundle = names.get(annotation) if isinstance(annotation, str) else None
    if not (isinstance(bundle, type) and issubclass(bundle, tuple)):
        return None
    kinds = (getattr(kind, "__forward_arg__", kind) for kind in bundle.__annotations__.values())
    inside = [_TYPES.get("U64" if kind in (int, "int") else str(kind)) for kind in kinds]
    return None if None in inside else types.BaseTuple.from_types(inside, bundle)


def declared_signature(function: Any) -> Any:
    """The Numba signature that a function's annotations declare; TypeError names what cannot be compiled."""
    code = function.__code__
    names = (*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], "return")
    where = f"{function.__module__}.{function.__qualname__}"
    found = []
    for name in names:
        annotation = function.__annotations__.get(name)
        kind = _type_of(annotation, function.__globals__)
        if kind is None:
            hint = "" if annotation is None or isinstance(annotation, str) else "; annotations must not be evaluated"
            raise TypeError(
                f"{where}: {name} is annotated {annotation!r}, not one of {[*_TYPES]} or a tuple of them{hint}"
            )
        found.append(kind)
    return found[-1](*found[:-1])


@contextmanager
def _turns_often() -> Iterator[None]:
    """A short switch interval while a function is compiled.

    Each of its thousands of calls to LLVM and to the file system gives the GIL away, and beside a busy Python thread
    waits a whole interval to have it back: one function took more than 400 s, now 0.4 to 3 s.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _OFTEN))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def dispatcher(function: Any, *, nogil: bool, inline: bool = False) -> Any:
    """A Numba dispatcher that compiles the declared signature on first use, from cache if it can, and no other."""
    signature = declared_signature(function)
    # Without Numba's run time, arrays are not counted: 10 atomic operations a call less (a table walk: 480 to 25 ns).
    # Nothing here allocates, and whoever calls holds the arrays.
    made = njit(nogil=nogil, forceinline=inline, _nrt=False)(function)
    if not config.DISABLE_JIT:
        compile_ = type(made).compile

        def compile_declared(asked: Any) -> Any:
            for given, declared in zip(asked, signature.args, strict=True):
                # The machine code does not look: it would read floats, or every other word, as if they were words.
                if given != declared and isinstance(declared, types.Array):
                    raise TypeError(f"{function.__qualname__}: {given} given where {declared} is declared")
            with global_compiler_lock:  # two threads may call first at once
                if not made.overloads:
                    with _turns_often():
                        if _can_cache():
                            made._cache = _Cache(function)  # noqa: SLF001 - see the module's docstring
                        compile_(made, signature)
                    made.disable_compile()
            return made.overloads[signature.args].entry_point

        made.compile = compile_declared
        made.declared = signature
    return made


def compile_fresh(function: Any) -> Any:
    """Compile a dispatcher anew, past the cache, and return Numba's compile result (with the inferred types)."""
    status, result = function._compiler._compile_cached(  # noqa: SLF001 - see the module's docstring
        function.declared.args, function.declared.return_type
    )
    if not status:
        raise result
    return result


def _give_compiler_back() -> None:
    with suppress(RuntimeError):  # who waited for it was interrupted
        global_compiler_lock.release()


# A child of fork has the forking thread only: while another compiles, its lock would be held there for ever.
os.register_at_fork(
    before=global_compiler_lock.acquire, after_in_parent=_give_compiler_back, after_in_child=_give_compiler_back
)
