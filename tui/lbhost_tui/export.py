"""Writes the dashboard's screen as an SVG file that needs nothing else."""

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
    first_s: float = FIRST_TIMEOUT_S,
) -> str | None:
    """Run the dashboard without a terminal and write its screen to `path`.

    Args:
        settle_s: for so long the sparklines may fill before.
        first_s: for so long a server is looked for.

    Returns what went wrong, or None.
    """
    async with dashboard.run_test(headless=True, size=SIZE) as pilot:
        try:
            async with asyncio.timeout(first_s):
                while dashboard.status is None:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return f"no server answers on {dashboard.socket_path}; start one with `lbhost serve`"
        dashboard.action_details()  # the picture has room for them
        await asyncio.sleep(settle_s)
        await pilot.pause()
        svg = dashboard.export_screenshot(title="lbhost")
    try:
        path.write_text(standalone(svg), encoding="utf-8")
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return None
