"""Writes the dashboard's screen as an SVG file that needs nothing else."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbhost_tui.app import Dashboard

SIZE = (120, 32)
FIRST_TIMEOUT_S = 10.0
SETTLE_S = 6.0
"""How long the sparklines may fill before the picture is taken."""

_FONT_FACES = re.compile(r"@font-face\s*\{[^}]*\}\s*")
_FONTS = "'DejaVu Sans Mono', 'Cascadia Mono', Menlo, Consolas, monospace"


def standalone(svg: str) -> str:
    """The same picture without fonts to be fetched from elsewhere."""
    svg = _FONT_FACES.sub("", svg)
    return re.sub(r"font-family: Fira Code, monospace", f"font-family: {_FONTS}", svg)


async def picture(
    dashboard: Dashboard,
    path: Path,
    *,
    settle_s: float = SETTLE_S,
    first_s: float = FIRST_TIMEOUT_S,
) -> str | None:
    """Run the dashboard without a terminal and write its screen to `path`.

    Returns what went wrong, or None.
    """
    async with dashboard.run_test(headless=True, size=SIZE) as pilot:
        try:
            async with asyncio.timeout(first_s):
                while dashboard.status is None:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return f"no server answers on {dashboard.socket_path}; start one with `lbhost serve`"
        await asyncio.sleep(settle_s)
        await pilot.pause()
        svg = dashboard.export_screenshot(title="lbhost")
    try:
        path.write_text(standalone(svg), encoding="utf-8")
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return None
