"""What a run found, for people (a table), for programs (JSON) and for the README (Markdown)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Found, Row

WIDTHS = (76, 24, 24, 20, 10, 7)
HEADINGS = ("measure", "service", "baseline", "ratio (range)", "reach", "")


def number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median and, of several rounds, the range."""
    if not values:
        return "-"
    middle = f"{number(statistics.median(values))}{' ' + unit if unit and unit != '/s' else unit}"
    return f"{middle} ({number(min(values))}-{number(max(values))})" if len(values) > 1 else middle


def reach(row: Row) -> str:
    if row.at_least is not None:
        return f">= {row.at_least:g}"
    return f"<= {row.at_most:g}" if row.at_most is not None else ""


def cells(found: Found, row: Row) -> tuple[str, ...]:
    mine = spread(found.values.get(row.of, []), row.unit)
    theirs = spread(found.values.get(row.against, []), row.unit) if row.against else ""
    ratio = spread(found.ratios(row.of, row.against)) if row.against else ""
    return row.text, mine, theirs, ratio, reach(row), found.verdict(row)


def lines(results: Sequence[Found]) -> list[str]:
    made = [aligned(HEADINGS), "-" * (sum(WIDTHS) + len(WIDTHS))]
    for found in results:
        for row in found.measure.rows:
            made.append(aligned(cells(found, row)))
            made += [f"    {text}" for text in peers(found, row)]
        if found.failed:
            made.append(f"    {found.measure.name} failed: {found.failed}")
    return made


def aligned(row: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(row, WIDTHS, strict=True)).rstrip()


def peers(found: Found, row: Row) -> list[str]:
    """The other systems' ratio to the same baseline, in one line."""
    texts = []
    for name in row.peers:
        values = found.values.get(name, [])
        if values:
            ratio = f" = {number(statistics.median(found.ratios(name, row.against)))}" if row.against else ""
            texts.append(f"{name} {spread(values, row.unit)}{ratio}")
    return [f"for scale: {', '.join(texts)}"] if texts else []


def markdown(results: Sequence[Found]) -> str:
    rows = [cells(found, row) for found in results for row in found.measure.rows]
    head = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


def document(results: Sequence[Found], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything: the facts of the run, every value of every round, every verdict."""
    return {
        **facts,
        "measures": [
            {
                "name": found.measure.name,
                "what": (found.measure.run.__doc__ or "").replace("\n    ", " ").strip(),
                "seconds": round(found.seconds, 1),
                "failed": found.failed,
                "values": found.values,
                "rows": [as_object(found, row) for row in found.measure.rows],
            }
            for found in results
        ],
    }


def as_object(found: Found, row: Row) -> dict[str, Any]:
    ratios = found.ratios(row.of, row.against)
    return {
        "text": row.text,
        "of": row.of,
        "against": row.against,
        "unit": row.unit,
        "at_least": row.at_least,
        "at_most": row.at_most,
        "median": statistics.median(ratios) if ratios else None,
        "range": [min(ratios), max(ratios)] if ratios else None,
        "verdict": found.verdict(row),
    }


def dumps(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
