"""A finding's story: the bug in three lines, then the steps that it depends on, in columns, in KVM's words.

Which steps these are, ``causes.py`` says. What a word is and what its value means, the scene does (``Scene.words``),
and what changed in words of one thread (``Scene.tell``). The rest of each thread is counted, with the functions that
it went through. ``story.whole_story`` has every step.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from . import operations as op
from .causes import Causes, causes
from .citations import citation
from .finding import Finding
from .kernel import kernel
from .machine import Machine
from .record import Did
from .story import Columns, Event, number_text, whole_story
from .world import World

__all__ = ["WIDTH", "story"]

WIDTH = 79
"""Columns of a story."""
_CALLERS, _FOLDED = 2, 3
_NARROW = 30
"""Columns in which a path would be broken."""


def story(machine: Machine, moves: Sequence[int], finding: Finding | None, *, width: int = WIDTH) -> str:
    """What a schedule shows, as far as the finding depends on it; all of it if there is none, or none is known."""
    its = causes(machine, moves, finding) if finding is not None else None
    if its is None or finding is None or not its.steps:
        return whole_story(machine, moves, width=width)
    return _Tale(machine, its, finding, width).text()


class _Tale:
    def __init__(self, machine: Machine, its: Causes, finding: Finding, width: int) -> None:
        self.machine, self.causes, self.finding, self.width = machine, its, finding, width
        self.world: World = machine.tree.world
        self.names = [thread.name for thread in self.world.threads]
        self.landed = {event.lands: number for number, event in enumerate(its.events) if event.lands >= 0}
        self.shown = sorted({*its.steps, *(self.landed[s] for s in its.steps if self._lands_late(s))})
        self.numbers = {step: str(number) for number, step in enumerate(self.shown, 1)}
        self.columns = Columns(self.names, width)

    def _lands_late(self, step: int) -> bool:
        """Whether a store leaves its buffer only after another step that matters."""
        return step in self.landed and any(step < other < self.landed[step] for other in self.causes.steps)

    def number(self, step: int) -> str:
        return self.numbers.get(step, "?")

    def text(self) -> str:
        lines = []
        three = kernel(self.causes, self.names, self._place, self._value, self.number)
        if three:
            lines += ["The bug:"]
            for line in three:
                lines += self._wrapped(line, "  ", "    ")
            lines.append("")
        every = len(self.causes.events)
        what = f"{len(self.shown)} of {every} steps matter:"
        if self.causes.alone:
            what = f"No order between threads is needed; what {self.finding.thread} changed, of {every} steps:"
        lines += [*self._wrapped(what, "", ""), ""]
        lines += self.columns.head()
        last, turns = -1, [0] * len(self.names)
        for step in self.shown:
            event = self.causes.events[step]
            if last not in {-1, event.thread}:
                lines.append("")
            last = event.thread
            if event.turn >= 0:
                lines += self._folded(event.thread, turns[event.thread], event.turn)
                turns[event.thread] = event.turn + 1
            lines += self.columns.cell(event.thread, self.numbers[step], self._paragraphs(step, event))
        lines += self._ends(last, turns)
        return "\n".join([*lines, *self._cited()])

    def _wrapped(self, text: str, first: str, rest: str) -> list[str]:
        return textwrap.wrap(text, self.width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)

    # One step.

    def _paragraphs(self, step: int, event: Event) -> list[str]:
        if event.lands >= 0:
            return [f"the store of {self.number(event.lands)} reaches memory: {self._place(event)}"]
        did = self.causes.schedule.lives[event.thread].did[event.turn]
        where = did.calls[-1].where if did.calls else event.where
        if where is None:
            return [self._head(step, event)]
        if self.columns.wide < _NARROW:
            return [self._head(step, event), f"{where.file.rpartition('/')[2]}:{where.line} {where.function}"]
        outer = [call.where for call in did.calls[-2::-1] if not call.where.file.startswith("explore/")]
        callers = [each.function for each in outer if each.function[:1] != "<" and each.function != where.function]
        path, from_ = f"{where} {where.function}", list(dict.fromkeys(callers))[:_CALLERS]
        return [self._head(step, event), path + (f", from {', '.join(from_)}" if from_ else "")]

    def _place(self, event: Event) -> str:
        return self._told(event, event.value)[0] or event.place

    def _told(self, event: Event, value: int) -> tuple[str, str]:
        """What a step's word is, and what a value of it means, in the scene's words."""
        if event.at < 0 or event.memory is None:
            return "", ""
        place = self.world.places[self.machine.tree.points[event.at]]
        if place.region.told is None:
            return "", ""
        base, compact, values = place.region.base, self.machine.tree.compact, event.memory.values

        def word(index: int) -> int:
            at = compact.get(base + index)
            return self.world.initial[base + index] if at is None else values[at]

        return place.region.told(place.index, value, word)

    def _value(self, event: Event, value: int) -> str:
        return self._told(event, value)[1] or number_text(value)

    def _head(self, step: int, event: Event) -> str:
        place = self._place(event)
        text = f"{event.what} {place}".strip()
        if event.buffered:
            text += f" = {self._value(event, event.value)}"
        elif event.code >= op.STORE_RELAXED and event.before is not None and event.after is not None:
            if event.before != event.after:
                text += f": {self._value(event, event.before)} → {self._value(event, event.after)}"
            elif event.code == op.COMPARE_EXCHANGE:
                text += f" fails: it is {self._value(event, event.before)}"
            elif event.code < op.LOCK:
                text += f": stays {self._value(event, event.after)}"
        elif event.returned is not None:
            text += f" = {self._value(event, event.returned)}"
        remarks = self._remarks(step, event)
        return text + (f" ({'; '.join(remarks)})" if remarks else "")

    def _remarks(self, step: int, event: Event) -> list[str]:
        remarks = []
        if event.buffered:
            late, landed = self._lands_late(step), self.landed.get(step)
            where = "in the store buffer" if landed is not None else "in the store buffer to the end"
            remarks += [where] if late or landed is None else []
        elif event.turn >= 0 and event.remark:
            remarks.append(event.remark)
        if event.turn >= 0 and (event.code <= op.LOAD_ACQUIRE or op.UNLOCK < event.code <= op.LOCK):
            source = self.causes.schedule.source(step)
            source = self.causes.schedule.issued(source) if source >= 0 else source
            if source in self.numbers:
                remarks.append(f"from {self.number(source)}")
            elif source < 0 and event.code <= op.LOAD_ACQUIRE:
                remarks.append("as at first")
            elif event.code <= op.LOAD_ACQUIRE:
                remarks.append(f"from {self.names[self.causes.events[source].thread]}, before")
        return remarks

    # What is not told step by step.

    def _folded(self, thread: int, begin: int, end: int) -> list[str]:
        """What a thread did between two of its steps: how many more, in which functions; what changed in its own."""
        life = self.causes.schedule.lives[thread].did
        between = life[begin:end]
        changes = [line for did in life[begin : end + 1] for line in did.private]
        lines: list[str] = []
        if between:
            functions = list(dict.fromkeys(self._function(did) for did in between))
            more = ", …" if len(functions) > _FOLDED else ""
            text = f"… {len(between)} more: {', '.join(functions[:_FOLDED])}{more}"
            lines += self.columns.cell(thread, "", [text])
        for change in changes:
            lines += self.columns.cell(thread, "", [change])
        return lines

    @staticmethod
    def _function(did: Did) -> str:
        return did.calls[-1].where.function if did.calls else "?"

    def _ends(self, last: int, turns: Sequence[int]) -> list[str]:
        """How the thread failed."""
        lines: list[str] = []
        for thread, life in enumerate(self.causes.schedule.lives):
            if life.failed is None or self.names[thread] != self.finding.thread:
                continue
            lines += [""] * (last not in {-1, thread})
            lines += self._folded(thread, turns[thread], life.answered)
            lines += [line for change in life.after for line in self.columns.cell(thread, "", [change])]
            error, message, where = life.failed
            lines += self.columns.cell(thread, "✗", [f"{error}: {message}", f"{where} {where.function}"])
        return lines

    def _cited(self) -> list[str]:
        """What the functions of the steps stand for in the kernel, where their docstrings, or their files', say so."""
        found: dict[str, str] = {}
        for step in self.shown:
            event = self.causes.events[step]
            if event.turn < 0:
                continue
            calls = [call.where for call in self.causes.schedule.lives[event.thread].did[event.turn].calls]
            for where in reversed(calls):
                if text := citation(where):
                    found.setdefault(text, where.file)
                    break
        lines = ["", "What they stand for, as their docstrings say:"] if found else []
        for text, file in found.items():
            lines += self._wrapped(f"{file}: {text}", "  ", "    ")
        return lines
