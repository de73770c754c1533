"""The workers table's columns: what each says, and which fit a given width. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lbhost.status import GpuStatus, WorkerStatus
from lbhost_tui import format as fmt
from lbhost_tui.freshness import Age
from lbhost_tui.paint import Part, Parts, Role, hue

WARM_C = 80.0
HOT_C = 95.0

STATES: Mapping[str, tuple[str, Role]] = {
    "starting": ("◌", Role.BUSY),
    "ready": ("●", Role.GOOD),
    "draining": ("◐", Role.WARN),
    "resting": ("◑", Role.WARN),
    "stopping": ("◔", Role.WARN),
    "stopped": ("○", Role.DIM),
    "backoff": ("◍", Role.BAD),
    "failed": ("✕", Role.BAD),
    "degraded": ("◐", Role.WARN),
    "sleeping": ("◦", Role.DIM),
}
"""Every state's sign and role; the word always stands beside it. The last two are no worker's."""


@dataclass(frozen=True)
class Row:
    """All that one line of the table is made of."""

    worker: WorkerStatus
    gpu: GpuStatus | None
    cells: Callable[[int], Sequence[float | None]]
    """Tokens/s, prompts' and answers', of the last two minutes in that many parts."""
    top: float
    """Tokens/s that fills the sparkline's height; the same in all rows."""
    age: Age = Age.FRESH
    """Of the figures that are averages over past requests."""


@dataclass(frozen=True)
class Column:
    """One column. `rank` says which columns go first when there is no room (highest first)."""

    key: str
    title: str
    rank: int
    least: int
    most: int
    cell: Callable[[Row, int], Parts]
    right: bool = True


def state(name: str) -> Parts:
    """A state's sign and its word, coloured."""
    sign, role = STATES.get(name, ("·", Role.TEXT))
    return ((f"{sign} {name}", role),)


def place(worker: WorkerStatus) -> str:
    """Where a worker runs: its CPU numbers and those it is lent now ("0 +1-3"), or its GPU."""
    if worker.gpu is not None:
        return f"gpu{worker.gpu}"
    lent = f" +{fmt.cpus(worker.lent)}" if worker.lent else ""
    return fmt.cpus(worker.cores) + lent


def bar(fraction: float | None, width: int, role: Role) -> Parts:
    """A line that is heavy as far as the fraction goes: readable without colour, too."""
    heavy = fmt.filled(fraction, width)
    parts: list[Part] = []
    if heavy:
        parts.append(("━" * heavy, role))
    if heavy < width:
        parts.append((("─" if fraction is not None else " ") * (width - heavy), Role.TRACK))
    return tuple(parts)


def heat(celsius: float | None) -> Role:
    """The role of a temperature."""
    if celsius is None:
        return Role.DIM
    return Role.BAD if celsius >= HOT_C else Role.WARN if celsius >= WARM_C else Role.TEXT


def load(fraction: float | None, warn: float, bad: float) -> Role:
    """The role of something that is bad when it is high."""
    if fraction is None:
        return Role.DIM
    return Role.BAD if fraction >= bad else Role.WARN if fraction >= warn else Role.TEXT


def quiet(value: float | None, text: str) -> Parts:
    """A number that steps back when it is nothing."""
    return ((text, Role.TEXT if value else Role.DIM),)


def idle_of(row: Row) -> float | None:
    """The idle part of the worker's cores, or of its GPU."""
    if row.worker.idle is not None or row.gpu is None or row.gpu.utilisation is None:
        return row.worker.idle
    return 1.0 - row.gpu.utilisation


def temperature_of(row: Row) -> float | None:
    """The temperature of the worker's cores, or of its GPU."""
    if row.worker.temp_c is None and row.gpu is not None:
        return row.gpu.temp_c
    return row.worker.temp_c


def _share(fraction: float | None, width: int, role: Role, text_role: Role) -> Parts:
    """A share as a number with a small bar, as much as the width allows."""
    text = fmt.percent(fraction).rjust(4)
    if width >= 9:
        return (*bar(fraction, width - 5, role), (" " + text, text_role))
    if width >= 6:
        return ((fmt.level(fraction), role), (text.rjust(width - 1), text_role))
    return ((text, text_role),)


def _idle(row: Row, width: int) -> Parts:
    idle = idle_of(row)
    return _share(idle, width, Role.BAR, Role.DIM if idle is None else Role.TEXT)


def _others(row: Row, width: int) -> Parts:
    others = row.worker.others
    role = load(others, 0.25, 0.6)
    return _share(others, width, Role.BAR if role is Role.TEXT else role, role)


def _state(row: Row, width: int) -> Parts:
    worker = row.worker
    if worker.spare and worker.state == "ready":
        return ((f"{STATES['ready'][0]} spare", Role.BUSY),)
    if worker.state == "failed":
        return (*state(worker.state), (" u", Role.KEY))  # the key that starts it again
    return state(worker.state)


def aged(text: str, age: Age) -> Part:
    """A figure that fades with its age, and is a dash in the end."""
    if age is Age.GONE or text == fmt.UNKNOWN:
        return (fmt.UNKNOWN, Role.DIM)
    return (text, Role.DIM if age is Age.FADED else Role.TEXT)


def _temperature(row: Row, width: int) -> Parts:
    celsius = temperature_of(row)
    return ((fmt.temperature(celsius), heat(celsius)),)


def _slots(row: Row, width: int) -> Parts:
    worker = row.worker
    busy = Role.TEXT if worker.slots_busy else Role.DIM
    return ((str(worker.slots_busy), busy), (f"/{worker.slots}", Role.DIM))


def _speed(row: Row, width: int) -> Parts:
    text = fmt.number(round(row.worker.tokens_s, 1))
    return ((text, Role.STRONG if row.worker.tokens_s >= 0.05 else Role.DIM),)


def _prompt_speed(row: Row, width: int) -> Parts:
    speed = row.worker.prompt_tokens_s
    return ((fmt.number(round(speed)), Role.STRONG if speed >= 0.5 else Role.DIM),)


def _spark(row: Row, width: int) -> Parts:
    return ((fmt.sparkline(row.cells(width), row.top), Role.SPARK),)


def _kv(row: Row, width: int) -> Parts:
    total = row.worker.kv_total
    fraction = row.worker.kv_used / total if total > 0 else None
    return ((fmt.percent(fraction), load(fraction, 0.9, 0.98) if fraction else Role.DIM),)


def _restarts(row: Row, width: int) -> Parts:
    return quiet(row.worker.restarts, fmt.number(row.worker.restarts))


COLUMNS: tuple[Column, ...] = (
    Column("id", "id", 0, 2, 3, lambda r, w: ((str(r.worker.id), hue(r.worker.id)),)),
    Column("state", "state", 1, 10, 10, _state, right=False),
    Column("core", "core", 4, 4, 11, lambda r, w: ((place(r.worker), Role.TEXT),)),
    Column("idle", "idle", 3, 6, 13, _idle),
    Column("others", "others", 5, 6, 13, _others),
    Column("temp", "temp", 6, 4, 4, _temperature),
    Column("slots", "slots", 7, 5, 5, _slots),
    Column(
        "pending",
        "pend",
        8,
        5,
        5,
        lambda r, w: quiet(r.worker.prefill_pending, fmt.number(r.worker.prefill_pending)),
    ),
    Column("prompt", "in/s", 4, 5, 5, _prompt_speed),
    Column("speed", "out/s", 2, 5, 5, _speed),
    Column("spark", "last 2 min", 10, 5, 60, _spark),
    Column("ttft", "ttft", 9, 5, 5, lambda r, w: (aged(fmt.latency(r.worker.ttft_s), r.age),)),
    Column("kv", "kv", 11, 4, 4, _kv),
    Column(
        "memory", "mem", 12, 4, 4, lambda r, w: quiet(r.worker.memory, fmt.size(r.worker.memory))
    ),
    Column("restarts", "rst", 13, 3, 3, _restarts),
)


@dataclass(frozen=True)
class Placed:
    """A column that is shown: `gap` blanks, then `width` cells, from cell `at` on."""

    column: Column
    width: int
    gap: int
    at: int


def place_columns(width: int, core_width: int) -> tuple[Placed, ...]:
    """The columns that fit into `width` cells, by rank, grown to use it up.

    `core_width` is what the longest list of cores takes.
    """
    left = width
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if column.least + 1 > left:
            continue
        chosen.append(column)
        left -= column.least + 1
    chosen = [column for column in COLUMNS if column in chosen]
    widths = {column.key: column.least for column in chosen}
    gap = 1

    def grow(key: str, most: int) -> None:
        nonlocal left
        if key in widths:
            more = max(0, min(left, most - widths[key]))
            widths[key] += more
            left -= more

    grow("core", min(core_width, 11))
    grow("spark", 10)
    if left >= len(chosen):
        gap, left = 2, left - len(chosen)
    half = left // 2
    for key in ("idle", "others"):
        grow(key, min(13, widths.get(key, 0) + half))
    for most in (12, 15, 20, 30, 60):
        if most - widths.get("spark", most) <= left:
            grow("spark", most)
    placed: list[Placed] = []
    at = 0
    for column in chosen:
        placed.append(Placed(column, widths[column.key], gap, at))
        at += widths[column.key] + gap
    return tuple(placed)
