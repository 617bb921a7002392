"""The naive oracle of a range map: a dict with every index."""

from __future__ import annotations


def put(indices: dict[int, int], start: int, end: int, value: int) -> None:
    """Let every index in [start, end) have ``value``, 0 for none."""
    for index in range(start, end):
        if value:
            indices[index] = value
        else:
            indices.pop(index, None)


def ranges_of(indices: dict[int, int]) -> list[tuple[int, int, int]]:
    """(start, end, value) of each stretch of one value."""
    found: list[tuple[int, int, int]] = []
    for index in sorted(indices):
        if found and found[-1][1] == index and found[-1][2] == indices[index]:
            found[-1] = (found[-1][0], index + 1, found[-1][2])
        else:
            found.append((index, index + 1, indices[index]))
    return found
