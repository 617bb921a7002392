"""Which designs were right and which was cheapest, from made-up rows."""

from __future__ import annotations

import io

from guestmem.compare.result import Comparison, Row, Spread
from guestmem.compare.summary import summary
from guestmem.report.compare import print_comparison


def row(design: str, vcpus: int = 2, *, median: float = 100.0, instants: int = 3, **more: int) -> Row:
    made = Row(design, vcpus, 2, replays=1, transactions=10, instants=instants)
    made.update_ns = Spread(median, median, 0.0, 10)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def comparison(*rows: Row) -> Comparison:
    return Comparison("x", "soft", "x86", 1, 1, 1.0, 2, 10, 30, rows=list(rows), control="broken")


def test_right_wrong_and_not_judged() -> None:
    found = summary(
        comparison(
            row("holed", holes=3, killed=1),
            row("torn", torn=2),
            row("slow", median=300.0, vcpu_stalls=1, vcpu_stall_median_ns=10),
            row("quick", median=50.0, vcpu_stalls=9, vcpu_stall_median_ns=10),
            row("unseen", instants=0, median=400.0, vcpu_stalls=50, vcpu_stall_median_ns=10),
            row("broken", broken=True, median=1.0),
        )
    )
    assert found.clean == ("slow", "quick")
    assert found.unjudged == ("unseen",)
    assert found.wrong == {
        "holed": "3 data accesses in a hole, 1 guests killed",
        "torn": "2 updates without one instant",
    }
    assert found.cheapest == {2: ("quick", "slow")}


def test_one_bad_row_makes_a_design_wrong() -> None:
    found = summary(comparison(row("a", 1), row("a", 4, lost=-1), row("b", 1, instants=0), row("b", 4)))
    assert found.clean == ("b",)
    assert found.wrong == {"a": "1 writes lost"}
    assert found.cheapest == {1: ("b", "b"), 4: ("b", "b")}


def test_what_was_refused_is_not_right_and_what_was_cut_short_is_not_judged() -> None:
    refusing, cut = row("a"), row("b", holes=1)
    refusing.refusals.append("lines 1-2: E2BIG")
    cut.replays = 0
    found = summary(comparison(refusing, cut))
    assert found.wrong == {"a": "transactions that it refused"}
    assert found.clean == found.unjudged == ()


def test_it_is_printed_and_in_the_json() -> None:
    made = comparison(row("holed", holes=3), row("fine"))
    stream = io.StringIO()
    print_comparison(made, stream=stream)
    assert "wrong: holed: 3 data accesses in a hole\n" in stream.getvalue()
    assert "nothing seen to go wrong, one instant wherever both sides were seen: fine\n" in stream.getvalue()
    assert "cheapest of these at 2 vCPUs: fine (median update), fine (vCPUs kept waiting)" in stream.getvalue()
    assert made.as_dict()["summary"]["clean"] == ["fine"]
