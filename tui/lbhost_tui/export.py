"""The dashboard's screen without a terminal: as an SVG file that needs nothing else, or as text."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbhost_tui.app import Dashboard

SIZE = (120, 32)
FIRST_TIMEOUT_S = 10.0
SETTLES_S = 0.3
"""After the first status, for the requests and events that come next."""

_FONT_FACES = re.compile(r"@font-face\s*\{[^}]*\}\s*")
_TEXT = re.compile(
    r'(<text [^>]*?)x="([\d.]+)"([^>]*?)textLength="([\d.]+)"([^>]*>)([^<]*)(</text>)'
)
_FONTS = "'DejaVu Sans Mono', 'Cascadia Mono', Menlo, Consolas, monospace"
_BLANK = "&#160;"


def standalone(svg: str) -> str:
    """The same picture, without fonts to be fetched and without blanks that hold text in place.

    Some viewers drop leading blanks, which would move the text.
    """
    svg = _FONT_FACES.sub("", svg)
    svg = svg.replace("font-family: Fira Code, monospace", f"font-family: {_FONTS}")
    # Cells are 12.2 wide: 0.61 of the size in Fira Code, 0.602 in DejaVu Sans Mono.
    svg = svg.replace("font-size: 20px", "font-size: 20.27px")
    return _TEXT.sub(_unpadded, svg)


def _unpadded(match: re.Match[str]) -> str:
    before, x, between, length, after, text, end = match.groups()
    cells = len(html.unescape(text))
    bare = text
    leading = trailing = 0
    while bare.startswith(_BLANK):
        bare, leading = bare[len(_BLANK) :], leading + 1
    while bare.endswith(_BLANK):
        bare, trailing = bare[: -len(_BLANK)], trailing + 1
    if not bare:
        return ""
    each = float(length) / cells
    x, length = f"{float(x) + leading * each:g}", f"{float(length) - (leading + trailing) * each:g}"
    return f'{before}x="{x}"{between}textLength="{length}"{after}{bare}{end}'


async def picture(
    dashboard: Dashboard,
    path: Path,
    *,
    settle_s: float = 0.0,
    first_s: float | None = None,
    size: tuple[int, int] = SIZE,
) -> str | None:
    """Run the dashboard without a terminal and write its screen to `path`.

    Args:
        settle_s: for so long the sparklines may fill before.
        first_s: for so long a server is looked for; None: FIRST_TIMEOUT_S.
        size: columns and rows.

    Returns what went wrong, or None.
    """
    async with dashboard.run_test(headless=True, size=size) as pilot:
        problem = await _first(dashboard, first_s)
        if problem is not None:
            return problem
        dashboard.action_details()  # the picture has room for them
        await asyncio.sleep(settle_s)
        await pilot.pause()
        svg = dashboard.export_screenshot(title="lbhost")
    try:
        path.write_text(standalone(svg), encoding="utf-8")
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return None


async def text(
    dashboard: Dashboard, size: tuple[int, int], *, first_s: float | None = None
) -> tuple[str, str | None]:
    """The first picture of the screen as plain text, and what went wrong, or None."""
    async with dashboard.run_test(headless=True, size=size) as pilot:
        problem = await _first(dashboard, first_s)
        if problem is not None:
            return "", problem
        await pilot.pause(SETTLES_S)
        strips = dashboard.screen._compositor.render_strips()
        lines = ["".join(segment.text for segment in strip).rstrip() for strip in strips]
    return "\n".join(lines).rstrip() + "\n", None


async def _first(dashboard: Dashboard, first_s: float | None) -> str | None:
    """Wait for a server's first answer; what is wrong, if none comes."""
    try:
        async with asyncio.timeout(FIRST_TIMEOUT_S if first_s is None else first_s):
            while dashboard.status is None:
                await asyncio.sleep(0.05)
    except TimeoutError:
        return f"no server answers on {dashboard.socket_path}; start one with `lbhost serve`"
    return None
