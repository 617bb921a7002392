"""Each hook of Numba that is not official still does what ``_numba`` leans on; if not, see
``_packages.NUMBA``."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from guestmem.atomics import peek
from guestmem.compiled import U64, compiled, words

pytestmark = pytest.mark.compiled_only


def test_compile_replaced_on_an_instance_is_what_a_call_uses() -> None:
    from numba import njit, types

    made: Any = njit(lambda value: value + value)
    asked = []
    compile_ = type(made).compile

    def replaced(signature: Any) -> Any:
        asked.append(signature)
        compile_(made, types.uint64(types.uint64))
        made.disable_compile()
        return made.overloads[types.uint64,].entry_point

    made.compile = replaced
    assert made(2**63 - 1) == 2**64 - 2
    assert asked == [(types.int64,)]
    assert made(3) == 6
    assert len(made.signatures) == len(asked) == 1


def test_the_cache_asks_our_locator() -> None:
    from guestmem._numba import cache_directory, source_stamp

    peek(words(1), 0)
    implementation = peek._cache._impl  # type: ignore[attr-defined]
    locator = implementation.locator
    path = Path(peek.py_func.__code__.co_filename)  # type: ignore[attr-defined]
    assert Path(locator.get_cache_path()) == cache_directory()
    assert locator.get_source_stamp() == source_stamp(path)
    assert locator.get_disambiguator() in implementation.filename_base


def test_what_was_compiled_long_ago_is_removed(tmp_path: Path) -> None:
    from guestmem._numba import _forget_old

    for name, age in (("old.nbi", 40), ("new.nbi", 20)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age * 86_400,) * 2)
    _forget_old(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["new.nbi"]


def test_compile_cached_compiles_anew_and_has_the_inferred_types() -> None:
    from numba import types

    from guestmem._numba import compile_fresh

    @compiled
    def double(value: U64) -> U64:
        return value + value

    results = [compile_fresh(double) for _ in range(2)]
    assert results[0] is not results[1]
    assert all(result.type_annotation.typemap["value"] == types.uint64 for result in results)
    assert not double.signatures  # type: ignore[attr-defined]


def test_arrays_are_not_counted() -> None:
    """Atomic counting in Numba's run time costs a function that calls others 20 times its own work."""
    from guestmem._numba import compile_fresh

    llvm = compile_fresh(peek).library.get_llvm_str()
    assert "@NRT_incref" not in llvm
    assert "@NRT_adapt_ndarray_from_python" not in llvm


def test_this_version_is_one_of_those_that_are_allowed_and_pyproject_says_the_same() -> None:
    import tomllib
    from importlib.metadata import version

    from guestmem._packages import NUMBA, require_numba

    require_numba(version("numba"))
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    first, end = (".".join(map(str, each)) for each in NUMBA)
    assert f"numba>={first},<{end}" in project["optional-dependencies"]["engine"]


def test_threads_take_turns_often_only_while_compiling() -> None:
    from guestmem import _numba

    before = sys.getswitchinterval()
    with _numba._turns_often():
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before


def test_a_child_of_fork_can_compile_whoever_was_compiling() -> None:
    """fork() waits for the thread that compiles: its lock would be held in the child for ever."""
    from numba.core.compiler_lock import global_compiler_lock

    compiling, done = threading.Event(), []

    def compile_for_a_while() -> None:
        with global_compiler_lock:
            compiling.set()
            time.sleep(0.3)
            done.append(True)

    thread = threading.Thread(target=compile_for_a_while)
    thread.start()
    compiling.wait()
    child = os.fork()
    if not child:
        os._exit(0 if done and global_compiler_lock._lock.acquire(blocking=False) else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert global_compiler_lock._lock.acquire(blocking=False), "and the parent has it back"
    global_compiler_lock.release()
