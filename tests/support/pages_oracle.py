"""A table as a dict of pages: what each operation should leave, in a few lines, without any tree.

A page of the input is {"pa", "rights", "size", "start", "young"} (the leaf it lies in) or {"mark"}; absent if nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Leaf", "PagesOracle", "Refused"]


class Refused(Exception):  # noqa: N818 - a status, as the kernel's
    """What the operation should report; what was done before stays."""


class Leaf(NamedTuple):
    start: int
    size: int
    pa: int
    rights: str
    young: bool


class PagesOracle:
    """``sizes``: leaf sizes in bytes, largest first; the last is the page."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.page = sizes, sizes[-1]
        self.at: dict[int, Any] = {}

    def pages(self, start: int, size: int) -> range:
        return range(start, start + size, self.page)

    def leaf(self, ipa: int) -> Leaf | None:
        found = self.at.get(ipa)
        return found if isinstance(found, Leaf) else None

    def drop(self, ipa: int) -> None:
        """Forget the whole leaf, or the mark, at a page."""
        found = self.leaf(ipa)
        for page in self.pages(found.start, found.size) if found else [ipa]:
            self.at.pop(page, None)

    def put(self, leaf: Leaf) -> None:
        for page in self.pages(leaf.start, leaf.size):
            self.drop(page)
        for page in self.pages(leaf.start, leaf.size):
            self.at[page] = leaf

    def cut(self, at: int) -> None:
        """Split the leaf that reaches over ``at``, no further than needed."""
        while (leaf := self.leaf(at)) and leaf.start < at:
            step = self.sizes[self.sizes.index(leaf.size) + 1]
            self.split(leaf.start, self.page, step)

    def cut_both(self, start: int, end: int, exact: bool) -> None:
        if exact:
            self.cut(start)
            self.cut(end)

    def size_at(self, ipa: int, pa: int, left: int, largest: int) -> int:
        return next(size for size in self.sizes if size <= min(largest, left) and (ipa | pa) % size == 0)

    def map(self, ipa: int, size: int, pa: int, rights: str, largest: int, skip: bool, exact: bool) -> int:
        done, first, end = 0, ipa, ipa + size
        while ipa < end:
            step = self.size_at(ipa, pa, end - ipa, largest)
            new = Leaf(ipa, step, pa, rights, True)
            old = self.leaf(ipa)
            if any(isinstance(self.at.get(page), int) for page in self.pages(ipa, step)):
                raise Refused("EPERM")
            if old and old._replace(rights=rights) == new:
                if not skip:
                    raise Refused("EAGAIN")
            else:
                if exact and old and not (first <= old.start and old.start + old.size <= end):
                    for bound in (first, end):
                        if old.start < bound < old.start + old.size:
                            self.cut(bound)
                    for page in self.pages(old.start, old.size):
                        if first <= page < end:
                            self.at.pop(page, None)
                self.put(new)
                done += 1
            ipa, pa = ipa + step, pa + step
        return done

    def annotate(self, ipa: int, size: int, mark: int) -> None:
        for page in self.pages(ipa, size):
            self.drop(page)
            self.at[page] = mark

    def leaves(self, ipa: int, size: int) -> list[Leaf]:
        found = (self.leaf(page) for page in self.pages(ipa, size))
        return list(dict.fromkeys(leaf for leaf in found if leaf))

    def unmap(self, ipa: int, size: int) -> int:
        done = 0
        for page in self.pages(ipa, size):
            done += page in self.at
            self.drop(page)
        return done

    def change(self, leaf: Leaf, **fields: Any) -> None:
        new = leaf._replace(**fields)
        for page in self.pages(leaf.start, leaf.size):
            self.at[page] = new

    def write_protect(self, ipa: int, size: int) -> int:
        touched = [leaf for leaf in self.leaves(ipa, size) if "w" in leaf.rights]
        for leaf in touched:
            self.change(leaf, rights=leaf.rights.replace("w", "-"))
        return len(touched)

    def young(self, ipa: int, size: int, clear: bool) -> int:
        touched = [leaf for leaf in self.leaves(ipa, size) if leaf.young]
        for leaf in touched if clear else []:
            self.change(leaf, young=False)
        return len(touched)

    def split(self, ipa: int, size: int, largest: int) -> None:
        for leaf in self.leaves(ipa, size):
            step = max(s for s in self.sizes if s <= largest)
            if leaf.size > step:
                for offset in range(0, leaf.size, step):
                    small = leaf._replace(start=leaf.start + offset, size=step, pa=leaf.pa + offset)
                    for page in self.pages(small.start, step):
                        self.at[page] = small

    def collapse(self, ipa: int, size: int, largest: int) -> int:
        done = 0
        for small, big in reversed(list(zip(self.sizes[1:], self.sizes, strict=False))):
            if big > largest:
                continue
            for start in range(-(-ipa // big) * big, (ipa + size) // big * big, big):
                parts = [self.leaf(start + offset) for offset in range(0, big, small)]
                first = parts[0]
                if not first or first.pa % big:
                    continue
                alike = [Leaf(start + at, small, first.pa + at, first.rights, True) for at in range(0, big, small)]
                if [part and part._replace(young=True) for part in parts] == alike:
                    self.put(Leaf(start, big, first.pa, first.rights, any(part.young for part in parts if part)))
                    done += 1
        return done
