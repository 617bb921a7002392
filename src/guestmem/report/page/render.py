"""From a report and its timeline to HTML: the template, the style, the script and the data in one file.

Nothing in a trace is markup here: Jinja2 escapes what the template shows, ``<``, ``>`` and ``&`` are escaped in the
data, the script sets text and never HTML, and a Content-Security-Policy allows this script and this style by their
hashes, and nothing else: no other script, no network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...check.rules import NOT_SEEN
from ..check import assumed_words, hole_cells, late_words, remark_words, summary
from .data import page_data

if TYPE_CHECKING:
    from ...check import Report
    from ...traces import Timeline

__all__ = ["page"]

HERE = Path(__file__).parent
SCRIPTS = ("model.js", "chart.js", "details.js", "main.js")
HOLES_WITHOUT_SCRIPT = 200
"""Rows of holes that stand in the page itself; the script shows the others when asked."""


def page(report: Report, timeline: Timeline) -> str:
    """The page as one string of HTML, some 40 KB and the data (about 120 bytes a change).

    ``report`` is that of ``timeline``. The page needs no server and no network; without a script it shows summary and
    holes. Raises ModuleNotFoundError if Jinja2 is missing.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = (HERE / "page.css").read_text()
    script = "'use strict';\n" + "\n".join((HERE / name).read_text() for name in SCRIPTS)
    holes = report.holes[:HOLES_WITHOUT_SCRIPT]
    html: str = environment.get_template("page.html.j2").render(
        path=report.path,
        summary=[line for line in summary(report).splitlines() if line != NOT_SEEN],
        verdicts={verdict.value: count for verdict, count in report.verdicts.items()},
        holes=[hole_cells(hole) for hole in holes],
        late=[late_words(each) for each in report.late[:HOLES_WITHOUT_SCRIPT]],
        more_late=max(0, len(report.late) - HOLES_WITHOUT_SCRIPT),
        remarks=remark_words(report.remarks),
        assumed=(assumed := assumed_words(timeline))[:HOLES_WITHOUT_SCRIPT],
        more_assumed=max(0, len(assumed) - HOLES_WITHOUT_SCRIPT),
        not_seen=NOT_SEEN,
        more=len(report.holes) - len(holes),
        style=_raw(style),
        script=_raw(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_raw(_as_script_data(page_data(report, timeline))),
    )
    return html


def _raw(text: str) -> Any:
    """Text that goes into the page as it is."""
    import markupsafe

    return markupsafe.Markup(text)  # noqa: S704 - our own files, and JSON without any "<"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _as_script_data(values: dict[str, Any]) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(values, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
