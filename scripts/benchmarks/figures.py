"""The figures that the benchmark reports: what was measured, what was promised, the verdict.

Pure: builds text and plain data, prints nothing.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from benchmarks.stats import Spread


class Verdict(enum.StrEnum):
    """Whether a promise was kept."""

    MET = "met"
    MISSED = "MISSED"
    NONE = ""
    """Nothing was promised."""


class Target(NamedTuple):
    """A promise: at least or at most so much."""

    at_least: bool
    value: float

    def met_by(self, measured: float) -> bool:
        return measured >= self.value if self.at_least else measured <= self.value


def at_least(value: float) -> Target:
    return Target(True, value)


def at_most(value: float) -> Target:
    return Target(False, value)


class Figure(NamedTuple):
    """One line of the report."""

    section: str
    name: str
    measured: Spread
    unit: str
    """ "x" is a ratio to the peer."""
    target: Target | None = None
    note: str = ""
    """The absolute values behind a ratio, or what else explains the figure."""

    @property
    def verdict(self) -> Verdict:
        if self.target is None:
            return Verdict.NONE
        return Verdict.MET if self.target.met_by(self.measured.median) else Verdict.MISSED


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    for limit, digits in ((1, 3), (10, 2), (100, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def _row(figure: Figure) -> tuple[str, ...]:
    unit = "" if figure.unit == "x" else f" {figure.unit}"
    times = "x" if figure.unit == "x" else ""
    median, low, high, n = figure.measured
    target = ""
    if figure.target is not None:
        sign = ">=" if figure.target.at_least else "<="
        target = f"{sign} {number(figure.target.value)}{times}{unit}"
    range_ = f"{number(low)}..{number(high)} ({n})" if n > 1 else ""
    measured = f"{number(median)}{times}{unit}"
    return (
        figure.section,
        figure.name,
        measured,
        range_,
        target,
        figure.verdict.value,
        figure.note,
    )


HEADINGS = ("section", "figure", "median", "range (n)", "target", "verdict", "behind it")


def table(figures: list[Figure]) -> str:
    """All figures as aligned text."""
    rows = [HEADINGS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def as_data(figures: list[Figure]) -> list[dict[str, Any]]:
    """The same for --json."""
    return [
        {
            "section": figure.section,
            "figure": figure.name,
            "median": figure.measured.median,
            "low": figure.measured.low,
            "high": figure.measured.high,
            "n": figure.measured.n,
            "unit": figure.unit,
            "target": None
            if figure.target is None
            else {
                "at_least" if figure.target.at_least else "at_most": figure.target.value,
            },
            "verdict": figure.verdict.value or None,
            "note": figure.note,
        }
        for figure in figures
    ]
