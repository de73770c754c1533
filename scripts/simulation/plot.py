"""The figures of several policies as one picture. matplotlib is in the `bench` extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simulation.costs import Costs
from simulation.play import Played
from simulation.report import summary
from simulation.requests import Request

POINTS = 200
"""Of each curve."""


def draw(runs: Sequence[Played], costs: Costs, title: str, path: Path) -> None:
    """Write a picture: how many requests had their first and their last token by when, and what
    part of them was good beside what part of the cores was used.

    The file's name says the format (.svg, .png). Raises OSError, and ValueError for a format
    that is not known.
    """
    with mpl.rc_context({"svg.hashsalt": "lbhost", "font.size": 9}):
        figure = Figure(figsize=(12, 4), layout="constrained")
        first, last, bars = figure.subplots(1, 3)
        figure.suptitle(title)
        _curves(first, runs, lambda request: request.ttft)
        first.set_xlabel("seconds to the first token")
        first.set_ylabel("part of the requests")
        first.legend(fontsize=8)
        _curves(last, runs, lambda request: request.completion)
        last.set_xlabel("seconds to the last token")
        _bars(bars, [summary(played, costs) for played in runs])
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _curves(axes: Axes, runs: Sequence[Played], seconds: Callable[[Request], float]) -> None:
    for played in runs:
        values = sorted(seconds(request) for request in played.requests if request.error is None)
        if not values:
            continue
        at = [round(i * (len(values) - 1) / POINTS) for i in range(POINTS + 1)]
        axes.plot([values[i] for i in at], [(i + 1) / len(values) for i in at], label=played.policy)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)


def _bars(axes: Axes, summaries: Sequence[dict[str, Any]]) -> None:
    names = [str(one["policy"]) for one in summaries]
    for shift, key, label in ((-0.2, "good", "good requests"), (0.2, "utilisation", "cores busy")):
        values = [one[key] for one in summaries]
        axes.barh([i + shift for i in range(len(names))], values, height=0.4, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(fontsize=8)
