"""The dashboard: wires the feed to the widgets, and shares out the screen.

Speaks only the admin API. What is shown is decided in the widgets, what is ordered in
actions.py and orders.py, what is opened and closed in views.py; here they meet.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import DescendantFocus
from textual.theme import Theme
from textual.timer import Timer

from lbhost.status import RequestStatus, Status, WorkerStatus
from lbhost_tui import header, layout, notice, themes
from lbhost_tui.client import AdminClient
from lbhost_tui.columns import Row
from lbhost_tui.cores import CoreStrip, rows
from lbhost_tui.detail import Detail
from lbhost_tui.eventlog import EventLog
from lbhost_tui.feed import Feed
from lbhost_tui.filter import Filter
from lbhost_tui.freshness import Age, Freshness
from lbhost_tui.header import ServerHeader
from lbhost_tui.history import History
from lbhost_tui.keybar import Context, KeyBar
from lbhost_tui.layout import Wish
from lbhost_tui.messages import (
    EventsArrived,
    LogArrived,
    Pane,
    RequestsArrived,
    ServerGone,
    StatusArrived,
    WorkerSelected,
)
from lbhost_tui.models import grouped, named
from lbhost_tui.paint import ANSI, ANSI_THEME, RICH, RICH_THEME, Palette, Parts
from lbhost_tui.request_table import RequestTable
from lbhost_tui.surface import entitle
from lbhost_tui.views import Views
from lbhost_tui.workers import WorkersTable


class Dashboard(Views):
    """`plain` keeps to the terminal's own 16 colours (or none).

    `stops_server` says that whoever runs this ends the server after it: then quitting asks.
    `readonly`: nothing can be ordered.
    """

    CSS_PATH = "app.tcss"
    TITLE = "lbhost"
    ENABLE_COMMAND_PALETTE = False
    """Textual's own; ours is opened by `:`."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "drain", "drain"),
        Binding("u", "resume", "resume"),
        Binding("r", "restart", "restart"),
        Binding("R", "restart_all", "rolling restart"),
        Binding("plus", "scale_up", "scale up"),
        Binding("minus", "scale_down", "scale down"),
        Binding("enter", "details", "details"),
        Binding("t", "requests", "requests"),
        Binding("c", "cores", "cores"),
        Binding("l", "log", "log"),
        Binding("L", "worker_log", "worker's log"),
        Binding("slash", "filter", "filter"),
        Binding("colon,ctrl+p", "command_palette", "command"),
        Binding("space", "pause", "pause"),
        Binding("question_mark", "help", "help"),
        Binding("escape", "close", "close"),
        Binding("q,ctrl+c", "quit", "quit"),
    ]

    def __init__(
        self,
        socket_path: Path,
        *,
        plain: bool = False,
        stops_server: bool = False,
        readonly: bool = False,
    ) -> None:
        self._palette = Palette({}, ANSI.selected, ANSI.stale)
        self._palette.become(ANSI if plain else RICH)
        self.readonly = readonly
        self._stops_server = stops_server
        super().__init__(ansi_color=True if plain else None)
        self.animation_level = "none"
        self.register_theme(RICH_THEME)
        self.register_theme(ANSI_THEME)
        self.theme = ANSI_THEME.name if plain else RICH_THEME.name
        self._make_widgets(self._palette)
        self._client = AdminClient(socket_path)
        self._feed = Feed(self._client, self.post_message)
        self._status: Status | None = None
        self._seen_s: float | None = None
        self._heard: tuple[float, float] | None = None
        """When the newest picture came, shown or not: by time.monotonic() and the wall clock."""
        self._held: StatusArrived | None = None
        """The newest picture that came while paused."""
        self._paused = False
        self._gone: ServerGone | None = None
        self._pane_filters = {pane: Filter() for pane in Pane}
        self._said: Parts = ()
        self._said_timer: Timer | None = None
        self._wish = Wish(cores=True)
        self._total = History()
        self._speeds: defaultdict[int, History] = defaultdict(History)
        self._freshness = Freshness()
        self._doing: dict[str, None] = {}
        self._ticker: Timer | None = None

    def _make_widgets(self, palette: Palette) -> None:
        self._header = ServerHeader(palette)
        self._notice = notice.Notice(palette)
        self._table = WorkersTable(palette)
        self._cores = CoreStrip(palette)
        self._requests = RequestTable(palette)
        self._detail = Detail(palette)
        self._event_log = EventLog(palette)
        self._panes = Horizontal(self._detail, self._event_log, id="panes")
        self._keys = KeyBar(palette, readonly=self.readonly)

    def compose(self) -> ComposeResult:
        """Top to bottom."""
        yield self._header
        yield self._notice
        yield self._table
        yield self._cores
        yield self._requests
        yield self._panes
        yield self._keys

    def on_mount(self) -> None:
        """Start to listen."""
        self._ticker = self.set_interval(1.0, self.draw_notice, pause=True)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self._table.focus()
        self.draw()
        self.run_worker(self._feed.run(), name="feed", group="feed")

    def _theme_changed(self, theme: Theme) -> None:
        self.wear(theme)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own names, for themes that are not ours."""
        theme = self.get_theme(self.theme)
        return themes.VARIABLES if theme is None else themes.variables(theme)

    async def on_unmount(self) -> None:
        """Leave no connection behind."""
        self.workers.cancel_all()
        await self._client.close()

    @property
    def socket_path(self) -> Path:
        """Where it looks for the server."""
        return self._client.socket_path

    @property
    def client(self) -> AdminClient:
        """The connection to it."""
        return self._client

    @property
    def status(self) -> Status | None:
        """The last picture."""
        return self._status

    @property
    def stale(self) -> bool:
        """Whether that picture is only a memory."""
        return self._gone is not None

    @property
    def live_requests(self) -> Sequence[RequestStatus]:
        """The requests, if they are shown."""
        return self._requests.found if self._wish.requests else ()

    def selected_worker(self) -> WorkerStatus | None:
        """The one whose details are shown and whom orders mean."""
        workers = () if self._status is None else self._status.workers
        return next((w for w in workers if w.id == self._table.selected), None)

    def selected_request(self) -> RequestStatus | None:
        """The one that `x` cancels; None while the table is not shown."""
        return self._requests.selected if self._requests.display else None

    # --- what the feed says ---------------------------------------------------------------

    def on_status_arrived(self, message: StatusArrived) -> None:
        """A picture: remember its rates, show it."""
        status, now = message.status, message.at_s
        self._heard = now, time.time() - time.monotonic() + now
        self._total.add(now, status.traffic.tokens_s + status.traffic.prompt_tokens_s)
        self._freshness.note(status.workers, now)
        self._cores.note(status, now)
        ids = {worker.id for worker in status.workers}
        for gone in self._speeds.keys() - ids:
            del self._speeds[gone]
        for worker in status.workers:
            self._speeds[worker.id].add(now, worker.tokens_s + worker.prompt_tokens_s)
        if self._paused:
            self._held, self._gone = message, None
            return
        first = self._status is None
        self._status, self._seen_s, self._gone = status, now, None
        if self._ticker is not None:
            self._ticker.pause()
        if first and status.workers:
            self._wish_at_first(status)
        self.draw()

    def _wish_at_first(self, status: Status) -> None:
        """What there is room for without its being asked for."""
        height, wish = self.size.height, self._wish
        workers = len(list(grouped(status, self._rows(status, 0.0))))
        strip = rows(len(status.cores), self.size.width)
        log = wish.log or layout.log_fits(height, workers, strip)
        self._show(log=log, requests=wish.requests or height >= layout.ROOMY)
        self._feed.wake()

    def unpause(self) -> None:
        """Show what has come meanwhile."""
        held, self._held = self._held, None
        gone = self._gone  # since the newest picture
        if held is not None:
            self.on_status_arrived(held)
        if gone is not None:
            self.on_server_gone(gone)
        self.draw()

    def on_requests_arrived(self, message: RequestsArrived) -> None:
        """The live requests."""
        if not self._paused:
            self._requests.show(message.found, message.problem)

    def on_server_gone(self, message: ServerGone) -> None:
        """Keep the last picture, say how old it is, once a second."""
        self._gone = message
        if self._ticker is not None:
            self._ticker.resume()
        self.draw()

    def on_events_arrived(self, message: EventsArrived) -> None:
        """Lines for the log."""
        self._event_log.add(message.events)

    def on_log_arrived(self, message: LogArrived) -> None:
        """Lines that the worker whose log is shown has written."""
        self._event_log.add_written(message.worker, message.lines, first=message.first)

    # --- drawing --------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Share out the height anew."""
        self.call_after_refresh(self.draw)

    def _rows(self, status: Status, now: float) -> list[Row]:
        gpus = {gpu.index: gpu for gpu in status.gpus}
        shown = [
            worker for worker in status.workers if self._pane_filters[Pane.WORKERS].worker(worker)
        ]
        top = max((self._speeds[worker.id].peak for worker in status.workers), default=0.0)
        return [
            Row(
                worker=worker,
                gpu=None if worker.gpu is None else gpus.get(worker.gpu),
                cells=partial(self._speeds[worker.id].cells, now),
                top=top,
                age=self._freshness.age(worker.id, now),
            )
            for worker in shown
        ]

    def draw(self) -> None:
        """Everything anew; what looks the same is not sent to the terminal."""
        if not self._panes.is_mounted:
            return
        status, now = self._status, self._seen_s or 0.0
        shown = [] if status is None else list(grouped(status, self._rows(status, now)))
        self._arrange(len(shown))
        total = self._total
        tokens = None if status is None else partial(total.cells, now)
        self._header.show(status, tokens, self._lost())
        self._table.show(shown, stale=self.stale, empty=self._empty_text())
        self._cores.draw(status, now, stale=self.stale)
        if self.stale:
            self._requests.show(None, stale=True)
        else:
            self._requests.draw()
        self._draw_detail()
        self.draw_notice()

    def _draw_detail(self) -> None:
        worker = self.selected_worker()
        age = Age.GONE if worker is None else self._freshness.age(worker.id, self._seen_s or 0.0)
        self._detail.show(worker, self._status, age, stale=self.stale)

    def _lost(self) -> Parts:
        """What the header says of a server that does not answer; nothing of one that does."""
        if self._gone is None:
            return ()
        seen = None if self._heard is None else self._heard[1]
        return header.lost(seen, unreadable=self._gone.unreadable)

    def draw_notice(self) -> None:
        """The line between header and table."""
        parts: Parts = ()
        if self._gone is not None:
            ago = None if self._heard is None else time.monotonic() - self._heard[0]
            parts = notice.gone(ago, self._gone.reason, unreadable=self._gone.unreadable)
        elif self._status is not None:
            parts = notice.news(self._status, self._doing)
        if self._paused:
            parts = notice.paused(parts)
        shown = ""
        if self._status is not None:
            total = len(self._status.workers)
            count = sum(map(self._pane_filters[Pane.WORKERS].worker, self._status.workers))
            shown = f"{count} of {total} workers"
        filters = {pane: filter_.text for pane, filter_ in self._pane_filters.items()}
        self._notice.show(parts, filters, shown, self._said)

    def _empty_text(self) -> str:
        if self._status is None and self._gone is not None and self._gone.unreadable:
            return "another lbhost runs there"
        if self._status is None:
            where = self.socket_path
            return f"waiting for a server on\n{where}\n\nstart one with: lbhost serve"
        if self._pane_filters[Pane.WORKERS] and self._status.workers:
            return f"no worker matches “{self._pane_filters[Pane.WORKERS].text}”"
        if any(model.state == "sleeping" for model in self._status.models):
            return f"{self._status.model} sleeps; its next request wakes it"
        return f"starting: {named(self._status)} is being loaded"

    def _arrange(self, workers: int) -> None:
        width, height = self.size
        strip = 0 if self._status is None else rows(len(self._status.cores), width)
        plan = layout.plan(width, height, workers, strip, self._wish)
        self._panes.display = plan.detail or plan.log
        self._detail.display, self._event_log.display = plan.detail, plan.log
        self._feed.log.turn(self._event_log.worker if plan.log else None)
        alone = self._event_log.worker if plan.log else None
        entitle(
            self._panes, "" if alone is None else f"worker {alone} alone: its events and output"
        )
        self._panes.set_class(plan.detail and plan.log, "both")
        self._cores.display = bool(plan.cores)
        self._requests.display = plan.requests != 0
        heights = ((self._table, plan.table), (self._requests, plan.requests))
        for widget, given in (*heights, (self._cores, plan.cores)):
            wanted = "1fr" if given is None else given
            if widget.styles.height is None or str(widget.styles.height) != str(wanted):
                widget.styles.height = wanted

    # --- what the widgets say -------------------------------------------------------------

    def on_worker_selected(self, message: WorkerSelected) -> None:
        """Another worker's details."""
        self._draw_detail()

    def on_descendant_focus(self, message: DescendantFocus) -> None:
        """The keys at the foot are those of the pane with the focus."""
        context = Context.WORKERS
        if message.widget is self._event_log:
            context = Context.LOG
        elif message.widget is self._requests.rows:
            context = Context.REQUESTS
        self._keys.turn(context)
