"""How the screen's height is shared out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIXED = 6
"""Header 4, notice 1, keys 1."""
BESIDE = 116
"""From this width on, details and log stand side by side."""
DETAIL_ROWS = 16
LOG_ROWS = 7
REQUEST_ROWS = 8
"""Line above, titles, six requests."""
ROOMY = 38
"""From this height on, the requests are shown without being asked for."""
LEAST_TABLE = 5
"""Titles and four workers, or fewer where there are fewer."""


@dataclass(frozen=True)
class Wish:
    """What is to be shown beside the workers."""

    cores: bool = False
    requests: bool = False
    detail: bool = False
    log: bool = False


@dataclass(frozen=True)
class Plan:
    """Rows of each part; None: what the others leave; 0: it is not shown."""

    table: int | None
    cores: int
    requests: int | None
    detail: bool
    log: bool


def log_fits(height: int, workers: int, cores: int) -> bool:
    """Whether there is room for the log without being asked for."""
    return height - FIXED - 2 - workers - cores >= LOG_ROWS


def both_fit(height: int, *, detail: bool) -> bool:
    """Whether there is room for requests and a pane below them."""
    below = DETAIL_ROWS if detail else LOG_ROWS
    return height - FIXED - LEAST_TABLE >= REQUEST_ROWS + below


def plan(width: int, height: int, workers: int, cores: int, wish: Wish) -> Plan:
    """Share `height` rows between the table of so many workers and what else is wished for.

    Below `BESIDE` columns the details win over the log; where there is no room for both, the
    requests win over either.

    Args:
        cores: rows that the strip of cores takes.
    """
    detail, log = wish.detail, wish.log
    if detail and width < BESIDE:
        log = False
    if wish.requests and (detail or log) and not both_fit(height, detail=detail):
        detail = log = False
    below = detail or log
    room = height - FIXED
    strip = cores if wish.cores and room - cores >= LEAST_TABLE + LOG_ROWS else 0
    room -= strip
    if not below and not wish.requests:
        return Plan(None, strip, 0, False, False)
    pane = 0
    if below:
        pane = DETAIL_ROWS if detail else max(LOG_ROWS, room // 4)
    requests: int | None = 0
    kept = 0
    if wish.requests:
        kept = max(REQUEST_ROWS, room // 3) if below else REQUEST_ROWS
        kept = min(kept, max(REQUEST_ROWS, room - pane - workers - 1))
        requests = kept if below else None
    table = max(min(LEAST_TABLE, workers + 1), min(workers + 1, room - pane - kept), 3)
    return Plan(table, strip, requests, detail, log)
