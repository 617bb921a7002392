"""A structure of words says each field once, and none overlaps: names, places, counters and labels agree."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType

import pytest

from guestmem.engines import load_words
from guestmem.engines.kvm import layout as kvm
from guestmem.engines.kvm import load_layout
from guestmem.engines.soft import gmem_slot, gmem_vcpu, post_copy_vcpu, userfault
from guestmem.engines.soft import layout as soft
from guestmem.errors import InvariantError
from guestmem.explore import load
from guestmem.gmem import layout as gmem
from guestmem.memslots import Change, Slot
from guestmem.memslots import layout as memslots
from guestmem.rcu import srcu
from guestmem.stage2 import layout as stage2
from guestmem.stage2 import rwlock, tlb_layout
from guestmem.stage2.pkvm import layout as pkvm
from guestmem.structure import LINE, Structure, name_fields
from two_forms import sources

LAYOUTS = [
    *(load_words, kvm, load_layout, soft, gmem_slot, gmem_vcpu, memslots, srcu, stage2, rwlock, tlb_layout, pkvm, gmem),
    *(post_copy_vcpu, userfault),
]


def declared(module: ModuleType) -> dict[str, Structure]:
    """The structures of a module that are not another's, by name."""
    others = {id(each) for other in LAYOUTS if other is not module for each in vars(other).values()}
    named = {name: each for name, each in vars(module).items() if isinstance(each, Structure)}
    return {
        name: each
        for name, each in named.items()
        if id(each) not in others or all(hasattr(module, field.name) for field in each.fields)
    }


STRUCTURES = [(module, structure) for module in LAYOUTS for structure in declared(module).values()]


@pytest.mark.parametrize(("module", "structure"), STRUCTURES, ids=lambda each: getattr(each, "name", ""))
def test_every_field_has_a_name_a_place_and_a_meaning(module: ModuleType, structure: Structure) -> None:
    fields = sorted(structure.fields, key=lambda field: field.offset)
    for before, after in pairwise(fields):
        assert before.words, f"{before.name}: only the last field has no end"
        assert before.offset + before.words <= after.offset
    assert fields[-1].offset + fields[-1].words <= structure.words_taken
    for field in fields:
        assert field.doc
        assert int(getattr(module, field.name)) == field.offset
        assert type(getattr(module, field.name)) is type(module.const(0))
        if field.element is None:
            assert structure.label(field.offset).startswith(field.name.strip("_"))


@pytest.mark.parametrize("module", LAYOUTS)
def test_both_forms_have_the_same_layout(module: ModuleType) -> None:
    with load() as twin:
        other = twin.room(module.__name__.removeprefix("guestmem."))
        for name, structure in declared(module).items():
            assert str(vars(other)[name]) == str(structure)
            for field in structure.fields:
                assert type(vars(other)[field.name]) is int
                assert vars(other)[field.name] == field.offset


def test_what_another_thread_writes_has_a_line_of_its_own() -> None:
    """All of a VM's words but those that never change once vCPUs run."""
    for structure in (soft.VM, soft.VCPU_BLOCK, kvm.VM, srcu.SRCU, rwlock.LOCK):
        lines = [
            field.offset // LINE for field in structure.fields if field.name not in {"PID", "SIGNAL", "REDELIVERS"}
        ]
        assert len(set(lines)) == len(lines)
    assert soft.VCPU_BLOCK.size % LINE == kvm.VCPU_BLOCK.size % LINE == 0


def test_one_name_has_one_value_in_the_table_and_in_its_tlb() -> None:
    def constants(module: ModuleType) -> dict[str, int]:
        return {name: int(value) for name, value in vars(module).items() if name.isupper() and hasattr(value, "real")}

    table, tlb = constants(stage2), constants(tlb_layout)
    assert {name for name in table.keys() & tlb.keys() if table[name] != tlb[name]} == set()


def test_a_slot_is_one_piece_of_its_record() -> None:
    first = int(memslots.FIRST_FIELD)
    names = memslots.RECORD.names[first : first + int(memslots.SLOT_WORDS)]
    assert names == tuple(name.upper() for name in Slot._fields)


def test_a_change_is_one_piece_of_the_desk() -> None:
    first = memslots.DESK.names.index("ASKED_SLOT")
    names = [name.removeprefix("ASKED_").lower() for name in memslots.DESK.names[first : first + len(Change._fields)]]
    assert names == [name.removeprefix("guest_memfd_") for name in Change._fields]
    assert memslots.DESK.names[first + len(names)] == "ASKED_IDS", "ids follow the change: Memslots.ask"


def test_what_a_lookup_and_a_fault_read_is_on_the_records_first_line() -> None:
    assert memslots.RECORD_WORDS > 8
    assert int(memslots.DIRTY_BITMAP) < LINE, "what a fault reads is on the first line"


def test_counters_are_named_once() -> None:
    for module, structure in ((soft, soft.OWN), (kvm, kvm.OWN), (tlb_layout, tlb_layout.ONE_TLB)):
        assert structure.counter_names == module.COUNTER_NAMES
        assert structure.first_counter == int(module.COUNTERS)
        assert len(set(module.COUNTER_NAMES)) == len(module.COUNTER_NAMES) > 10
        last = max(field.offset for field in structure.fields if field.counter)
        assert last - structure.first_counter + 1 == len(module.COUNTER_NAMES), "counters are one run of words"


def test_words_are_told_by_name() -> None:
    assert soft.VM.label(int(soft.PAUSED)) == "PAUSED"
    assert soft.VM.label(int(soft.PAUSED) + 1) == ""
    assert soft.VM.label(int(soft.VCPUS) + int(soft.VCPU) * 3 + int(soft.MODE)) == "MODE of vCPU 3"
    assert soft.VM.label(int(soft.FLUX_RANGES) + 4) == "FLUX_RANGES[4]"
    assert stage2.DESK.label(int(stage2.PATH) + 1) == "PATH[1]"
    assert stage2.DESK.label(int(stage2.CACHE) + 99) == "CACHE[99]"
    assert srcu.SRCU.label(24 + 8 * 5) == "reader 5"
    second = int(memslots.SPACES) + int(memslots.SPACE_WORDS) + int(memslots.SETS) + int(memslots.SET_WORDS)
    assert memslots.MEMSLOTS.label(second + int(memslots.GENERATION)) == "GENERATION of set 1 of space 1"


def test_an_overlap_is_refused() -> None:
    made = Structure("vm", size=10)
    made.words(4, "four")
    with pytest.raises(InvariantError, match=r"vm: words \[3, 4\) \(one more\) overlap the field at 0"):
        made.word("one more", at=3)
    made.word("apart", at=8)
    with pytest.raises(InvariantError, match=r"vm: words \[7, 9\) \(two\) overlap the field at 8"):
        made.words(2, "two", at=7)
    with pytest.raises(InvariantError, match=r"vm: words \[16, 17\) \(late\) pass its 10 words"):
        made.line("late")


def test_a_counter_too_many_is_refused_at_import() -> None:
    """In a layout of production: a structure that has a size, and a field more than fits."""
    old = "UNCHECKED = ONE_TLB.counter("
    more = "".join(f'MORE_{number} = ONE_TLB.counter("one more")\n' for number in range(6))
    with load([("stage2/tlb_layout.py", old, more + old)]) as twin, pytest.raises(InvariantError, match=r"pass its 48"):
        twin.room("stage2.tlb_layout")


def test_a_field_without_a_name_is_refused() -> None:
    made = Structure("vm")
    first = made.word("first")
    made.word("second")
    with pytest.raises(InvariantError, match=r"vm: word 1 \(second\) has no name"):
        name_fields({"VM": made, "FIRST": first})


def test_every_layout_is_in_the_list_above() -> None:
    declaring = {
        path for path, text in sources().items() if "name_fields(globals())" in text and path != "structure.py"
    }
    assert declaring == {module.__name__.removeprefix("guestmem.").replace(".", "/") + ".py" for module in LAYOUTS}
    assert len(STRUCTURES) > 20
