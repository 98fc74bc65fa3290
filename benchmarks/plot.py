"""The plot: for each measure with a reach, how far the service came, as an SVG without any library.

Each line is one measure on a logarithmic scale of `how many times better than asked`: right of the middle line is met,
left of it is missed. The dot is the median, the bar the range of the rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.harness import Found, Row

WIDTH, LINE, TEXT, TOP = 1100, 26, 620, 60
HALF = (WIDTH - TEXT - 40) / 2
DECADES = 1.5
COLOURS = {"met": "#1a7f37", "missed": "#cf222e", "failed": "#6e7781", "": "#6e7781"}


def better(row: Row, value: float) -> float:
    """How many times better than asked; 1 is exactly what was asked."""
    value = max(value, 1e-9)
    if row.at_least is not None:
        return value / row.at_least
    return max(row.at_most or 0.0, 1e-9) / value


def place(times: float) -> float:
    shifted = max(-DECADES, min(DECADES, math.log10(times)))
    return TEXT + HALF + shifted / DECADES * HALF


def svg(results: Sequence[Found], caption: str) -> str:
    asked = [
        (found, row)
        for found in results
        for row in found.measure.rows
        if row.at_least is not None or row.at_most is not None
    ]
    height = TOP + LINE * len(asked) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        text(10, 20, "How many times better than asked (median and range of the rounds)", size=15),
        text(10, 38, caption, colour="#57606a"),
    ]
    parts += [scale(times, height) for times in (1 / 10, 1 / 3, 1, 3, 10)]
    for index, (found, row) in enumerate(asked):
        parts += line(found, row, TOP + 14 + LINE * index)
    return "\n".join([*parts, "</svg>", ""])


def scale(times: float, height: int) -> str:
    x = place(times)
    dash = "" if times == 1 else ' stroke-dasharray="2 4"'
    label = f"{times:g}" if times >= 1 else f"1/{1 / times:g}"
    drawn = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 22}" stroke="#8c959f"{dash}/>'
    return drawn + text(x - 6, height - 8, label, colour="#57606a")


def line(found: Found, row: Row, y: int) -> list[str]:
    verdict = found.verdict(row)
    colour = COLOURS[verdict]
    drawn = [text(10, y + 4, row.text[:96])]
    ratios = found.ratios(row.of, row.against)
    if verdict == "failed":
        return [*drawn, text(TEXT + 10, y + 4, "failed", colour=colour)]
    ends = sorted(place(better(row, ratio)) for ratio in ratios)
    middle = place(better(row, statistics.median(ratios)))
    bar = f'<line x1="{ends[0]:.1f}" x2="{ends[-1]:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
    return [*drawn, bar, f'<circle cx="{middle:.1f}" cy="{y}" r="5" fill="{colour}"/>']


def text(x: float, y: float, words: str, *, size: int = 12, colour: str = "#24292f") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" fill="{colour}">{escape(words)}</text>'
