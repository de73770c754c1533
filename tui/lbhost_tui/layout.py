"""How the screen's height is shared out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIXED = 5
"""Header 3, notice 1, keys 1."""
BESIDE = 116
"""From this width on, details and log stand side by side."""
DETAIL_ROWS = 16
LOG_ROWS = 7


@dataclass(frozen=True)
class Plan:
    """Rows of the table (None: all there is), and which panes are shown."""

    table: int | None
    detail: bool
    log: bool


def log_fits(height: int, workers: int) -> bool:
    """Whether there is room for the log without being asked for."""
    return height - FIXED - 2 - workers >= LOG_ROWS


def plan(width: int, height: int, workers: int, *, detail: bool, log: bool) -> Plan:
    """Share `height` rows between the table of so many workers and the panes asked for.

    Below `BESIDE` columns the details win over the log.
    """
    if detail and width < BESIDE:
        log = False
    if not detail and not log:
        return Plan(None, False, False)
    room = height - FIXED
    pane = DETAIL_ROWS if detail else max(LOG_ROWS, room // 3)
    table = min(workers + 2, max(room - pane, 4))
    return Plan(max(table, 3), detail, log)
