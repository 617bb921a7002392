"""Peers of ``guestmem bench ranges`` do the work: the interval tree as a dict, and Rust's rangemap, where it can be."""

from __future__ import annotations

import importlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from naive_ranges import put, ranges_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
END = (1 << 64) - 1

# The calls of the crate that the program makes, over the standard library's tree.
STAND_IN = """
use std::{collections::BTreeMap, ops::Range};
pub struct RangeMap<K, V>(BTreeMap<K, (K, V)>);
impl RangeMap<u64, u64> {
    pub fn new() -> Self { Self(BTreeMap::new()) }
    pub fn get(&self, key: &u64) -> Option<&u64> {
        self.0.range(..=*key).next_back().filter(|(_, (end, _))| key < end).map(|(_, (_, value))| value)
    }
    pub fn insert(&mut self, new: Range<u64>, value: u64) {
        let (mut begin, mut end) = (new.start, new.end);
        let from = |(_, (stop, _)): &(&u64, &(u64, u64))| *stop >= new.start;
        let met: Vec<(u64, u64, u64)> =
            self.0.range(..=new.end).rev().take_while(from).map(|(start, (stop, old))| (*start, *stop, *old)).collect();
        for (start, stop, old) in met {
            self.0.remove(&start);
            if old == value {
                begin = begin.min(start);
                end = end.max(stop);
                continue;
            }
            if start < new.start { self.0.insert(start, (stop.min(new.start), old)); }
            if stop > new.end { self.0.insert(start.max(new.end), (stop, old)); }
        }
        self.0.insert(begin, (end, value));
    }
    pub fn iter(&self) -> impl Iterator<Item = (&u64, &(u64, u64))> { self.0.iter() }
}
"""


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delenv("GUESTMEM_RANGEMAP", raising=False)
    return importlib.import_module


def crate(folder: Path, text: str) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "lib.rs").write_text(text)
    (folder / "Cargo.toml").write_text('[package]\nname = "rangemap"\nversion = "1.99.0"\nedition = "2021"\n')
    return folder


def test_the_interval_tree_holds_what_a_dict_holds(peer: Callable[[str], Any], rng: random.Random) -> None:
    intervals = peer("interval_peer").Intervals
    for span, stores, values in [(40, 300, 3), (300, 200, 3), (600, 150, 200)]:
        tree, oracle = intervals(2 * stores), dict[int, int]()
        for _ in range(stores):
            first = rng.randrange(span)
            last = first + rng.randrange(rng.choice([1, 5, span]))
            value = rng.randrange(values + 1)
            tree.store(first, last, value)
            put(oracle, first, last + 1, value)
            assert tree.ranges() == ranges_of(oracle)
            index = rng.randrange(2 * span)
            assert tree.load(index) == oracle.get(index, 0)


def test_the_interval_tree_at_the_ends_of_the_space(peer: Callable[[str], Any]) -> None:
    tree = peer("interval_peer").Intervals(10)
    assert tree.load(0) == tree.load(END) == 0
    for row in [(0, END, 1), (0, 0, 2), (END, END, 3), (1, END - 1, 0), (END - 1, END, 3)]:
        tree.store(*row)
    assert tree.ranges() == [(0, 1, 2), (END - 1, END + 1, 3)]
    assert [tree.load(index) for index in (0, 1, END - 2, END - 1, END)] == [2, 0, 0, 3, 3]


def test_without_cargo_it_says_so(peer: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rust = peer("rust_peer")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(rust.NotRun, match=r"^cargo is not installed$"):
        rust.Rangemap(tmp_path)
    with pytest.raises(ValueError, match=r"^--rangemap: \S+ is no crate's directory: it has no Cargo.toml$"):
        rust.Rangemap(tmp_path, str(tmp_path))
    monkeypatch.setenv("GUESTMEM_RANGEMAP", str(tmp_path))
    with pytest.raises(ValueError, match=r"^GUESTMEM_RANGEMAP: \S+ is no crate's directory"):
        rust.Rangemap(tmp_path)


@pytest.mark.compiled_only
@pytest.mark.skipif(shutil.which("cargo") is None, reason="no cargo")
def test_the_program_does_our_loads_and_stores(peer: Callable[[str], Any], tmp_path: Path) -> None:
    """Of a stand-in for the crate, since that is no part of the project: the sums are those of a dict."""
    np = pytest.importorskip("numpy")
    rust = peer("rust_peer")
    (tmp_path / "build").mkdir()
    (tmp_path / "broken").mkdir()
    with pytest.raises(rust.NotRun, match=r"^cargo build --offline: .*expected"):
        rust.Rangemap(tmp_path / "broken", str(crate(tmp_path / "wrong", "fn")))
    built = rust.Rangemap(tmp_path / "build", str(crate(tmp_path / "crate", STAND_IN)))
    assert built.name == "rangemap 1.99.0 (Rust)"
    rows = np.array([[16, 31, 7], [0, 15, 5]], np.uint64)
    changes, indices = np.array([[8, 19, 2**63], [18, 19, 9], [20, 21, 9]], np.uint64), np.arange(32, dtype=np.uint64)
    oracle: dict[int, int] = {}
    sums = []
    for part in (rows, changes):
        for first, last, value in part.tolist():
            put(oracle, first, last + 1, value)
        sums.append(sum(oracle.values()) % 2**64)
    figures = built.run(rows, changes.reshape(-1), indices, 2)
    assert figures[2:] == (*sums, len(ranges_of(oracle)))
    assert figures.load > 0
    assert figures.store > 0
