"""When a process that died is started again, and when that is given up.

Pure: time and jitter are passed in. After Erlang's restart intensity: more than N restarts
within a period mean that starting again does not help.
"""

from __future__ import annotations

import msgspec

GOOD_RUN_S = 1.0
"""After that a crash is a new one: the process is started again at once; only a budget counts."""
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
JITTER = 0.2
"""Delays vary by this part up or down, so that processes which died together do not all
come back in the same moment."""


class Restarts(msgspec.Struct, frozen=True):
    """What has to be remembered of a process's crashes."""

    times: tuple[float, ...] = ()
    """When it crashed, seconds on any steady clock; those within the window only."""
    streak: int = 0
    """Crashes in a row without a good run before any of them."""


def after_crash(
    past: Restarts,
    *,
    now_s: float,
    ran_s: float,
    jitter: float,
    window_s: float,
    budget: int | None,
) -> tuple[Restarts, float | None]:
    """What to do about a crash.

    Args:
        ran_s: how long the process had been ready before it crashed; 0 if it never was.
        jitter: drawn from [-1, 1].
        window_s: the budget's.
        budget: restarts allowed within the window; None is without end.

    Returns:
        What to remember, and the seconds until the next start; None: give up.
    """
    times = (*(at for at in past.times if now_s - at < window_s), now_s)
    streak = 0 if ran_s >= GOOD_RUN_S else past.streak + 1
    if budget is None:
        times = times[-1:]
    elif len(times) > budget:
        return Restarts(times, streak), None
    if streak == 0:
        return Restarts(times, streak), 0.0
    delay = min(FIRST_DELAY_S * 2.0 ** min(streak - 1, 30), LONGEST_DELAY_S)
    return Restarts(times, streak), delay * (1.0 + JITTER * jitter)
