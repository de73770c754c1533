"""The top of the screen: which server this is, and how it is doing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from lbhost.status import Status
from lbhost_tui import columns
from lbhost_tui import format as fmt
from lbhost_tui.line import Lines
from lbhost_tui.paint import Palette, Parts, Role, fit, join, spread, width_of

Cells = Callable[[int], Sequence[float | None]]

FIGURES = (
    ("req/s", 7),
    ("in/s", 7),
    ("out/s", 7),
    ("ttft p50", 10),
    ("p95", 7),
    ("running", 9),
    ("queue", 13),
    ("oldest", 8),
    ("failing", 9),
)
"""Each figure's name and the cells that it takes, at least; 77 in all."""
SPACED = 110
"""From this width on, the figures stand further apart."""


def title(status: Status | None, width: int) -> Parts:
    """Model, state, endpoint and uptime; when it is tight, the model's name goes last."""
    brand: Parts = ((" lbhost ", Role.KEY),)
    if status is None:
        return brand
    state = columns.state(status.state)
    where: Parts = ((status.endpoint, Role.TEXT),)
    up: Parts = (("up ", Role.DIM), (fmt.span(status.uptime_s), Role.TEXT))
    model: Parts = ((" " + status.model, Role.STRONG),)
    if status.kind != "chat":
        model = (*model, (f" {status.kind}", Role.DIM))
    for left, right in (
        ((*brand, *model), join((state, where, up), 3)),
        ((*brand, *model), join((state, where, up), 2)),
        ((*brand, *model), join((state, where), 2)),
        ((*brand, *model), state),
        (model, state),
        (model, ()),
    ):
        right = (*right, (" ", Role.TEXT))
        if width_of(left) + width_of(right) + 2 <= width:
            return spread(left, right, width)
    return fit(model, width)


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
    waits: Parts = ((fmt.latency(traffic.oldest_wait_s), _waiting(traffic.oldest_wait_s)),)
    failing: Parts = ((fmt.percent(traffic.error_rate), _failing(traffic.error_rate)),)
    return (*(((text, _weight(value)),) for text, value in plain), queue, waits, failing)


def _weight(value: float | None) -> Role:
    return Role.STRONG if value else Role.DIM


def _waiting(seconds: float | None) -> Role:
    role = columns.load(seconds, 5.0, 30.0)
    return role if role is not Role.TEXT else _weight(seconds)


def _failing(rate: float | None) -> Role:
    role = columns.load(rate, 0.001, 0.05)
    return role if role is not Role.TEXT else Role.DIM


class ServerHeader(Vertical):
    """Three lines: title, the figures' names, the figures. Each figure redraws by itself."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="header")
        self._palette = palette
        self._title = Lines(palette, name="title")
        self._figures = [Lines(palette, classes="figure") for _ in FIGURES]
        self._spark = Lines(palette, name="total")
        self._last: tuple[Status | None, Cells | None, bool] = (None, None, False)

    def compose(self) -> ComposeResult:
        """Build the lines."""
        yield self._title
        with Horizontal(id="figures"):
            yield from self._figures
            yield self._spark

    def on_mount(self) -> None:
        """Show that nothing is known yet."""
        self._draw()

    def on_resize(self) -> None:
        """The title and the sparkline depend on the width."""
        self.call_after_refresh(self._draw)

    def show(self, status: Status | None, tokens: Cells | None, *, stale: bool) -> None:
        """Show a picture; `tokens` gives tokens/s of the last two minutes in n parts."""
        self._last = (status, tokens, stale)
        self._draw()

    def _draw(self) -> None:
        status, tokens, stale = self._last
        spaced = 2 if self.size.width >= SPACED else 0
        self._title.show([title(status, self.size.width)], stale=stale)
        for line, (name, least), value in zip(self._figures, FIGURES, figures(status), strict=True):
            if line.styles.width is None or line.styles.width.value != least + spaced:
                line.styles.width = least + spaced
            pad = (" ", Role.TEXT)
            line.show([(pad, (name, Role.TITLE)), (pad, *value)], stale=stale)
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
