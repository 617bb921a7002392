"""A search on disk (SQLite): frontier, findings and counters, so that one that was killed goes on from there.

Of a search over states only what was added since the last time is written: memories, histories, states. Histories are
written as (parent, answer); the threads' code runs again for them when the search goes on.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import operations as op
from .dpor import Dpor
from .finding import Finding
from .outcome import Outcome
from .states import States
from .world import Where

if TYPE_CHECKING:
    from .sampling import Sampling
    from .world import World

__all__ = ["Store", "stamp"]

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS searches (name TEXT PRIMARY KEY, outcome TEXT, frontier BLOB);
CREATE TABLE IF NOT EXISTS findings (search TEXT, finding TEXT);
CREATE TABLE IF NOT EXISTS chunks (search TEXT, number INTEGER, chunk BLOB, PRIMARY KEY (search, number));
"""


def stamp(options: Iterable[object], rooms: Iterable[Path]) -> str:
    """What a search depends on: sources (the model's rooms, and this one), options, and the Python that hashed ends."""
    digest = hashlib.sha256(repr((*options, sys.version_info[:2], hash((1, 2)))).encode())
    for path in sorted({*rooms, *Path(__file__).parent.rglob("*.py")}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class Store:
    """The file of a search. Made for one ``stamp``: with another, going on would mix two searches."""

    def __init__(self, path: str | Path, made_for: str) -> None:
        self.path = Path(path)
        try:
            self._db = sqlite3.connect(self.path)
            self._db.executescript(_TABLES)
            known = self._db.execute("SELECT value FROM meta WHERE key = 'stamp'").fetchone()
        except sqlite3.Error as error:
            raise UsageError(f"{self.path}: not a search on disk: {error}") from None
        if known is None:
            with self._db:
                self._db.execute("INSERT INTO meta VALUES ('stamp', ?)", (made_for,))
        elif known[0] != made_for:
            self._db.close()
            raise UsageError(f"{self.path}: was begun with other sources, models or options; begin a new file")
        self._written: dict[str, tuple[int, int, int, int, int, int]] = {}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def points(self, model: str) -> list[int]:
        """The shared words that were found so far."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (f"points {model}",)).fetchone()
        return json.loads(row[0]) if row else []

    def forget(self, name: str) -> None:
        """Drop what is known of a search: it begins again."""
        with self._db:
            for table, column in (("searches", "name"), ("findings", "search"), ("chunks", "search")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))  # noqa: S608 - names of our own
        self._written.pop(name, None)

    def save(self, name: str, search: States | Dpor | Sampling, outcome: Outcome, world: World) -> None:
        """Write where a search is. O(what was added since the last time)."""
        frontier: Any
        with self._db:
            if isinstance(search, States):
                frontier = self._save_states(name, search)
            elif isinstance(search, Dpor):
                frontier = search.frontier()
            else:
                frontier = (search.next, search.ends)
            row = (name, json.dumps(outcome.as_dict()), marshal.dumps((frontier, outcome.finals)))
            self._db.execute("INSERT OR REPLACE INTO searches VALUES (?, ?, ?)", row)
            self._db.execute("DELETE FROM findings WHERE search = ?", (name,))
            self._db.executemany(
                "INSERT INTO findings VALUES (?, ?)", [(name, json.dumps(vars(each))) for each in outcome.findings]
            )
            points = json.dumps(sorted(world.points))
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"points {outcome.model}", points))

    def restore(self, name: str, search: States | Dpor | Sampling, outcome: Outcome) -> bool:
        """Bring a fresh search to where it was left; whether there is anything of it."""
        row = self._db.execute("SELECT outcome, frontier FROM searches WHERE name = ?", (name,)).fetchone()
        if row is None:
            return False
        for key, value in json.loads(row[0]).items():
            setattr(outcome, key, value)
        frontier, finals = marshal.loads(row[1])  # noqa: S302 - our own file, under its stamp
        outcome.finals.update(finals)
        for (text,) in self._db.execute("SELECT finding FROM findings WHERE search = ?", (name,)):
            outcome.findings.append(_finding(json.loads(text)))
        if outcome.complete or outcome.stopped == "finding":
            return True
        if isinstance(search, States):
            self._restore_states(name, search, frontier)
        elif isinstance(search, Dpor):
            search.resume(frontier)
        else:
            search.next, ends = frontier
            search.ends.update(ends)
        return True

    # States are rows of numbers: the rows, and what the numbers stand for.

    def _save_states(self, name: str, search: States) -> tuple[int, int, list[int], list[list[int]], int]:
        rows, tree = search.rows, search.machine.tree
        known = self._written.get(name, (0, search.machine.threads, 0, 0, rows.first, 0))
        memories, nodes, states, shareds, owns, number = known
        if search.count > states or number == 0:
            chunk = (
                [memory.values for memory in tree.by_number[memories:]],
                [_birth(node) for node in tree.nodes[nodes:]],
                [(shared[0].number, *shared[1:]) for shared in rows.shareds[shareds:]] if rows.stale else [],
                [(node.number, extra) for node, extra in rows.locals[owns:]],
                *search.saved(states),
            )
            self._db.execute("INSERT INTO chunks VALUES (?, ?, ?)", (name, number, marshal.dumps(chunk)))
            self._written[name] = (
                *(len(tree.by_number), len(tree.nodes), search.count, len(rows.shareds), len(rows.locals)),
                number + 1,
            )
        return search.frontier()

    def _restore_states(self, name: str, search: States, frontier: Any) -> None:
        rows, tree = search.rows, search.machine.tree
        found = self._db.execute("SELECT chunk FROM chunks WHERE search = ? ORDER BY number", (name,))
        chunks = 0
        search.clear()
        for (chunk,) in found:
            chunks += 1
            memories, births, shareds, owns, states, parents = marshal.loads(chunk)  # noqa: S302 - as above
            for values in memories:
                tree.memory(values)
            for parent, value, asleep in births:
                node = tree.nodes[parent]
                if asleep:
                    tree.asleep(node)
                else:
                    tree.kid(node, value)
            for memory, *rest in shareds:
                rows.shared((tree.by_number[memory], *rest))
            for number, extra in owns:
                rows.local(tree.nodes[number], extra)
            search.load(states, parents)
        search.resume(frontier)
        sizes = (len(tree.by_number), len(tree.nodes), search.count, len(rows.shareds), len(rows.locals))
        self._written[name] = (*sizes, chunks)


def _birth(node: Any) -> tuple[int, int, bool]:
    return node.parent.number, node.value, node.code == op.ASLEEP


def _finding(values: dict[str, Any]) -> Finding:
    where: Sequence[Any] | None = values["where"]
    lists = {"moves": tuple(values["moves"]), "points": tuple(values["points"])}
    return Finding(**{**values, **lists, "where": Where(*where) if where else None})
