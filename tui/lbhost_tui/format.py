"""Numbers as people read them: rates, durations, sizes, bars. Pure.

None is a reading that does not exist and becomes a dash, never 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

UNKNOWN = "\N{EN DASH}"
LEVELS = "▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """At most five characters: 0, 0.4, 3.2, 412, 1.2k, 38k, 1.5M."""
    if value is None:
        return UNKNOWN
    if value < 0:
        return "-" + number(-value)
    if value == 0:
        return "0"
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    for limit, unit in ((1e3, ""), (1e6, "k"), (1e9, "M"), (1e12, "G")):
        scaled = value / (limit / 1e3)
        if scaled < 999.5:
            return f"{scaled:.1f}{unit}" if unit and scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0e}"


def percent(fraction: float | None) -> str:
    """0.973 as 97%."""
    return UNKNOWN if fraction is None else f"{fraction * 100:.0f}%"


def latency(seconds: float | None) -> str:
    """At most five characters: 0.4ms, 45ms, 180ms, 1.2s, 34s, 12m, 3h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.00095:
        return f"{seconds * 1e3:.1f}ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    if seconds < 5970:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h"


def span(seconds: float | None) -> str:
    """A stretch of time with at most two units: 12s, 4m 12s, 2h 13m, 3d 4h."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def size(count: float | None) -> str:
    """Bytes in at most four characters, binary units: 0, 312M, 1.2G."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in ("", "K", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.0f}P"


def temperature(celsius: float | None) -> str:
    """62°."""
    return UNKNOWN if celsius is None else f"{celsius:.0f}°"


def clock(unix_s: float) -> str:
    """The local time of day, 20:43:11."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def cpus(numbers: Sequence[int]) -> str:
    """CPU numbers with runs joined: [0, 1, 2, 3, 8] is 0-3,8."""
    if not numbers:
        return UNKNOWN
    runs: list[tuple[int, int]] = []
    for cpu in sorted(set(numbers)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], cpu)
        else:
            runs.append((cpu, cpu))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def filled(fraction: float | None, width: int) -> int:
    """How many of a bar's cells are filled; something above 0 shows at least one."""
    if fraction is None or fraction <= 0.005:
        return 0
    return max(1, min(width, round(fraction * width)))


def level(fraction: float | None) -> str:
    """A one-cell upright bar: blank when unknown or nothing, ▁ to █ else."""
    if fraction is None or fraction <= 0.005:
        return " "
    return LEVELS[min(len(LEVELS) - 1, max(0, int(fraction * len(LEVELS))))]


def sparkline(values: Sequence[float | None], top: float) -> str:
    """One cell a value: blank for none and for 0, up to █ for `top` and above."""
    cells: list[str] = []
    steps = len(LEVELS) - 1
    for value in values:
        if value is None or value <= 0 or top <= 0:
            cells.append(" ")
        else:
            cells.append(LEVELS[max(0, min(steps, round(value / top * steps)))])
    return "".join(cells)
