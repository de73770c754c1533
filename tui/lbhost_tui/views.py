"""What of the screen is shown, and how: panes, filters, pause, themes, help. A base of the app."""

from __future__ import annotations

from pathlib import Path

from textual.command import CommandPalette
from textual.theme import Theme

from lbhost_tui import layout, themes
from lbhost_tui.commands import Commands
from lbhost_tui.cores import CoreStrip
from lbhost_tui.eventlog import EventLog
from lbhost_tui.filter import Filter
from lbhost_tui.help import Help
from lbhost_tui.layout import Wish
from lbhost_tui.messages import DetailsWanted, FilterChanged, FilterDone, Pane
from lbhost_tui.notice import Notice
from lbhost_tui.orders import Orders
from lbhost_tui.paint import Palette, Role
from lbhost_tui.request_table import RequestTable
from lbhost_tui.workers import WorkersTable


class Views(Orders):
    """Only shows and hides; what stands in the panes is the app's."""

    _cores: CoreStrip
    _event_log: EventLog
    _notice: Notice
    _palette: Palette
    _pane_filters: dict[Pane, Filter]
    _paused: bool
    _requests: RequestTable
    _table: WorkersTable
    _wish: Wish

    def draw(self) -> None:
        """Everything anew."""
        raise NotImplementedError

    def unpause(self) -> None:
        """Show what has come meanwhile."""
        raise NotImplementedError

    def _show(
        self,
        *,
        cores: bool | None = None,
        requests: bool | None = None,
        detail: bool | None = None,
        log: bool | None = None,
    ) -> None:
        """Wish for these; None: as before."""
        old = self._wish
        self._wish = Wish(
            cores=old.cores if cores is None else cores,
            requests=old.requests if requests is None else requests,
            detail=old.detail if detail is None else detail,
            log=old.log if log is None else log,
        )
        self._feed.requests_wanted = self._wish.requests
        self.draw()

    # --- panes ----------------------------------------------------------------------------

    def action_requests(self) -> None:
        """Show or hide the table of requests; in a low terminal it takes the panes' place."""
        wish = self._wish
        if wish.requests:
            self.action_close_requests()
            return
        if layout.both_fit(self.size.height, detail=wish.detail):
            self._show(requests=True)
        else:
            self._show(requests=True, detail=False, log=False)
        self._feed.wake()
        self._requests.rows.focus()

    def action_close_requests(self) -> None:
        """Clear the requests' filter; without one, close the table."""
        if self._pane_filters[Pane.REQUESTS]:
            self.set_filter(Pane.REQUESTS, "")
            return
        self._table.focus()
        self._show(requests=False)

    def action_sort_requests(self) -> None:
        """By another column."""
        self._requests.sort()

    def action_sort_by(self, key: str) -> None:
        """By this column; the other way round if they are already."""
        if not self._wish.requests:
            self.action_requests()
        self._requests.sort_by(key)

    def action_turn_requests(self) -> None:
        """The other way round."""
        self._requests.sort(turn=True)

    def action_cores(self) -> None:
        """Show or hide the cores."""
        self._show(cores=not self._wish.cores)

    def action_details(self) -> None:
        """Show or hide the detail pane."""
        detail = not self._wish.detail
        crowded = detail and not layout.both_fit(self.size.height, detail=True)
        self._show(detail=detail, requests=False if crowded else None)

    def action_log(self) -> None:
        """Show or hide the log; in a narrow terminal it takes the details' place."""
        wish, narrow = self._wish, self.size.width < layout.BESIDE
        hides_details = wish.detail and narrow
        log = True if hides_details else not wish.log
        detail = False if hides_details else wish.detail
        crowded = log and not layout.both_fit(self.size.height, detail=detail)
        if not log:
            self._table.focus()
        self._show(log=log, detail=detail, requests=False if crowded else None)

    def action_close(self) -> None:
        """Clear the workers' filter; without one, close the details."""
        if self._pane_filters[Pane.WORKERS]:
            self.set_filter(Pane.WORKERS, "")
            return
        self._table.focus()
        self._show(detail=False)

    def on_details_wanted(self, message: DetailsWanted) -> None:
        """A double click."""
        self.action_details()

    # --- the log --------------------------------------------------------------------------

    def action_worker_log(self) -> None:
        """The selected worker's log alone; once more: everybody's events."""
        worker = self.selected_worker()
        shown = self._event_log.worker if self._event_log.display else None
        if worker is None or worker.id == shown:
            self._event_log.only(None)
        else:
            self._event_log.only(worker.id)
            if not self._wish.log:
                self.action_log()
        self._event_log.focus()
        self.draw()

    def action_close_log(self) -> None:
        """Clear the log's filter; without one, close the log."""
        if self._pane_filters[Pane.LOG]:
            self.set_filter(Pane.LOG, "")
        elif self._event_log.worker is not None:
            self._event_log.only(None)
            self.draw()
        else:
            self.action_log()

    def action_copy_log(self) -> None:
        """The log as it is shown, to the clipboard, where the terminal allows that."""
        text = self._event_log.plain
        self.copy_to_clipboard(text)
        count = text.count("\n")
        self.say("log", f"{count} line{'' if count == 1 else 's'} copied", Role.GOOD)

    def action_save_log(self) -> None:
        """The log as it is shown, to a new file in the folder that we were started in."""
        path = _unused(Path.cwd(), self._event_log.name_for_files, ".log")
        try:
            path.write_text(self._event_log.plain, encoding="utf-8")
        except OSError as error:
            self.say("log", f"cannot write {path}: {error.strerror}", Role.BAD)
            return
        self.say("log", f"saved as {path}", Role.GOOD)

    # --- filters --------------------------------------------------------------------------

    def on_filter_changed(self, message: FilterChanged) -> None:
        """Filter while it is typed."""
        self.set_filter(message.pane, message.text)

    def on_filter_done(self, message: FilterDone) -> None:
        """Back to the pane whose filter it is."""
        self._notice.done()
        panes = {Pane.LOG: self._event_log, Pane.REQUESTS: self._requests.rows}
        panes.get(message.pane, self._table).focus()
        self.draw()

    def set_filter(self, pane: Pane, text: str) -> None:
        """Show only what matches the text."""
        self._pane_filters[pane] = Filter(text)
        if pane is Pane.LOG:
            self._event_log.filter(self._pane_filters[pane])
        elif pane is Pane.REQUESTS:
            self._requests.filter(self._pane_filters[pane])
        self.draw()

    def action_filter(self) -> None:
        """Type a filter for the pane with the focus."""
        pane = Pane.WORKERS
        if self._event_log.has_focus:
            pane = Pane.LOG
        elif self._requests.rows.has_focus:
            pane = Pane.REQUESTS
        self._notice.edit(pane, self._pane_filters[pane].text)

    # --- the whole screen -----------------------------------------------------------------

    def action_pause(self) -> None:
        """Stand still, to be read; once more: go on with what is now."""
        self._paused = not self._paused
        if self._paused:
            self.draw_notice()
        else:
            self.unpause()

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(
            Help(self._palette, stops_server=self._stops_server, readonly=self.readonly)
        )

    def action_command_palette(self) -> None:
        """Type a command."""
        if not isinstance(self.screen, CommandPalette):
            what = "drain 0, restart all, theme nord …" if not self.readonly else "theme nord …"
            self.push_screen(CommandPalette(providers=[Commands], placeholder=what))

    def wear(self, theme: Theme) -> None:
        """Another theme: the roles' colours follow it."""
        self._palette.become(themes.palette(theme))
        self.screen.refresh(layout=True)
        for widget in self.screen.query("*"):
            widget.refresh()


def _unused(folder: Path, stem: str, suffix: str) -> Path:
    """A file's path that there is not yet, by counting up."""
    number = 1
    while (path := folder / f"{stem}{f'-{number}' if number > 1 else ''}{suffix}").exists():
        number += 1
    return path
