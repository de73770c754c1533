"""The comparison as text and as plain data. Pure: builds, prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.comparison import measures
from benchmarks.comparison.run import Result
from benchmarks.figures import number
from benchmarks.stats import Spread

OURS = "lbhost"

UNITS = {
    "tok_s": ("tok/s", 1.0),
    "goodput": ("good requests/s", 1.0),
    "cpu_s": ("CPU s/1000 tok", 1.0),
}
LATENCIES = {"ttft": "TTFT", "gap": "inter-token", "e2e": "completion"}


def label(measure: str) -> tuple[str, float]:
    """What a measure is called, and what its value is multiplied by to be shown."""
    if measure in UNITS:
        return UNITS[measure]
    kind, _, rest = measure.rpartition(".")
    name, _, at = rest.partition("_")
    return f"{kind} {LATENCIES[name]} {at} ms".strip(), 1000.0


def shown(result: Result) -> list[str]:
    """The measures of a scenario that are worth a line: all, or of each kind if there are some."""
    names = {name for runs in result.runs.values() for run in runs for name in run}
    kinds = sorted({name.rpartition(".")[0] for name in names if "." in name}, reverse=True)
    prefixes = [f"{kind}." for kind in kinds] or [""]
    latencies = [
        f"{prefix}{name}_{at}"
        for prefix in prefixes
        for name in LATENCIES
        for at in (measures.QUANTILES if name != "e2e" else ("p50", "p99"))
    ]
    return [name for name in ("tok_s", *latencies, "goodput", "cpu_s") if name in names]


def table(result: Result) -> str:
    """One scenario: a line for each measure, a column for each server."""
    names = list(result.runs)
    rows = [["", *names]]
    for measure in shown(result):
        text, scale = label(measure)
        rows.append([text, *(_cell(result, name, measure, scale) for name in names)])
    if names:
        rows.append(["failed of all", *(_failed(result.runs[name]) for name in names)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{result.name}: {result.about}"]
    lines += [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
        if names
    ]
    return "\n".join([*lines, *(f"  - {note}" for note in result.notes)])


def _cell(result: Result, name: str, measure: str, scale: float) -> str:
    """A server's median; for a peer with the range of ours over it."""
    value = measures.own(result.runs[name], measure)
    if value is None:
        return "-"
    text = number(value.median * scale)
    if name == OURS or OURS not in result.runs:
        return text
    ratio = measures.ratios(result.runs[OURS], result.runs[name], measure)
    return f"{text} ({_times(ratio)})" if ratio else text


def _times(ratio: Spread) -> str:
    middle = f"{number(ratio.median)}x"
    return middle if ratio.n == 1 else f"{middle} {number(ratio.low)}..{number(ratio.high)}"


def _failed(runs: Sequence[measures.Measures]) -> str:
    failed = sum(run["failed"] for run in runs)
    return f"{failed:.0f} of {failed + sum(run['requests'] for run in runs):.0f}"


def as_data(result: Result) -> dict[str, Any]:
    """One scenario for --json: every run's measures in seconds, and ours over each peer's."""
    ours = result.runs.get(OURS, [])
    ratios: dict[str, dict[str, Any]] = {}
    for name, runs in result.runs.items():
        if name == OURS or not ours:
            continue
        found = {measure: measures.ratios(ours, runs, measure) for measure in shown(result)}
        ratios[name] = {
            measure: ratio._asdict() for measure, ratio in found.items() if ratio is not None
        }
    return {
        "scenario": result.name,
        "about": result.about,
        "rate": result.rate,
        "runs": result.runs,
        "ratios": ratios,
        "notes": result.notes,
    }
