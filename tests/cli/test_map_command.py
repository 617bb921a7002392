"""``guestmem map`` draws trees, views and slots in 80 columns or as JSON, and says of two moments what changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from guestmem.cli import main

ROOT = Path(__file__).parents[2]
MAPS, TRACES = ROOT / "examples/maps", ROOT / "examples/traces"
BOOT = MAPS / "pc-boot.json"


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["map", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", sorted({*MAPS.glob("*.*")} - {MAPS / "README.md"}), ids=lambda path: path.name)
def test_every_example_is_drawn_in_80_columns(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(path.parent)
    text = output(capsys, path.name)
    assert text
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert json.loads(output(capsys, "--json", path.name))["file"] == path.name


def test_a_flat_view_shows_which_slot_has_what(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, TRACES / "pc-hotplug-mtree.txt")
    assert re.search(r"0x108000000 +256 MiB  ram   m2 +10 +10$", text, re.MULTILINE)
    assert "slots in QEMU's way: 11" in text
    lines = (TRACES / "pc-hotplug-mtree.txt").read_text().splitlines()
    assert sum(line.endswith(" KVM") for line in lines) == 11


def test_a_tree_says_what_is_hidden_and_off(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, MAPS / "pc-7.2-booted-tree.txt", MAPS / "pc-7.2-booted-flat.txt")
    assert "    0xc0000 16 KiB pam-pci = pci @0xc0000, priority 1, off" in text
    assert "      0xe0000 128 KiB isa-bios = pc.bios @0x20000, priority 1" in text
    assert "fewest slots, read-only as the view says: 9 (as QEMU says: 4)" in text


def test_all_address_spaces_are_drawn_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--all", MAPS / "pc-7.2-booted-tree.txt", MAPS / "pc-7.2-booted-flat.txt")
    assert "memory (also cpu-memory-0, cpu-memory-1), root system" in text or "cpu-memory-0 (also" in text
    assert text.count("flat view of") == 3


def test_slots_at_a_line_of_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, f"{TRACES / 'pc-seabios-smp2.log'}@9")
    assert "qemu trace, after line 9; 5 slots, 5 would do" in text
    assert "[0xc0000, 0xe0000) 128 KiB" in text
    found = json.loads(output(capsys, "--json", f"{TRACES / 'pc-seabios-smp2.log'}@9"))
    assert [slot["gpa"] for slot in found["slots"]] == [0, 0xC0000, 0xE0000, 0x100000, 0xFFFC0000]


def test_a_step_of_a_boot_in_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--diff", f"{BOOT}@3", f"{BOOT}@4")
    assert "[0xc0000, 0xe0000) 128 KiB: split, re-host" in text
    assert "QEMU's way: 7 calls, from 5 to 6 slots" in text
    assert "least disturbing (a kernel): 6 calls, from 5 to 7 slots" in text
    ways = json.loads(output(capsys, "--json", "--diff", f"{BOOT}@3", f"{BOOT}@4"))["ways"]
    assert {name: way["cost"]["calls"] for name, way in ways.items()} == {"QEMU": 7, "least": 6, "fewest": 7}
    assert {name: way["cost"]["hole"] for name, way in ways.items()} == {
        "QEMU": 0xFF40000,
        "least": 0x40000,
        "fewest": 0xFF40000,
    }
    assert {way["cost"]["stalled"] for way in ways.values()} == {0x20000}


def test_two_recordings_of_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(
        output(capsys, "--json", "--diff", MAPS / "pc-7.2-reset-tree.txt", MAPS / "pc-7.2-booted-tree.txt")
    )
    assert {each["region"] for each in found["view"]["new"]} >= {"pc.ram", "vga.vram", "edid"}
    assert [each for each in found["view"]["gone"] if each["region"] == "vga-lowmem"] == []
    trace = json.loads(output(capsys, "--json", "--diff", f"{MAPS / 'pc-7.2.log'}@9", MAPS / "pc-7.2.log"))
    assert len(trace["ways"]["QEMU"]["changes"]) == 26
    assert len(trace["ways"]["fewest"]["changes"]) < 10


def test_no_change_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no slot changes" in output(capsys, "--diff", BOOT, BOOT)


BAD = {
    (): "guestmem: FILE: none is given",
    ("no-such-file",): "guestmem: no-such-file: No such file or directory",
    (f"{BOOT}@99",): "step 99: there are 11",
    (f"{BOOT}@x",): "after @ stands the number of a line or step",
    ("--diff", str(BOOT)): "--diff: it takes two files, not 1",
    ("--diff", str(BOOT), str(TRACES / "pc-seabios-smp2.log")): "both are maps or both are traces",
    ("--space", "nothing", str(BOOT)): "address space nothing: there is no such one; there is memory",
    (str(BOOT), str(BOOT)): "only a tree and a flat view of info mtree can be given together",
    (f"{MAPS / 'pc-7.2-booted-tree.txt'}@3",): "a recording of info mtree has one moment",
    ("/bin/true",): "/bin/true: not a text file",
    ("--space", "a", str(TRACES / "pc-seabios-smp2.log")): "a trace has slots, and no address spaces",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert BAD[arguments] in said.err
