"""``guestmem explain``: which kernels take a call, and what the others answer."""

from __future__ import annotations

import sys

import click

__all__ = ["command"]


@click.command("explain", short_help="Which kernels take this call, and what do the others answer?")
@click.argument("call", required=False)
@click.option("--kernel", metavar="VERSION", help="Of one kernel only: 6.12, 6.18, 7.3 or 7.4.")
@click.option("--arch", metavar="NAME", help="Of one architecture only: x86-64, arm64, pkvm or s390.")
@click.option("--tree", metavar="NAME", help="Of one tree only: mainline, amazon, openeuler or mm.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (form: docs/abi.md).")
def command(*, call: str | None, kernel: str | None, arch: str | None, tree: str | None, as_json: bool) -> int:
    """Say of CALL, such as create_guest_memfd, fallocate or pre_fault, who takes it; without CALL, list the calls.

    Each answer was run, in which case the promise of `guestmem conform` that checks it is named, or read: then it names
    the file, commit or series. What the table does not say is unknown.
    """
    from ..abi.facts import CALLS, FACTS, call_of, facts_of
    from ..report.explain import call_lines, facts_lines

    asked = [f"{name} {value}" for name, value in (("kernel", kernel), ("arch", arch), ("tree", tree)) if value]
    if call is None and not asked:
        facts, lines = list(FACTS), call_lines()
    else:
        calls = list(CALLS) if call is None else [call_of(call)]
        facts, lines = [], []
        for each in calls:
            found = facts_of(each, kernel=kernel, architecture=arch, tree=tree)
            facts += found
            lines += [*([""] if lines else []), *facts_lines(each, found, " for " + ", ".join(asked) if asked else "")]
    if as_json:
        import json

        json.dump([fact.as_dict() for fact in facts], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.writelines(line.rstrip() + "\n" for line in lines)
    sys.stdout.flush()
    return 0
