"""Counting writes where they went: in memory itself.

Each write of a vCPU is a locked increment of a word that only one frame uses. So writes are lost or not by what the
words hold at the end, and a word whose frame has lost this memory must not change any more.
"""

from __future__ import annotations

from ..engines.load_words import TAG_BYTE
from .plan import Plan, Step

__all__ = ["Counters"]

_COUNTER = (1 << 8 * int(TAG_BYTE)) - 1


class Counters:
    """The counters that writes leave in the pages, and what they must and must not become."""

    def __init__(self, plan: Plan) -> None:
        self._word = plan.memory.word
        self._words = plan.words
        self._before = sum(map(self._read, self._words))
        self._ended: dict[int, int] = {}
        self.wrong = 0

    def _read(self, word: int) -> int:
        """The counter in a word, without its tag and its ``ret``."""
        return self._word(word) & _COUNTER

    def step_begins(self, step: Step) -> None:
        """What the step finds or gives back may be written again. O(words of the step)."""
        for word in step.words_that_begin:
            self._settle(word)

    def step_ended(self, step: Step) -> None:
        """From now on nobody may write where the step has taken memory away. O(words of the step)."""
        for word in step.words_that_end:
            self._settle(word)
            self._ended[word] = self._read(word)

    def _settle(self, word: int) -> None:
        """Count writes to a word since it may not be written any more, if so; it is looked at no longer."""
        ended = self._ended.pop(word, None)
        if ended is not None:
            self.wrong += self._read(word) - ended

    def look(self) -> None:
        """Count writes to memory that was taken away. O(words that are)."""
        for word, value in self._ended.items():
            now = self._read(word)
            self.wrong += now - value
            self._ended[word] = now

    def start_over(self) -> None:
        """All slots go, and come again."""
        self.look()
        self._ended.clear()

    def written(self) -> int:
        """Writes that are in memory, since this object was made."""
        return sum(map(self._read, self._words)) - self._before
