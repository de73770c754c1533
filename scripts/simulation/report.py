"""What runs gave: percentiles, goodput, utilisation; as a table and as plain data. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.figures import number
from benchmarks.stats import quantile
from simulation.costs import Costs
from simulation.play import Played
from simulation.requests import Request

GOOD_TTFT_S = 1.0
GOOD_GAP_S = 0.1
"""A request is good when its first token came within the one, and the next ones on average
within the other."""

SHORT = 64
"""Prompt tokens up to which a request counts as short."""

PARTS = (0.5, 0.9, 0.95, 0.99)


def summary(played: Played, costs: Costs) -> dict[str, Any]:
    """The figures of one run. Times in seconds; None where there is nothing to say.

    `wait_s` is the time to the first token over what an idle worker takes for the same prompt:
    what is left of it under the best policy is chance, while a long prompt's own time is not.
    """
    done = [request for request in played.requests if request.error is None]
    short = [request for request in done if request.prompt_tokens <= SHORT]
    return {
        "policy": played.policy,
        "requests": len(played.requests),
        "failed": len(played.requests) - len(done),
        "ttft_s": _quantiles([request.ttft for request in done]),
        "wait_s": _quantiles(
            [request.ttft - costs.alone_s(request.prompt_tokens) for request in done]
        ),
        "short_ttft_s": _quantiles([request.ttft for request in short]),
        "completion_s": _quantiles([request.completion for request in done]),
        "gap_s": {f"p{100 * part:g}": played.gaps.quantile(part) for part in PARTS},
        "goodput_s": sum(map(good, done)) / played.length_s,
        "done_s": len(done) / played.length_s,
        "good": sum(map(good, done)) / max(1, len(played.requests)),
        "tok_s": sum(request.output_tokens for request in done) / played.length_s,
        "utilisation": sum(played.busy_s) / len(played.busy_s) / played.length_s,
        "length_s": played.length_s,
        "took_s": played.took_s,
    }


def good(request: Request) -> bool:
    """Whether it was served as a person would like it."""
    return request.ttft < GOOD_TTFT_S and request.gap < GOOD_GAP_S


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {f"p{100 * part:g}": quantile(values, part) if values else None for part in PARTS}


_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("TTFT p50", "ttft_s", "p50"),
    ("p95", "ttft_s", "p95"),
    ("p99", "ttft_s", "p99"),
    ("wait p50", "wait_s", "p50"),
    ("p99", "wait_s", "p99"),
    ("short p99", "short_ttft_s", "p99"),
    ("done p50", "completion_s", "p50"),
    ("p99", "completion_s", "p99"),
    ("gap p99", "gap_s", "p99"),
    ("good", "good", ""),
    ("good/s", "goodput_s", ""),
    ("done/s", "done_s", ""),
    ("tok/s", "tok_s", ""),
    ("busy", "utilisation", ""),
    ("failed", "failed", ""),
    ("took CPU s", "took_s", ""),
)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else number(value)


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """A line for each policy. Times in seconds."""
    rows = [("policy", *(heading for heading, _, _ in _COLUMNS))]
    for one in summaries:
        cells = [one["policy"]]
        for _, name, part in _COLUMNS:
            value = one[name][part] if part else one[name]
            cells.append(
                "-" if value is None else str(value) if name == "failed" else number(value)
            )
        rows.append(tuple(cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
