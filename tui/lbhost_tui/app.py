"""The dashboard: wires the feed to the widgets and the keys to actions.

Speaks only the admin API. What is shown is decided in the widgets, what is ordered in
actions.py; here they meet.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.timer import Timer

from lbhost.errors import ServerGoneError
from lbhost.status import Status, WorkerStatus
from lbhost_tui import actions, layout, notice
from lbhost_tui.actions import Action
from lbhost_tui.client import AdminClient, RefusedError
from lbhost_tui.columns import Row
from lbhost_tui.confirm import Confirm
from lbhost_tui.detail import Detail
from lbhost_tui.eventlog import EventLog
from lbhost_tui.feed import Feed
from lbhost_tui.filter import Filter
from lbhost_tui.freshness import Age, Freshness
from lbhost_tui.header import ServerHeader
from lbhost_tui.help import Help
from lbhost_tui.history import History
from lbhost_tui.keybar import KeyBar
from lbhost_tui.messages import (
    DetailsWanted,
    EventsArrived,
    FilterChanged,
    FilterDone,
    Pane,
    ServerGone,
    StatusArrived,
    WorkerSelected,
)
from lbhost_tui.paint import ANSI, ANSI_THEME, RICH, RICH_THEME, Parts, Role
from lbhost_tui.workers import WorkersTable

SAID_S = 8.0
"""How long the outcome of an order stands in the notice."""


class Dashboard(App[int]):
    """`plain` keeps to the terminal's own 16 colours (or none).

    `stops_server` says that whoever runs this ends the server after it: then quitting asks.
    """

    CSS_PATH = "app.tcss"
    TITLE = "lbhost"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "drain", "drain"),
        Binding("u", "resume", "resume"),
        Binding("r", "restart", "restart"),
        Binding("R", "restart_all", "rolling restart"),
        Binding("plus", "scale_up", "scale up"),
        Binding("minus", "scale_down", "scale down"),
        Binding("enter", "details", "details"),
        Binding("l", "log", "log"),
        Binding("slash", "filter", "filter"),
        Binding("question_mark", "help", "help"),
        Binding("escape", "close", "close"),
        Binding("q,ctrl+c", "quit", "quit"),
    ]

    def __init__(
        self, socket_path: Path, *, plain: bool = False, stops_server: bool = False
    ) -> None:
        super().__init__(ansi_color=True if plain else None)
        self._stops_server = stops_server
        self.animation_level = "none"
        self.register_theme(RICH_THEME)
        self.register_theme(ANSI_THEME)
        self.theme = ANSI_THEME.name if plain else RICH_THEME.name
        palette = ANSI if plain else RICH
        self._palette = palette
        self._client = AdminClient(socket_path)
        self._feed = Feed(self._client, self.post_message)
        self._header = ServerHeader(palette)
        self._notice = notice.Notice(palette)
        self._table = WorkersTable(palette)
        self._detail = Detail(palette)
        self._event_log = EventLog(palette)
        self._panes = Horizontal(self._detail, self._event_log, id="panes")
        self._keys = KeyBar(palette)
        self._status: Status | None = None
        self._seen_s: float | None = None
        self._gone: ServerGone | None = None
        self._pane_filters = {pane: Filter() for pane in Pane}
        self._said: Parts = ()
        self._said_timer: Timer | None = None
        self._want_detail = False
        self._want_log: bool | None = None
        """None until the user or the first picture has decided."""
        self._total = History()
        self._speeds: defaultdict[int, History] = defaultdict(History)
        self._freshness = Freshness()
        self._doing: dict[str, None] = {}
        self._ticker: Timer | None = None

    def compose(self) -> ComposeResult:
        """Top to bottom."""
        yield self._header
        yield self._notice
        yield self._table
        yield self._panes
        yield self._keys

    def on_mount(self) -> None:
        """Start to listen."""
        self._ticker = self.set_interval(1.0, self._draw_notice, pause=True)
        self._table.focus()
        self._draw()
        self.run_worker(self._feed.run(), name="feed", group="feed")

    async def on_unmount(self) -> None:
        """Leave no connection behind."""
        self.workers.cancel_all()
        await self._client.close()

    @property
    def socket_path(self) -> Path:
        """Where it looks for the server."""
        return self._client.socket_path

    @property
    def status(self) -> Status | None:
        """The last picture."""
        return self._status

    @property
    def stale(self) -> bool:
        """Whether that picture is only a memory."""
        return self._gone is not None

    # --- what the feed says ---------------------------------------------------------------

    def on_status_arrived(self, message: StatusArrived) -> None:
        """A picture: remember its rates, show it."""
        status, now = message.status, message.at_s
        first = self._status is None
        self._status, self._seen_s, self._gone = status, now, None
        if self._ticker is not None:
            self._ticker.pause()
        self._total.add(now, status.traffic.tokens_s + status.traffic.prompt_tokens_s)
        self._freshness.note(status.workers, now)
        ids = {worker.id for worker in status.workers}
        for gone in self._speeds.keys() - ids:
            del self._speeds[gone]
        for worker in status.workers:
            self._speeds[worker.id].add(now, worker.tokens_s + worker.prompt_tokens_s)
        if first and self._want_log is None and status.workers:
            self._want_log = layout.log_fits(self.size.height, len(status.workers))
        self._draw()

    def on_server_gone(self, message: ServerGone) -> None:
        """Keep the last picture, say how old it is, once a second."""
        self._gone = message
        if self._ticker is not None:
            self._ticker.resume()
        self._draw()

    def on_events_arrived(self, message: EventsArrived) -> None:
        """Lines for the log."""
        self._event_log.add(message.events)

    # --- drawing --------------------------------------------------------------------------

    def on_resize(self) -> None:
        """Share out the height anew."""
        self.call_after_refresh(self._draw)

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

    def _draw(self) -> None:
        if not self._panes.is_mounted:
            return
        status, now = self._status, self._seen_s or 0.0
        rows = [] if status is None else self._rows(status, now)
        self._arrange(len(rows))
        total = self._total
        tokens = None if status is None else partial(total.cells, now)
        self._header.show(status, tokens, stale=self.stale)
        self._table.show(rows, stale=self.stale, empty=self._empty_text())
        self._draw_detail()
        self._draw_notice()

    def _draw_detail(self) -> None:
        worker = self._selected()
        age = Age.GONE if worker is None else self._freshness.age(worker.id, self._seen_s or 0.0)
        self._detail.show(worker, self._status, age, stale=self.stale)

    def _draw_notice(self) -> None:
        parts: Parts = ()
        if self._gone is not None:
            ago = None if self._seen_s is None else time.monotonic() - self._seen_s
            parts = notice.gone(ago, self._gone.reason, unreadable=self._gone.unreadable)
        elif self._status is not None:
            parts = notice.news(self._status, self._doing)
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
        return f"starting: {self._status.model} is being loaded"

    def _arrange(self, workers: int) -> None:
        plan = layout.plan(
            self.size.width,
            self.size.height,
            workers,
            detail=self._want_detail,
            log=bool(self._want_log),
        )
        self._panes.display = plan.detail or plan.log
        self._detail.display, self._event_log.display = plan.detail, plan.log
        self._panes.set_class(plan.detail and plan.log, "both")
        height = "1fr" if plan.table is None else plan.table
        if self._table.styles.height is None or str(self._table.styles.height) != str(height):
            self._table.styles.height = height

    # --- what the widgets say -------------------------------------------------------------

    def on_worker_selected(self, message: WorkerSelected) -> None:
        """Another worker's details."""
        self._draw_detail()

    def on_details_wanted(self, message: DetailsWanted) -> None:
        """A double click."""
        self.action_details()

    def on_filter_changed(self, message: FilterChanged) -> None:
        """Filter while it is typed."""
        self._set_filter(message.pane, message.text)

    def on_filter_done(self, message: FilterDone) -> None:
        """Back to the pane whose filter it is."""
        self._notice.done()
        pane = self._event_log if message.pane is Pane.LOG else self._table
        pane.focus()
        self._draw()

    def _set_filter(self, pane: Pane, text: str) -> None:
        self._pane_filters[pane] = Filter(text)
        if pane is Pane.LOG:
            self._event_log.filter(self._pane_filters[pane])
        self._draw()

    # --- keys -----------------------------------------------------------------------------

    def action_details(self) -> None:
        """Show or hide the detail pane."""
        self._want_detail = not self._want_detail
        self._draw()

    def action_log(self) -> None:
        """Show or hide the log; in a narrow terminal it takes the details' place."""
        narrow = self.size.width < layout.BESIDE
        if self._want_detail and narrow:
            self._want_detail, self._want_log = False, True
        else:
            self._want_log = not self._want_log
        if not self._want_log:
            self._table.focus()
        self._draw()

    def action_close(self) -> None:
        """Clear the workers' filter; without one, close the details."""
        if self._pane_filters[Pane.WORKERS]:
            self._set_filter(Pane.WORKERS, "")
            return
        self._want_detail = False
        self._table.focus()
        self._draw()

    def action_close_log(self) -> None:
        """Clear the log's filter; without one, close the log."""
        if self._pane_filters[Pane.LOG]:
            self._set_filter(Pane.LOG, "")
        else:
            self.action_log()

    def action_filter(self) -> None:
        """Type a filter for the pane with the focus."""
        pane = Pane.LOG if self._event_log.has_focus else Pane.WORKERS
        self._notice.edit(pane, self._pane_filters[pane].text)

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(Help(self._palette, stops_server=self._stops_server))

    async def action_quit(self) -> None:
        """End the dashboard; ask first where the server ends with it."""
        self._leave()

    @work(group="quit", exclusive=True)
    async def _leave(self) -> None:
        status = self._status
        if self._stops_server and status is not None and self._gone is None:
            if isinstance(self.screen, Confirm):
                return
            if not await self.push_screen_wait(Confirm(actions.quit_server(status))):
                return
        self.exit()

    def action_drain(self) -> None:
        """Drain the selected worker."""
        status, worker = self._status, self._selected()
        if status is not None and worker is not None:
            self._order(actions.drain(status, worker))

    def action_resume(self) -> None:
        """Resume the selected worker."""
        worker = self._selected()
        if worker is not None:
            self._order(actions.resume(worker))

    def action_restart(self) -> None:
        """Restart the selected worker."""
        status, worker = self._status, self._selected()
        if status is not None and worker is not None:
            self._order(actions.restart(status, worker))

    def action_restart_all(self) -> None:
        """Restart all, one after the other."""
        if self._status is not None:
            self._order(actions.restart_all(self._status))

    def action_scale_up(self) -> None:
        """One worker more."""
        self._scale(1)

    def action_scale_down(self) -> None:
        """One worker fewer."""
        self._scale(-1)

    def _scale(self, change: int) -> None:
        if self._status is None:
            return
        action = actions.scale(self._status, change)
        if action is None:
            self._say("scale", "one worker is the least", Role.WARN)
        else:
            self._order(action)

    def _selected(self) -> WorkerStatus | None:
        workers = () if self._status is None else self._status.workers
        return next((w for w in workers if w.id == self._table.selected), None)

    def _say(self, name: str, text: str, role: Role) -> None:
        """Put the outcome of an order into the notice for a while."""
        self._said = ((f" {name}: {text}", role),)
        if self._said_timer is not None:
            self._said_timer.stop()
        self._said_timer = self.set_timer(SAID_S, self._forget_said)
        self._draw_notice()

    def _forget_said(self) -> None:
        self._said = ()
        self._draw_notice()

    # --- orders ---------------------------------------------------------------------------

    @work(group="orders")
    async def _order(self, action: Action) -> None:
        """Ask if it stops work, have it done, say how it went. The screen goes on meanwhile."""
        if self._gone is not None:
            self._say(action.name, "the server is gone", Role.BAD)
            return
        if action.question and not await self.push_screen_wait(Confirm(action)):
            return
        if action.name in self._doing:
            self._say(action.name, "already under way", Role.WARN)
            return
        self._doing[action.name] = None
        self._draw_notice()
        self._feed.wake()
        try:
            said = await self._client.send(action)
            self._say(action.name, said, Role.GOOD)
        except (RefusedError, ServerGoneError) as error:
            self._say(action.name, error.message, Role.BAD)
        finally:
            del self._doing[action.name]
            self._draw_notice()
            self._feed.wake()
