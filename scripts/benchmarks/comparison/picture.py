"""The ratios as one SVG: a panel for each measure, a row for each scenario, a mark for each peer.

Pure: builds text. Written by hand, so that every mark says its figures when it is pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.comparison import measures
from benchmarks.comparison.report import OURS
from benchmarks.comparison.run import Result

PANELS = {
    "tok_s": ("output tok/s", True),
    "ttft_p50": ("TTFT p50", False),
    "ttft_p99": ("TTFT p99", False),
    "gap_p99": ("inter-token p99", False),
    "goodput": ("goodput", True),
}
"""Measure, its title, whether more is better."""

COLOURS = {
    "llama-server": "#0072b2",
    "haproxy": "#d55e00",
    "nginx": "#009e73",
    "dasllama": "#cc79a7",
}
"""Told apart by colour-blind readers too."""

LOW, HIGH = 1 / 16, 16.0
"""Ratios beyond are drawn at the edge."""

NAMES_PX = 110
PANEL_PX = 170
GAP_PX = 16
TOP_PX = 84
ROW_PX = 14


def draw(results: Sequence[Result], described: str) -> str:
    """The picture. Scenarios without a peer's figures are left out."""
    rows = [result for result in results if _peers(result)]
    peers = [name for name in COLOURS if any(name in _peers(result) for result in rows)]
    height_px = ROW_PX * max(1, len(peers)) + 10
    width = NAMES_PX + len(PANELS) * (PANEL_PX + GAP_PX) + GAP_PX
    height = TOP_PX + len(rows) * height_px + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(12, 20, "lbhost over its peers: median and range of paired ratios", size=14),
        _text(12, 37, described, colour="#666666"),
        *_legend(peers),
    ]
    for number, (measure, (title, more)) in enumerate(PANELS.items()):
        left = NAMES_PX + number * (PANEL_PX + GAP_PX)
        better = "right is better" if more else "left is better"
        parts.append(_text(left, TOP_PX - 10, f"{title} ({better})"))
        parts += _grid(left, TOP_PX, len(rows) * height_px)
        for row, result in enumerate(rows):
            top = TOP_PX + row * height_px
            for place, peer in enumerate(peers):
                y = top + 5 + ROW_PX * (place + 0.5)
                parts += _mark(result, peer, measure, left, y)
    for row, result in enumerate(rows):
        y = TOP_PX + (row + 0.5) * height_px + 4
        parts.append(_text(12, y, result.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _peers(result: Result) -> list[str]:
    return [name for name in result.runs if name != OURS] if OURS in result.runs else []


def _x(left: float, ratio: float) -> float:
    """Where a ratio is on the logarithmic axis of a panel."""
    kept = min(max(ratio, LOW), HIGH)
    return left + PANEL_PX * math.log(kept / LOW) / math.log(HIGH / LOW)


def _text(x: float, y: float, text: str, colour: str = "#222222", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _legend(peers: Sequence[str]) -> list[str]:
    parts: list[str] = []
    for number, peer in enumerate(peers):
        x = 16 + number * 110
        parts.append(f'<circle cx="{x}" cy="52" r="4" fill="{COLOURS[peer]}"/>')
        parts.append(_text(x + 8, 56, peer))
    return parts


def _grid(left: float, top: float, height: float) -> list[str]:
    parts: list[str] = []
    for ratio, name in ((0.1, "0.1x"), (0.5, "0.5x"), (1.0, "1x"), (2.0, "2x"), (10.0, "10x")):
        x = _x(left, ratio)
        colour = "#666666" if ratio == 1.0 else "#dddddd"
        parts.append(_line(x, top, x, top + height, colour))
        parts.append(_text(x - 9, top + height + 14, name, "#666666", 9))
    return parts


def _mark(result: Result, peer: str, measure: str, left: float, y: float) -> list[str]:
    runs = result.runs.get(peer, [])
    ratio = measures.ratios(result.runs[OURS], runs, measure)
    if ratio is None or ratio.low <= 0:
        return []
    colour = COLOURS[peer]
    said = f"{result.name}, {PANELS[measure][0]}, {peer}: {ratio.median:.2f}x"
    said += f" ({ratio.low:.2f}..{ratio.high:.2f}, {ratio.n})"
    return [
        _line(_x(left, ratio.low), y, _x(left, ratio.high), y, colour, 2.0),
        f'<circle cx="{_x(left, ratio.median):.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
        f"<title>{escape(said)}</title></circle>",
    ]
