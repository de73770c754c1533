"""The top of the screen: which server this is, and how it is doing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from lbhost.status import Status
from lbhost_tui import columns, models
from lbhost_tui import format as fmt
from lbhost_tui.line import Lines
from lbhost_tui.models import named
from lbhost_tui.paint import Palette, Parts, Role, fit, join, spread, width_of

Cells = Callable[[int], Sequence[float | None]]

FIGURES = (
    ("req/s", 7),
    ("prefill/s", 11),
    ("decode/s", 10),
    ("ttft p50", 10),
    ("p95", 7),
    ("running", 9),
    ("queue", 13),
    ("failing", 9),
)
"""Each figure's name and the cells that it takes, at least; 76 in all."""
BAR = 16
"""Cells of the bar that shows what the p95 was spent on, where there is room for it."""
SPACED = 110
"""From this width on, the figures stand further apart."""


def title(status: Status | None, width: int, lost: Parts = ()) -> Parts:
    """Model, state, endpoint and uptime; when it is tight, the model's name goes last.

    `lost`: in place of state and uptime, which are the last known ones of a server that is gone.
    """
    brand: Parts = ((" lbhost ", Role.KEY),)
    if status is None:
        return brand
    state = lost or columns.state(status.state)
    where: Parts = ((status.endpoint, Role.TEXT),)
    up: Parts = (("up ", Role.DIM), (fmt.span(status.uptime_s), Role.TEXT))
    if lost:
        where, up = ((status.endpoint, Role.DIM),), ()
    model: Parts = ((" " + named(status), Role.STRONG),)
    if status.kind != "chat" and len(status.models) < 2:
        model = (*model, (f" {status.kind}", Role.DIM))
    scaled: Parts = ()
    if len(status.models) == 1 and (told := models.scaling(status.models[0])):
        scaled = ((" ", Role.TEXT), *told)
    for left, right in (
        ((*brand, *model, *scaled), join((state, where, up), 3)),
        ((*brand, *model, *scaled), join((state, where, up), 2)),
        ((*brand, *model), join((state, where, up), 3)),
        ((*brand, *model), join((state, where, up), 2)),
        ((*brand, *model), join((state, where), 2)),
        ((*brand, *model), state),
        (model, state),
        (model, state[:1]),
        (model, ()),
    ):
        right = (*right, (" ", Role.TEXT))
        if width_of(left) + width_of(right) + 2 <= width:
            return spread(left, right, width)
    return fit(model, width)


def lost(seen_s: float | None, *, unreadable: bool) -> Parts:
    """What stands for a server's state when it does not answer, or another one does that this
    version cannot read. `seen_s`: when it was last seen, by the wall clock."""
    if unreadable:
        return (("✕ other version", Role.BAD),)
    since = "" if seen_s is None else f" since {fmt.clock(seen_s)}"
    return (("✕ lost", Role.BAD), (since, Role.BAD))


def figures(status: Status | None) -> tuple[Parts, ...]:
    """The values under `FIGURES`, in that order."""
    if status is None:
        return tuple(((fmt.UNKNOWN, Role.DIM),) for _ in FIGURES)
    traffic = status.traffic
    full = columns.load(traffic.queue_depth / max(1, traffic.queue_limit), 0.5, 0.9)
    queue: Parts = (
        (str(traffic.queue_depth), full if full is not Role.TEXT else _weight(traffic.queue_depth)),
        (f" of {traffic.queue_limit}", Role.DIM),
    )
    plain = (
        (fmt.number(round(traffic.requests_s, 1)), traffic.requests_s >= 0.05),
        (fmt.number(round(traffic.prompt_tokens_s)), traffic.prompt_tokens_s >= 0.5),
        (fmt.number(round(traffic.tokens_s, 1)), traffic.tokens_s >= 0.05),
        (fmt.latency(traffic.ttft_p50_s), traffic.ttft_p50_s),
        (fmt.latency(traffic.ttft_p95_s), traffic.ttft_p95_s),
        (str(traffic.in_flight), traffic.in_flight),
    )
    failing: Parts = ((fmt.percent(traffic.error_rate), _failing(traffic.error_rate)),)
    return (*(((text, _weight(value)),) for text, value in plain), queue, failing)


def why(status: Status | None, width: int) -> Parts:
    """What slowness comes of: what the p95 was spent on, and how long the queue makes wait."""
    if status is None:
        return ()
    traffic = status.traffic
    spent = (traffic.ttft_p95_queue_s, traffic.ttft_p95_prefill_s, traffic.ttft_p95_step_s)
    waits: Parts = ()
    if traffic.oldest_wait_s is not None:
        oldest = traffic.oldest_wait_s
        waits = (("oldest waits ", Role.DIM), (fmt.latency(oldest), _waiting(oldest)))
        if traffic.next_start_s is not None:
            waits += ((", next ", Role.DIM), (fmt.latency(traffic.next_start_s), Role.TEXT))
        waits += ((" ", Role.TEXT),)
    left: Parts = ()
    for bar, names in ((BAR, _SPENT), (0, _SPENT), (0, _SPENT_SHORT)):
        left = _split(spent, bar, names)
        if width_of(left) + width_of(waits) < width:
            break
    return spread(left, waits, width)


_SPENT = (("queue", Role.WARN), ("prefill", Role.BUSY), ("first step", Role.GOOD))
_SPENT_SHORT = (("queue", Role.WARN), ("prefill", Role.BUSY), ("step", Role.GOOD))


def _split(spent: Sequence[float | None], bar: int, names: Sequence[tuple[str, Role]]) -> Parts:
    """The parts of the p95 by name, after a bar of so many cells."""
    known = [seconds for seconds in spent if seconds is not None]
    if len(known) < len(spent) or sum(known) <= 0:
        return ((" p95 of the last minute: no request yet", Role.DIM),)
    parts: list[tuple[str, Role]] = [(" p95 = ", Role.DIM)]
    if bar:
        cells = [fmt.filled(seconds / sum(known), bar) for seconds in known]
        cells[cells.index(max(cells))] += bar - sum(cells)
        marks = zip(cells, "╍━─", names, strict=True)
        parts += [(sign * count, role) for count, sign, (_, role) in marks if count]
        parts.append(("  ", Role.TEXT))
    for at, (seconds, (name, role)) in enumerate(zip(known, names, strict=True)):
        parts += [(" + " if at else "", Role.DIM), (f"{name} ", role)]
        parts.append((fmt.latency(seconds), Role.TEXT))
    return tuple(parts)


def _weight(value: float | None) -> Role:
    return Role.STRONG if value else Role.DIM


def _waiting(seconds: float | None) -> Role:
    role = columns.load(seconds, 5.0, 30.0)
    return role if role is not Role.TEXT else _weight(seconds)


def _failing(rate: float | None) -> Role:
    role = columns.load(rate, 0.001, 0.05)
    return role if role is not Role.TEXT else Role.DIM


class ServerHeader(Vertical):
    """Title, the figures' names, the figures, and why. Each figure redraws by itself."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="header")
        self._palette = palette
        self._title = Lines(palette, name="title")
        self._figures = [Lines(palette, classes="figure") for _ in FIGURES]
        self._spark = Lines(palette, name="total")
        self._why = Lines(palette, name="why")
        self._last: tuple[Status | None, Cells | None, Parts] = (None, None, ())

    def compose(self) -> ComposeResult:
        """Build the lines."""
        yield self._title
        with Horizontal(id="figures"):
            yield from self._figures
            yield self._spark
        yield self._why

    def on_mount(self) -> None:
        """Show that nothing is known yet."""
        self._draw()

    def on_resize(self) -> None:
        """The title and the sparkline depend on the width."""
        self.call_after_refresh(self._draw)

    def show(self, status: Status | None, tokens: Cells | None, gone: Parts = ()) -> None:
        """Show a picture; `tokens` gives tokens/s of the last two minutes in n parts.

        `gone`: that the picture is only a memory, and of when; see `lost`.
        """
        self._last = (status, tokens, gone)
        self._draw()

    def _draw(self) -> None:
        status, tokens, gone = self._last
        stale = bool(gone)
        spaced = 2 if self.size.width >= SPACED else 0
        self._title.show([title(status, self.size.width, gone)])
        for line, (name, least), value in zip(self._figures, FIGURES, figures(status), strict=True):
            if line.styles.width is None or line.styles.width.value != least + spaced:
                line.styles.width = least + spaced
            pad = (" ", Role.TEXT)
            line.show([(pad, (name, Role.TITLE)), (pad, *value)], stale=stale)
        self._why.show([why(status, self.size.width)], stale=stale)
        width = min(60, self._spark.size.width - 1)
        if tokens is None or width < 10:
            self._spark.show([])
            return
        cells = tokens(width)
        top = max((value for value in cells if value is not None), default=0.0)
        label = "in+out/s, last 2 min"
        name_line: Parts = ((label.rjust(len(cells))[-len(cells) :], Role.TITLE),)
        self._spark.show(
            [
                spread((), (*name_line, (" ", Role.TEXT)), self._spark.size.width),
                spread(
                    (),
                    ((fmt.sparkline(cells, top), Role.SPARK), (" ", Role.TEXT)),
                    self._spark.size.width,
                ),
            ],
            stale=stale,
        )
