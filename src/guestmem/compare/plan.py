"""From a recorded timeline to steps that can be replayed: the same changes on memory of our own, and a load for each.

Each transaction becomes a step. Its load holds, for every range of frames that the transaction changes, the same
number of pages (a firmware area of 256 KiB would otherwise never be hit), and some pages elsewhere. In each page the
vCPUs touch eight bytes at a place that depends on the frame, so that two frames that alias one host page count apart.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..abi.structures import KVM_MEM_MAX_NR_PAGES
from ..engines import HostMemory, Load, Target
from ..engines.load_words import DEVICE_TAG, TAG_BYTE
from ..errors import GuestmemError, UsageError
from ..memslots import Change, ChangeKind, Slot
from ..memslots.slot import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from ..traces import RecordedChange, Timeline, Transaction
from ..units import PAGE_SHIFT, PAGE_SIZE, format_size
from .files import TraceFiles
from .pieces import Range, cut

__all__ = ["Plan", "Step", "plan"]

PAGES_A_RANGE = 16
PAGES_ELSEWHERE = 64
ELSEWHERE_SLOTS = 16
"""Of so many slots, or up to twice as many, that a step does not touch, vCPUs touch that many pages."""
PAGE_SIZES = (4 << 10, 16 << 10, 64 << 10)
"""Page sizes of hosts: x86 has the first, arm64 all (Linux ``arch/arm64/Kconfig``)."""
_KNOWN_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
_RET = b"\xc3"
"""Last byte of each word: a ``ret``, so that real vCPUs can fetch there. Before it the tag, before that the counter."""
_TAGS = int(DEVICE_TAG) - 1
MOST_RANGES = 256
"""Of a step with more changed ranges than this, so many, evenly chosen, are touched."""


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction: changes with real host addresses, and what vCPUs touch around it."""

    index: int
    first_line: int
    last_line: int
    as_id: int
    changes: tuple[Change, ...]
    load: Load

    @property
    def words_that_end(self) -> tuple[int, ...]:
        """Host words that no vCPU may write after the step, though it might before."""
        return tuple(
            {
                target.old
                for target in self.load.targets
                if target.changed
                and target.old
                and not target.old_readonly
                and (target.new != target.old or target.new_readonly)
            }
        )

    @property
    def words_that_begin(self) -> tuple[int, ...]:
        """Host words that vCPUs may write from the load of the step on, before or after its changes.

        Those of before, too: an earlier step may have given them back in a range of which it touched other pages.
        """
        before = {target.old for target in self.load.targets if target.old and not target.old_readonly}
        return tuple(before | {target.new for target in self.load.targets if target.new and not target.new_readonly})


@dataclass(slots=True)
class Plan:
    """All steps of a trace on memory of our own, which ``close()`` gives back."""

    path: str
    steps: tuple[Step, ...]
    memory: HostMemory
    address_spaces: int
    page_size: int
    """Of the recorded guest, in bytes."""
    notes: list[str]
    """What is replayed in another way than it was recorded, in words."""
    kinds_until: int
    """After so many steps each kind of change that there is was there."""
    bound: TraceFiles
    """Its guest_memfds."""
    dirty_log: bool = False
    """Whether slots log dirty pages, all that can."""

    @property
    def words(self) -> tuple[int, ...]:
        """Every host word that some vCPU may touch."""
        return tuple(
            {word for step in self.steps for target in step.load.targets for word in (target.old, target.new) if word}
        )

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()
        self.bound.close()


def _spread(start: int, end: int, count: int) -> list[int]:
    """``count`` frames of ``[start, end)``, evenly, first and last among them; repeated if there are fewer."""
    if count == 1:
        return [start]
    return [start + (end - 1 - start) * k // (count - 1) for k in range(count)]


_Host = Callable[[Slot, int], int]
"""Host address of what a guest finds at a frame of a slot."""


def _word(slot: Slot | None, gfn: int, host: _Host) -> int:
    """Host address of the eight bytes that stand for frame ``gfn``."""
    if slot is None:
        return 0
    return host(slot, gfn) + ((gfn ^ gfn >> 9) * 8) % PAGE_SIZE


def _target(gfn: int, old: Slot | None, new: Slot | None, host: _Host, *, changed: bool) -> Target:
    gpa = (gfn << PAGE_SHIFT) + ((gfn ^ gfn >> 9) * 8) % PAGE_SIZE
    return Target(
        gpa,
        _word(old, gfn, host),
        _word(new, gfn, host),
        old is not None and old.readonly,
        new is not None and new.readonly,
        changed=changed,
        private=any(slot is not None and slot.guest_memfd for slot in (old, new)),
    )


def _of_one_kind(old: Slot | None, new: Slot | None) -> bool:
    """Whether one kind of access reaches a frame before and after: private memory on both sides, or on none."""
    return old is None or new is None or bool(old.guest_memfd) == bool(new.guest_memfd)


class _Words:
    """Host words, each with the one frame that uses it, and a tag: one frame's words have different ones."""

    def __init__(self) -> None:
        self.tags: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._of_frame: Counter[int] = Counter()

    def take(self, target: Target) -> Target | None:
        """The target with its tags; None if another frame has one of its words."""
        words = [word for word in (target.old, target.new) if word]
        if any(self._owners.setdefault(word, target.gpa) != target.gpa for word in words):
            return None
        for word in words:
            if word not in self.tags:
                self.tags[word] = 1 + self._of_frame[target.gpa] % _TAGS
                self._of_frame[target.gpa] += 1
        return target._replace(old_tag=self.tags.get(target.old, 0), new_tag=self.tags.get(target.new, 0))


def _load(as_id: int, changed: list[Range], untouched: Sequence[Slot], words: _Words, host: _Host) -> Load:
    """Targets for one step; a word that another frame has already is left out."""
    if len(changed) > MOST_RANGES:
        changed = [changed[k * len(changed) // MOST_RANGES] for k in range(MOST_RANGES)]
    targets = [
        _target(gfn, old, new, host, changed=True)
        for start, end, old, new in changed
        if _of_one_kind(old, new)
        for gfn in _spread(start, end, PAGES_A_RANGE)
    ]
    for slot in untouched:
        count = max(1, PAGES_ELSEWHERE // min(ELSEWHERE_SLOTS, len(untouched)))
        frames = _spread(slot.base_gfn, slot.end_gfn, count)
        targets += [_target(gfn, slot, slot, host, changed=False) for gfn in frames]
    return Load([taken for target in targets if (taken := words.take(target)) is not None], as_id)


def _memory(ranges: Sequence[tuple[int, int]]) -> HostMemory:
    """Host memory, below 2**40 and with its large pages where there is room for that."""
    try:
        return HostMemory(ranges, low=True)
    except GuestmemError:
        return HostMemory(ranges)


def plan(timeline: Timeline, *, page_size: int = 0, files: bool = False, dirty_log: bool = False) -> Plan:
    """Make a timeline replayable. O(changes x slots) time; memory is committed only where touched.

    ``page_size`` is that of the recorded guest, in bytes, one of PAGE_SIZES; 0: 4 KiB, or more if a slot is so large
    that KVM takes it with larger pages only. A page is replayed as one page of the engine's, of 4 KiB, so all addresses
    shrink; what else differs from the recording is in the plan's ``notes``. Slots that were there before the trace
    began are created first, in a step of their own. ``files``: guest_memfds are files (``Plan.files``), else memory by
    ``userspace_addr``. ``dirty_log``: all slots log dirty pages, but those with a file. Raises UsageError for a page
    size that the trace cannot have, and for a slot of which the trace does not tell where it was.
    """
    transactions = (*_before_it_began(timeline), *timeline.transactions)
    recorded = [change for transaction in transactions for change in transaction.changes]
    shrink = _shrinking(recorded, page_size)
    memory = _memory(
        [
            (change.userspace_addr, change.userspace_addr + change.memory_size)
            for change in (_shrunk(each.change, shrink) for each in recorded)
            if not change.deletes
        ]
    )
    bound = TraceFiles(timeline, transactions if files else (), shrink)
    place = 0
    spaces: dict[int, dict[int, Slot]] = {}
    orders: dict[int, list[tuple[int, int]]] = {}
    words = _Words()
    steps = []
    for transaction in transactions:
        slots = spaces.setdefault(transaction.as_id, {})
        ordered = orders.setdefault(transaction.as_id, [])
        touched = {each.change.slot for each in transaction.changes}
        before = [slots[slot] for slot in touched if slot in slots]
        ranges: list[tuple[int, int]] = []
        changes = []
        for each in transaction.changes:
            change = bound.bind(place, _shrunk(each.change, shrink))
            place += 1
            if not change.deletes:
                change = change._replace(userspace_addr=memory.translate(change.userspace_addr))
                if dirty_log and not change.flags & KVM_MEM_GUEST_MEMFD:
                    change = change._replace(flags=change.flags | KVM_MEM_LOG_DIRTY_PAGES)
            if (old := slots.pop(change.slot, None)) is not None:
                ranges.append((old.base_gfn, old.end_gfn))
                del ordered[bisect_left(ordered, (old.base_gfn, old.id))]
            if not change.deletes:
                slots[change.slot] = change.as_slot()
                insort(ordered, (change.base_gfn, change.slot))
                ranges.append((change.base_gfn, change.base_gfn + change.npages))
            if each.kind is not ChangeKind.NOTHING and (old is None or change.deletes or old != change.as_slot()):
                changes.append(change)
        # Slots of one set never overlap, so none that is not touched lies in the ranges.
        changed = cut(ranges, before, [slots[slot] for slot in touched if slot in slots])
        sample = ordered[:: max(1, len(ordered) // ELSEWHERE_SLOTS)]
        untouched = [slots[name] for _, name in sample if name not in touched]
        load = _load(transaction.as_id, changed, untouched, words, bound.host)
        steps.append(
            Step(
                transaction.index,
                transaction.first_line,
                transaction.last_line,
                transaction.as_id,
                tuple(changes),
                load,
            )
        )
    made = Plan(
        timeline.path,
        tuple(steps),
        memory,
        1 + max(spaces, default=0),
        PAGE_SIZE << shrink,
        [
            *(bound.notes() if files else _no_files(recorded)),
            *_notes(timeline, recorded, shrink),
            *(
                [f"dirty logging on: all slots log{', but those with a file' * (bound.bindings > 0)}"]
                if dirty_log
                else []
            ),
        ],
        _kinds_until(transactions),
        bound,
        dirty_log,
    )
    for word in made.words:
        memory.write(word + int(TAG_BYTE), bytes([words.tags[word]]) + _RET)
    return made


def _before_it_began(timeline: Timeline) -> list[Transaction]:
    """For each address space, the creates of slots that the trace does not create; UsageError if one is not known."""
    creates: dict[int, list[RecordedChange]] = {}
    for index, slot in sorted(timeline.assumed.items()):
        first = timeline.changes[index]
        where = f"{timeline.path}:{first.line}: slot {slot.id}"
        if not slot.userspace_addr:
            raise UsageError(f"{where}: nothing tells where it was before the trace began; record from the VM's start")
        mine = creates.setdefault(slot.as_id, [])
        for other in mine:
            if slot.base_gfn < other.change.base_gfn + other.change.npages and other.change.base_gfn < slot.end_gfn:
                raise UsageError(
                    f"{where}: it may have overlapped slot {other.change.slot} before the trace began; record from the "
                    "VM's start"
                )
        change = Change.of(slot)
        mine.append(first._replace(change=change, kind=ChangeKind.CREATE, old=None, implied=False))
    return [Transaction(0, as_id, tuple(mine)) for as_id, mine in sorted(creates.items())]


def _kinds_until(transactions: Iterable[Transaction]) -> int:
    """After how many transactions each kind of change that occurs has occurred."""
    seen: set[ChangeKind] = set()
    until = 0
    for i, transaction in enumerate(transactions):
        kinds = {each.kind for each in transaction.changes}
        if kinds - seen:
            seen |= kinds
            until = i + 1
    return until


def _shrinking(recorded: Sequence[RecordedChange], page_size: int) -> int:
    """By how many bits all addresses shrink, so that a page of ``page_size`` becomes one of the engine's."""
    if page_size not in {0, *PAGE_SIZES}:
        raise UsageError(f"page size: {page_size} is not one of {', '.join(map(str, PAGE_SIZES))}")
    largest = max(recorded, key=lambda each: each.change.npages, default=None)
    most = largest.change.memory_size if largest else 0
    if not page_size:
        page_size = next(size for size in PAGE_SIZES if most <= size * KVM_MEM_MAX_NR_PAGES or size == PAGE_SIZES[-1])
    if largest and most > page_size * KVM_MEM_MAX_NR_PAGES:
        raise UsageError(
            f"page size: with {format_size(page_size)} a slot has at most {page_size * KVM_MEM_MAX_NR_PAGES:#x} bytes; "
            f"line {largest.line} has {most:#x}"
        )
    for each in recorded:
        change = each.change
        for name in ("guest_phys_addr", "memory_size", "userspace_addr"):
            if getattr(change, name) % page_size and not change.deletes:
                value = getattr(change, name)
                raise UsageError(f"page size: line {each.line}: {name} {value:#x} is not a multiple of {page_size:#x}")
    return page_size.bit_length() - 1 - PAGE_SHIFT


def _shrunk(change: Change, shrink: int) -> Change:
    """The change as the engine replays it: pages of 4 KiB, and the flags that engines know."""
    return change._replace(
        base_gfn=change.base_gfn >> shrink,
        npages=change.npages >> shrink,
        userspace_addr=change.userspace_addr >> shrink,
        flags=change.flags & _KNOWN_FLAGS,
    )


def _no_files(recorded: Iterable[RecordedChange]) -> Iterator[str]:
    """On an engine that replays no files."""
    if bound := sum(not each.change.deletes and bool(each.change.flags & KVM_MEM_GUEST_MEMFD) for each in recorded):
        yield (
            f"{bound} change{'s' * (bound != 1)} with KVM_MEM_GUEST_MEMFD: replayed by userspace_addr, as shared memory"
        )


def _notes(timeline: Timeline, recorded: Sequence[RecordedChange], shrink: int) -> list[str]:
    """What is replayed in another way than it was recorded."""
    notes = []
    known = _KNOWN_FLAGS | KVM_MEM_GUEST_MEMFD
    if other := {each.change.flags & ~known for each in recorded if not each.change.deletes} - {0}:
        notes.append(
            f"flags {', '.join(f'{each:#x}' for each in sorted(other))} are left out: engines know none of them"
        )
    if refused := len(timeline.refused):
        notes.append(f"{refused} change{'s' * (refused != 1)} that KVM refused: left out, as they changed nothing")
    if assumed := len(timeline.assumed):
        notes.append(
            f"{assumed} slot{'s' * (assumed != 1)} from before the trace began: created first, of the size that is "
            "told, else one page"
        )
    if shrink:
        notes.append(
            f"pages of {format_size(PAGE_SIZE << shrink)}: each is replayed as one page of {format_size(PAGE_SIZE)}"
        )
    return notes
