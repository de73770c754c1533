"""Where lbhost comes in: runs the dashboard in the terminal, or has its picture written."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

from lbhost_tui import export
from lbhost_tui.app import Dashboard

SOCKET = "admin.sock"


def _plain() -> bool:
    """Whether the terminal has only 16 colours, or the user wants none."""
    if "NO_COLOR" in os.environ:
        return True
    return Console(force_terminal=True).color_system in (None, "standard")


def run(
    runtime_dir: Path,
    *,
    export_svg: Path | None = None,
    settle_s: float = 0.0,
    size: tuple[int, int] = export.SIZE,
    once: bool = False,
    stops_server: bool = False,
    readonly: bool = False,
) -> int:
    """Show the dashboard until it is quit, write one picture of it to `export_svg`, or print one.

    Args:
        settle_s: for so long the picture's sparklines fill first.
        size: the picture's columns and rows.
        once: print the screen as text, as large as the terminal, and end.
        stops_server: the caller ends the server afterwards, so that quitting asks.
        readonly: nothing can be ordered.

    Returns the exit code: 0, or 1 after one line on stderr that says what is missing.
    """
    socket_path = runtime_dir / SOCKET
    problem: str | None
    if export_svg is not None:
        if settle_s:
            sys.stderr.write(f"watching the server for {settle_s:g} s\n")
        picture = export.picture(
            Dashboard(socket_path, readonly=readonly), export_svg, settle_s=settle_s, size=size
        )
        problem = asyncio.run(picture)
        if problem is None:
            sys.stderr.write(f"wrote {export_svg}\n")
    elif once:
        dashboard = Dashboard(socket_path, plain=True, readonly=readonly)
        found = shutil.get_terminal_size(export.SIZE)
        screen, problem = asyncio.run(export.text(dashboard, (found.columns, found.lines)))
        sys.stdout.write(screen)
    elif not (sys.stdin.isatty() and sys.stdout.isatty()):
        problem = "lbhost tui needs a terminal; for scripts there is `lbhost tui --once --json`"
    else:
        dashboard = Dashboard(
            socket_path, plain=_plain(), stops_server=stops_server, readonly=readonly
        )
        dashboard.run()
        problem = None if dashboard.return_code in (0, None) else "the dashboard has failed"
    if problem is not None:
        sys.stderr.write(f"lbhost: {problem}\n")
    return 0 if problem is None else 1
