"""The published axioms of memory models, as an enumerator: all ends of a litmus test that they allow.

SC and x86's TSO as in Alglave, Maranget and Tautschnig, "Herding cats", TOPLAS 2014; PSO as TSO without the order of a
store and a later relaxed store to another word; RC11 as in Lahav and others, PLDI 2017, with release sequences as C++20
has them. Every candidate execution (who reads from whom, in which order the stores of a word come) is judged by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from guestmem.explore.litmus import WORDS, End, operations

Pair = tuple[int, int]
Relation = set[Pair]


@dataclass
class Event:
    kind: str  # W, R or F
    thread: int
    word: int
    value: int
    strong: bool
    twin: int = -1  # of an addition: its other event


@dataclass
class Execution:
    events: list[Event]
    po: Relation
    rf: dict[int, int]
    co: Relation
    values: dict[int, int] = field(default_factory=dict)

    def all_of(self, test: Callable[[Event], bool]) -> set[int]:
        return {number for number, event in enumerate(self.events) if test(event)}

    @property
    def read_from(self) -> Relation:
        return {(write, read) for read, write in self.rf.items()}

    @property
    def fr(self) -> Relation:
        return {(read, late) for read, write in self.rf.items() for early, late in self.co if early == write}

    @property
    def rmw(self) -> Relation:
        return {(k, e.twin) for k, e in enumerate(self.events) if e.kind == "R" and e.twin >= 0}

    @property
    def po_loc(self) -> Relation:
        e = self.events
        return {(a, b) for a, b in self.po if e[a].kind != "F" and e[b].kind != "F" and e[a].word == e[b].word}

    def external(self, relation: Iterable[Pair]) -> Relation:
        return {(a, b) for a, b in relation if self.events[a].thread != self.events[b].thread}

    def coherent(self) -> bool:
        com = self.read_from | self.co | self.fr
        atomic = all((w, late) not in self.co for r, late in self.rmw for rr, w in self.fr if rr == r and w != late)
        return atomic and acyclic(self.po_loc | com)


def acyclic(relation: Relation) -> bool:
    left = set(relation)
    while left:
        targets = {b for _, b in left}
        kept = {(a, b) for a, b in left if a in targets}
        if len(kept) == len(left):
            return False
        left = kept
    return True


def then(*relations: Relation) -> Relation:
    first = relations[0]
    for second in relations[1:]:
        first = {(a, d) for a, b in first for c, d in second if b == c}
    return first


def closure(relation: Relation) -> Relation:
    found = set(relation)
    while True:
        more = then(found, relation) - found
        if not more:
            return found
        found |= more


def executions(threads: tuple[str, ...]) -> Iterator[Execution]:
    events = [Event("W", -1, word, 0, strong=False) for word in range(len(WORDS))]
    po: Relation = set()
    for thread, text in enumerate(threads):
        mine: list[int] = []
        for step in operations(text):
            kinds = ["R", "W"] if step.kind == "U" else [step.kind]
            first = len(events)
            for k, kind in enumerate(kinds):
                twin = -1 if len(kinds) == 1 else first + 1 - k
                events.append(Event(kind, thread, step.word, step.value, step.strong, twin))
                mine.append(first + k)
        po |= {(a, b) for k, a in enumerate(mine) for b in mine[k + 1 :]}
    writes = [[k for k, e in enumerate(events) if e.kind == "W" and e.word == word] for word in range(len(WORDS))]
    reads = [k for k, e in enumerate(events) if e.kind == "R"]
    orders = [[(every[0], *rest) for rest in itertools.permutations(every[1:])] for every in writes]
    for sources in itertools.product(*[writes[events[read].word] for read in reads]):
        rf = dict(zip(reads, sources, strict=True))
        values = valued(events, rf)
        if values is None:
            continue
        for chosen in itertools.product(*orders):
            co = {(a, b) for order in chosen for k, a in enumerate(order) for b in order[k + 1 :]}
            yield Execution(events, po, rf, co, values)


def valued(events: list[Event], rf: dict[int, int]) -> dict[int, int] | None:
    """What each write stores; None if one would be the cause of itself."""
    values: dict[int, int] = {k: e.value for k, e in enumerate(events) if e.kind == "W" and e.twin < 0}
    for _ in events:
        for k, e in enumerate(events):
            if e.kind == "W" and e.twin >= 0 and rf[e.twin] in values:
                values[k] = values[rf[e.twin]] + e.value
    return values if all(k in values for k, e in enumerate(events) if e.kind == "W") else None


def end_of(x: Execution, threads: int) -> End:
    saw = [
        [x.values[x.rf[k]] for k, e in enumerate(x.events) if e.kind == "R" and e.thread == t] for t in range(threads)
    ]
    last = []
    for word in range(len(WORDS)):
        mine = [k for k, e in enumerate(x.events) if e.kind == "W" and e.word == word]
        (newest,) = [k for k in mine if not any(a == k for a, _ in x.co)]
        last.append(x.values[newest])
    return tuple(map(tuple, saw)), tuple(last)


def fenced(x: Execution) -> Relation:
    """Pairs with a fence, or half of an addition, between them, or that are of an addition: x86's are full fences."""
    fences = x.all_of(lambda e: e.kind == "F")
    locked = x.all_of(lambda e: e.twin >= 0)
    between = {(a, c) for a, b in x.po if b in fences for bb, c in x.po if bb == b}
    return between | {(a, b) for a, b in x.po if a in locked or b in locked}


def is_sc(x: Execution) -> bool:
    return x.coherent() and acyclic(x.po | x.read_from | x.co | x.fr)


def buffered(x: Execution, kept: Callable[[Event, Event], bool]) -> bool:
    e = x.events
    ppo = {(a, b) for a, b in x.po if e[a].kind != "F" and e[b].kind != "F" and kept(e[a], e[b])}
    return x.coherent() and acyclic(ppo | fenced(x) | x.external(x.read_from) | x.co | x.fr)


def is_tso(x: Execution) -> bool:
    return buffered(x, lambda a, b: not (a.kind == "W" and b.kind == "R"))


def is_pso(x: Execution) -> bool:
    return buffered(x, lambda a, b: a.kind == "R" or (b.kind == "W" and b.strong))


def is_rc11(x: Execution) -> bool:
    e = x.events
    same = {(k, k) for k in range(len(e))}
    fences = {(k, k) for k in x.all_of(lambda each: each.kind == "F")}
    rf, fr, rmw = x.read_from, x.fr, x.rmw
    release = {(k, k) for k in x.all_of(lambda each: each.kind == "F" or (each.kind == "W" and each.strong))}
    acquire = {(k, k) for k in x.all_of(lambda each: each.kind == "F" or (each.kind == "R" and each.strong))}
    writes = {(k, k) for k in x.all_of(lambda each: each.kind == "W")}
    sequence = then(writes, same | closure(then(rf, rmw)))
    sw = then(release, same | then(fences, x.po), sequence, rf, same | then(x.po, fences), acquire)
    init = {(k, b) for k, each in enumerate(e) if each.thread < 0 for b, other in enumerate(e) if other.thread >= 0}
    hb = closure(x.po | init | sw)
    eco = closure(rf | x.co | fr)
    coherent = all(a != b for a, b in hb) and all(a != b for a, b in then(hb, eco))
    psc = then(fences, hb | then(hb, eco, hb), fences)
    atomic = all((w, late) not in x.co for r, late in rmw for rr, w in fr if rr == r and w != late)
    return coherent and atomic and acyclic(psc) and acyclic(x.po | rf)


MODELS: dict[str, Callable[[Execution], bool]] = {"sc": is_sc, "tso": is_tso, "pso": is_pso, "rc11": is_rc11}


def allowed(threads: tuple[str, ...], *names: str) -> dict[str, set[End]]:
    """The ends that each of some published models allows."""
    found: dict[str, set[End]] = {name: set() for name in names}
    for x in executions(threads):
        for name in names:
            if MODELS[name](x):
                found[name].add(end_of(x, len(threads)))
    return found
