"""The load of each step covers all that its transaction changes, and knows what is there before and after."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestmem.compare.plan import PAGES_A_RANGE, Plan, plan
from guestmem.traces import read
from guestmem.units import PAGE_SIZE

TRACES = Path(__file__).parents[2] / "examples" / "traces"


@contextmanager
def planned(path: Path) -> Iterator[Plan]:
    made = plan(read(path))
    try:
        yield made
    finally:
        made.close()


def pages(path: Path, lines: int) -> list[str]:
    """A random legal log over few pages: per step, some slots deleted and some created, in QEMU's order."""
    rng = random.Random(lines)
    slots: dict[int, tuple[int, int, int, int]] = {}
    text = []
    time = 0.0
    for _ in range(lines):
        time += 1.0
        for slot in rng.sample(sorted(slots), rng.randint(0, len(slots))):
            base, _, hva, _ = slots.pop(slot)
            text.append(
                f"7@{time:.6f}:kvm_set_user_memory Slot#{slot} flags=0x0 gpa={base:#x} size=0x0 ua={hva:#x} ret=0"
            )
        for slot in range(6):
            base, count = rng.randrange(40), rng.randint(1, 9)
            taken = {page for b, n, *_ in slots.values() for page in range(b // PAGE_SIZE, b // PAGE_SIZE + n)}
            if slot in slots or taken & set(range(base, base + count)) or rng.random() < 0.4:
                continue
            hva = 0x7F0000000000 + rng.choice((base, rng.randrange(64))) * PAGE_SIZE
            flags = rng.choice((0, 2))
            slots[slot] = (base * PAGE_SIZE, count, hva, flags)
            text.append(
                f"7@{time:.6f}:kvm_set_user_memory Slot#{slot} flags={flags:#x} gpa={base * PAGE_SIZE:#x} "
                f"size={count * PAGE_SIZE:#x} ua={hva:#x} ret=0"
            )
    path.write_text("\n".join(text) + "\n")
    return text


@pytest.mark.parametrize("case", range(12))
def test_each_target_is_what_a_dict_of_pages_says(tmp_path: Path, case: int) -> None:
    log = tmp_path / "random.log"
    pages(log, 8 + case)
    timeline = read(log)
    with planned(log) as made:
        before: dict[int, tuple[int, bool]] = {}
        slots: dict[int, tuple[int, int]] = {}
        for step, transaction in zip(made.steps, timeline.transactions, strict=True):
            after = dict(before)
            touched = set()
            for each in transaction.changes:
                change = each.change
                if change.slot in slots:
                    base, count = slots.pop(change.slot)
                    touched |= set(range(base, base + count))
                    for gfn in range(base, base + count):
                        after.pop(gfn, None)
                if not change.deletes:
                    slots[change.slot] = (change.base_gfn, change.npages)
                    for page in range(change.npages):
                        gfn = change.base_gfn + page
                        touched.add(gfn)
                        after[gfn] = (change.userspace_addr + page * PAGE_SIZE, bool(change.flags & 2))
            for target in step.load.targets:
                gfn, offset = divmod(target.gpa, PAGE_SIZE)
                old, new = before.get(gfn), after.get(gfn)
                assert target.old == (made.memory.translate(old[0]) + offset if old else 0)
                assert target.new == (made.memory.translate(new[0]) + offset if new else 0)
                assert target.old_readonly == bool(old and old[1])
                assert target.new_readonly == bool(new and new[1])
                assert target.changed == (gfn in touched)
            seen = {target.gpa // PAGE_SIZE for target in step.load.targets if target.changed}
            assert seen <= touched
            # Only a word that another frame has already may be missing.
            assert len(touched - seen) <= sum(1 for gfn in touched if gfn in before or gfn in after)
            before = after


def test_every_changed_range_of_the_boot_gets_the_same_number_of_targets() -> None:
    with planned(TRACES / "pc-seabios-smp2.log") as made:
        window = next(step for step in made.steps if (step.first_line, step.last_line) == (10, 16))
        changed = [target for target in window.load.targets if target.changed]
        small = [target for target in changed if 0xC0000 <= target.gpa < 0xD0000]
        ram = [target for target in changed if target.gpa >= 0x100000]
        assert len(small) == PAGES_A_RANGE
        assert len(ram) == PAGES_A_RANGE
        assert all(target.must for target in ram)


def test_aliases_share_host_memory_but_no_counter() -> None:
    with planned(TRACES / "q35-seabios-smp2.log") as made:
        words: dict[int, int] = {}
        for step in made.steps:
            for target in step.load.targets:
                for word in filter(None, (target.old, target.new)):
                    assert words.setdefault(word, target.gpa) == target.gpa


def test_a_tebibyte_commits_little() -> None:
    import resource

    log = (
        "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x80000000 ua=0x7e0000000000 ret=0\n"
        "kvm_set_user_memory Slot#1 flags=0x0 gpa=0x100000000 size=0xff80000000 ua=0x7e0080000000 ret=0\n"
    )
    path = Path("/proc/self/statm")
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
        file.write(log)
        file.flush()
        before = int(path.read_text().split()[1])
        with planned(Path(file.name)) as made:
            assert made.memory.size == 1 << 40
            after = int(path.read_text().split()[1])
    assert (after - before) * resource.getpagesize() < 64 << 20
