"""A story tells the steps that a finding depends on, and no others; the bug in three lines; all in 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from guestmem.cli import main
from guestmem.explore.citations import citation
from guestmem.explore.models import find
from guestmem.explore.mutants import find as find_mutant
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import Counterexample, explore
from guestmem.explore.strand import Where
from guestmem.explore.telling import entry_words
from guestmem.stage2.arm import ArmLeaf
from guestmem.stage2.descriptor import Empty, Leaf, Rights
from guestmem.stage2.npt import NptLeaf, NptTable

PATIENCE_S = 600.0
"""For shrinking, which is done in a second: a story is that of the fewest switches, however loaded the machine is."""
EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
SHRINK_S = 250.0
"""Far more than it takes: a schedule that a busy machine had no time to shorten has another story."""


def found_by(model: str, mutant: str = "") -> Counterexample:
    mutations = find_mutant(mutant).mutations if mutant else ()
    return explore(find(model), mutations=mutations, shrink_s=SHRINK_S).counterexamples[0]


def plain(text: str) -> str:
    return " ".join(text.split())


def steps_of(story: str) -> tuple[int, int]:
    shown = re.search(r"^(\d+) of (\d+) steps matter:$", story, re.MULTILINE)
    assert shown is not None, story
    return int(shown[1]), int(shown[2])


def the_bug(story: str) -> str:
    assert story.startswith("The bug:\n"), story
    return plain(story.partition("\n\n")[0])


def test_a_hundred_steps_are_told_in_ten() -> None:
    story = found_by("atomic-unacknowledged").story
    shown, every = steps_of(story)
    assert every > 100
    assert shown <= 10
    assert "vm[REQUESTED of vCPU 0] = 1 (4), before updater stores there" in the_bug(story)
    assert "updater stores old page 0[0] = 99 (9), which vCPU 0 reads (10)" in the_bug(story)
    text = plain(story)
    for told in (
        "load acquire vm[FLUX] = nothing in flux (as at first)",
        "store release the active set of space 0: set 1 → set 0",
        "TLB: gfn 0x10 → 0x10000000 rw",
        "old page 0[0] = 99 (from 9)",
        "AssertionError: an access went to the old memory after the batch was over",
        "kvm_make_all_cpus_request() and vcpu->mode in Linux 6.18, virt/kvm/kvm_main.c",
    ):
        assert told in text


def test_an_order_that_a_section_keeps_is_no_cause_but_the_section_is() -> None:
    """The updater edits the old set once the reader has gone: that is left out, its wait for the reader is not."""
    text = plain(found_by("atomic-unacknowledged").story)
    assert "store release srcu[reader 1]: inside, since epoch 2 → outside" in text
    assert "load acquire srcu[reader 1] = outside (from 3)" in text
    assert "memslots[386]" not in text


@pytest.mark.parametrize(
    ("model", "mutant", "told"),
    [
        ("srcu", "srcu-no-wait", "missing: nothing keeps updater's 2 and 3 from coming between reader 0's 1 and 4"),
        ("srcu", "srcu-enter-fence", "missing: a full fence that keeps reader 0's load 3 behind its store 2"),
        ("ranges", "ranges-publish-early", "missing: a release that keeps updater's store 2 behind its store 1"),
        ("kvm-kick", "kvm-kick-fence", "missing: the order of vCPU's loads 6 and 7 (acquire), or of the stores"),
        ("cores-3", "give-core-wakes-one", "vCPU 1 sleeps on vm[SERVING] (4)"),
    ],
)
def test_the_missing_order_is_named(model: str, mutant: str, told: str) -> None:
    assert told in the_bug(found_by(model, mutant).story)


def test_aba_is_told_without_the_pops_between() -> None:
    from guestmem.explore.own import mutants_of, with_mutant

    ((mutant, model),) = mutants_of([f"{EXAMPLES / 'treiber.py'}:no-tag"])
    model, mutations = with_mutant(model, mutant)
    story = explore(model, mutations=mutations, weak=False, shrink_s=SHRINK_S).counterexamples[0].story
    assert steps_of(story) == (5, 16)
    assert "second changes head[0] to 1 (4), which first reads (5)" in the_bug(story)


def test_entries_are_told_by_level_and_state() -> None:
    """That an unmap gave a table back before its entry was invalid depends on no other thread."""
    story = plain(found_by("stage2-unmap", "stage2-level-zero").story)
    assert "No order between threads is needed; what unmapper changed" in story
    assert "entry [0x0] of the level-2 table: table at 0x10002000 → invalid" in story


@pytest.mark.parametrize("leaf", [ArmLeaf(3, 0x4000, Rights.RW), NptLeaf(3, 0x4000, Rights.RW)], ids=type)
def test_leaves_of_both_formats_are_valid(leaf: Leaf) -> None:
    assert entry_words(leaf) == "valid rw- to 0x4000"
    assert entry_words(NptTable(2, 0x8000)) == "table at 0x8000"
    assert entry_words(Empty()) == "invalid"


def test_what_others_store_and_nobody_needs_is_left_out() -> None:
    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("w", 3)

        def reader() -> None:
            atomics.load_acquire(words, 2)  # read, and of no account
            first = atomics.load_acquire(words, 0)
            assert not (first == 0 and atomics.load_acquire(words, 1) == 1), "torn"

        def writer() -> None:
            for index in (2, 0, 2, 1):
                atomics.store_release(words, index, 1)

        scene.thread("reader", reader)
        scene.thread("writer", writer)

    story = explore(Model("torn", "", "", build), weak=False, shrink_s=SHRINK_S).counterexamples[0].story
    assert "w[2]" not in story
    assert steps_of(story)[0] == 4
    assert the_bug(story).endswith("missing: nothing keeps writer's 2 and 3 from coming between reader's 1 and 4")


def test_a_loop_is_told_once() -> None:
    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("w", 1)

        def spins() -> None:
            while atomics.load_acquire(words, 0) == 0:
                pass

        def looks() -> None:
            atomics.compare_exchange(words, 0, 5, 6)

        scene.thread("spins", spins)
        scene.thread("looks", looks)

    spin = Model("spin", "", "", build, steps=60)
    story = explore(spin, weak=False, shrink_s=PATIENCE_S).counterexamples[0].story
    assert "more times" in story
    assert len(story.splitlines()) < 20


@pytest.mark.parametrize(
    ("model", "mutant"),
    [("sequential", ""), ("cores-3", "give-core-wakes-one"), ("stage2-split", "stage2-split-no-tlbi")],
)
def test_80_columns(model: str, mutant: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = str(tmp_path / "c.json")
    assert main(["explore", model, *(["--mutant", mutant] if mutant else []), "--save", saved]) == 1
    assert main(["replay", saved]) == 1
    assert main(["replay", saved, "--whole"]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_a_citation_is_a_sentence_of_the_docstring() -> None:
    text = citation(Where("memslots/update.py", 1, "no_such_function"))
    assert text == (
        "Source of the phases: kvm_set_memslot() and kvm_swap_active_memslots(), Linux 6.18, virt/kvm/kvm_main.c."
    )
    assert citation(Where("explore/models/srcu.py", 1, "reader")) == ""
    assert citation(Where("engines/soft/flux.py", 1, "flux_mark")) == ""


def test_replay_of_another_version_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule: dict[str, Any] = json.loads(json.dumps(found_by("srcu", "srcu-no-wait").schedule))
    assert "rcu/srcu.py" in schedule["sources"]
    schedule["sources"]["rcu/srcu.py"] = "another"
    (tmp_path / "c.json").write_text(json.dumps(schedule))
    assert main(["replay", str(tmp_path / "c.json")]) == 1
    assert "since it was found these files changed: rcu/srcu.py" in plain(capsys.readouterr().out)
    schedule["schedule"].append(["updater", 9])
    (tmp_path / "c.json").write_text(json.dumps(schedule))
    assert main(["replay", str(tmp_path / "c.json")]) == 2
    error = capsys.readouterr().err
    assert "(updater) is not possible, updater has ended: the code is another one; since it was found" in error
    assert error.rstrip().endswith("these changed: rcu/srcu.py")
