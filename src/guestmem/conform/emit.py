"""A divergence as a Python script that anyone can run who has guestmem; ``emit_c`` has one for those who have not."""

from __future__ import annotations

from .calls import Answer
from .run import Divergence
from .words import answer_in_words, difference_in_words

__all__ = ["as_python", "heading", "other_in_short"]


def other_in_short(found: Divergence) -> str:
    """Whose answers are expected, in a word: the model, or a log."""
    return "log" if "log" in found.other else "model"


def heading(found: Divergence, name: str) -> list[str]:
    """What diverges, in plain words, line by line."""
    call, at = found.calls[found.at], found.at
    answered, expected = found.answered[at], found.expected[at]
    lines = [
        f"{name}",
        f"answers call {at + 1} of {len(found.calls)}, {call},",
        f"with {answer_in_words(answered)};",
        f"{found.other} answers {answer_in_words(expected)}.",
    ]
    if answered is not None and expected is not None and answered.result == expected.result:
        lines.append(f"That is, {difference_in_words(answered, expected, other_in_short(found))}.")
    if ":" in found.why:
        lines.append(f"The model's reason: {found.why}.")
    if found.promise:
        lines.append(f"Of the promises: {found.promise}.")
    if not found.repeats:
        lines.append("When these calls were made again, the answers agreed: it depends on more than the calls.")
    if found.interrupted:
        lines.append("Ctrl-C ended the search for a shorter sequence, and for a known difference that explains it.")
    return lines


def as_python(found: Divergence, name: str) -> str:
    """A script that carries the calls out and prints each answer; it exits with 1 if the kernel still diverges."""
    lines = [
        '"""' + "\n".join(line.replace("\\", "/") for line in heading(found, name)) + '\n"""',
        "",
        "from guestmem.conform.calls import Answer, Call",
    ]
    lines += ["from guestmem.conform.replay import replay", "", "CALLS = ["]
    for (kind, args), answer in zip(found.calls, found.expected, strict=True):
        numbers = ", ".join(f"{value:#x}" for value in args)
        expected = "None" if answer is None else _answer(answer)
        lines.append(f'    (Call("{kind}", ({numbers}{"," if len(args) == 1 else ""})), {expected}),')
    lines += ["]", "", 'if __name__ == "__main__":', f'    raise SystemExit(replay(CALLS, "{other_in_short(found)}"))']
    return "\n".join(lines) + "\n"


def _answer(answer: Answer) -> str:
    given = [str(answer.result)]
    if answer.log or answer.exits:
        given.append(repr(answer.log))
    if answer.exits:
        given.append(repr(answer.exits))
    return f"Answer({', '.join(given)})"
