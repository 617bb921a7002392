"""guestmem record runs the tracer that is there with options that check can read, checks, and says what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guestmem.cli import main
from guestmem.traces.recipe import FORMS, recipe
from guestmem.traces.tracers import plan

CASES = Path(__file__).parents[1] / "traces" / "cases"
TRACER = """\
#!/bin/sh
echo "$0 $*" >> calls
while [ "$1" != -o ]; do shift; done
cp sample "$2"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a strace of our own in PATH, which "records" a sample."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "strace").write_text(TRACER)
    (tools / "strace").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr("guestmem.traces.tracers.TRACERS", ("strace",))
    shutil.copy(CASES / "guest-died.strace", tmp_path / "sample")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--fail-on", "hole"], 1), (["--fail-on", "open"], 0)])
def test_a_command_is_recorded_and_checked(
    folder: Path, options: list[str], status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", *options, "-o", "out.txt", "--", "true", "--pid", "3"]) == status
    out, err = capfd.readouterr()
    assert "out.txt: strace trace, 4 changes" in out
    assert "recording: strace -f -ttt -T -yy -e trace=ioctl" in err
    assert (folder / "calls").read_text().endswith("-o out.txt -- true --pid 3\n")


def test_a_process_is_recorded(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--pid", str(os.getpid()), "--no-check"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "Ctrl-C ends it" in err
    assert f"-p {os.getpid()}\n" in (folder / "calls").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --pid P or a COMMAND is needed"),
        (["--pid", "1", "true"], "not both"),
        (["--pid", "4194305"], "no such process"),
        (["--pid", "0"], "0"),
        (["--with", "bpftrace", "true"], "bpftrace is not installed; there is strace"),
        (["--with", "gdb", "true"], "gdb"),
        (["-o", "no/such/folder/x", "true"], "no folder"),
        (["--seconds", "0", "true"], "0"),
        (["--sometimes", "true"], "--sometimes"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_input_is_one_line_and_status_2(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["record", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_tracer_that_records_nothing_is_an_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "bin" / "strace").write_text("#!/bin/sh\nexit 3\n")
    assert main(["record", "true"]) == 2
    assert "strace recorded nothing (its exit status is 3)" in capfd.readouterr().err


def test_a_recording_that_goes_on_is_stopped(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracer has written all by then, however long it took to start."""
    module = sys.modules["guestmem.cli.record"]
    stop, sample, written = module._stop, folder / "sample", folder / "out.txt"

    def when_it_has_written(process: subprocess.Popen[bytes]) -> int:
        end = time.monotonic() + 100
        while not written.exists() or written.stat().st_size < sample.stat().st_size:
            assert time.monotonic() < end
            time.sleep(0.01)
        return int(stop(process))

    monkeypatch.setattr(module, "_stop", when_it_has_written)
    monkeypatch.setattr(module, "GRACE", 1.0)  # of a job, SIGINT may be ignored
    (folder / "bin" / "strace").write_text(TRACER + "exec sleep 1000\n")
    assert main(["record", "--seconds", "0.5", "-o", "out.txt", "true"]) == 0
    assert "out.txt: strace trace" in capfd.readouterr().out


def test_commands_for_each_tracer() -> None:
    assert str(plan("strace", "f", pid=7)).endswith("-o f -p 7")
    assert plan("bpftrace", "f", pid=7, program_file="p").argv == ("bpftrace", "-o", "f", "p")
    run = plan("bpftrace", "f", command=("sh", "-c", "a b"), program_file="p")
    assert run.argv == ("bpftrace", "-o", "f", "-c", f"{shutil.which('sh')} -c 'a b'", "p")
    assert "pid == cpid" in run.program
    assert plan("trace-cmd", "f", command=("vmm",)).argv[-3:] == ("-c", "-F", "vmm")


@pytest.mark.parametrize("form", FORMS)
def test_the_program_has_both_requests_and_all_events_in_every_form(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", "--recipe", "--form", form]) == 0
    text = capsys.readouterr().out
    for word in ("0x4020ae46", "0x40a0ae49", "0xae80", "kvm_entry", "kvm_exit", "kvm_userspace_exit", "nsecs"):
        assert word in text
    assert not any(word in text for word in ("REQUEST", "VMFORMAT", "RETURNED", "FILTER"))
    assert text.count("{") == text.count("}")
    assert "pid == 7" in recipe(form, pid=7)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_real_strace_records_a_vmm_of_ours(tmp_path: Path) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    program = (
        "import fcntl, mmap, struct, ctypes\n"
        "vm = fcntl.ioctl(open('/dev/kvm', 'rb+', buffering=0), 0xAE01, 0)\n"
        "memory = mmap.mmap(-1, 1 << 20)\n"
        "hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "for size in (1 << 20, 0, 1 << 16):\n"
        "    fcntl.ioctl(vm, 0x4020AE46, struct.pack('IIQQQ', 3, 0, 0x100000, size, hva))\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "guestmem",
            "record",
            "-o",
            tmp_path / "out",
            "--fail-on",
            "hole",
            sys.executable,
            "-c",
            program,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "recorded nothing" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 1, done.stderr
    assert "3 changes (2 create, 1 delete)" in done.stdout
