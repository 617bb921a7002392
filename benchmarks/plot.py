"""A picture of curves as SVG: both axes logarithmic, a legend at the right."""

from __future__ import annotations

import math
from html import escape

_COLOURS = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#b08900", "#495057", "#c2255c", "#1864ab")
_WIDTH, _HEIGHT, _LEFT, _TOP, _LEGEND = 560, 320, 70, 40, 250


def _ticks(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def curves(title: str, across: str, up: str, series: dict[str, list[tuple[float, float]]]) -> str:
    """One SVG: ``series`` are points (x, y) by name, all above 0."""
    points = [point for each in series.values() for point in each]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low_x, high_x, low_y, high_y = min(xs), max(xs) * 1.0001, min(ys) / 1.3, max(ys) * 1.3

    def x_of(x: float) -> float:
        return _LEFT + _WIDTH * math.log(x / low_x) / math.log(high_x / low_x)

    def y_of(y: float) -> float:
        return _TOP + _HEIGHT * (1 - math.log(y / low_y) / math.log(high_y / low_y))

    total_x, total_y = _LEFT + _WIDTH + _LEGEND, _TOP + _HEIGHT + 50
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_x} {total_y}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{total_x}" height="{total_y}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 40}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(16 {_TOP + _HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]
    for x in _ticks(low_x, high_x):
        out.append(f'<path d="M{x_of(x):.1f} {_TOP}V{_TOP + _HEIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{x_of(x):.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{x:,.0f}</text>')
    for y in _ticks(low_y, high_y):
        out.append(f'<path d="M{_LEFT} {y_of(y):.1f}H{_LEFT + _WIDTH}" stroke="#ddd"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:,.0f}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in sorted(line))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 12 + 20 * number
        out.append(f'<path d="M{_LEFT + _WIDTH + 14} {y - 4}h22" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{_LEFT + _WIDTH + 42}" y="{y}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
