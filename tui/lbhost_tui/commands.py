"""The command palette: what can be typed after `:`, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Hits, Provider

from lbhost_tui import actions, typed
from lbhost_tui.actions import Action
from lbhost_tui.request_columns import SORTABLE

if TYPE_CHECKING:
    from lbhost_tui.app import Dashboard


@dataclass(frozen=True)
class Command:
    """A line of the palette."""

    text: str
    help: str
    run: Callable[[], object]


_SHOWN = (
    ("requests", "show or hide the live requests", "requests"),
    ("cores", "show or hide what each core does", "cores"),
    ("details", "show or hide the selected worker's details", "details"),
    ("log", "show or hide the event log", "log"),
    ("worker log", "the selected worker's events and output, or all events again", "worker_log"),
    ("save log", "the log as it is shown, to a file", "save_log"),
    ("copy log", "the log as it is shown, to the clipboard", "copy_log"),
    ("pause", "stand still, or go on", "pause"),
    ("help", "all keys", "help"),
    ("quit", "end the dashboard", "quit"),
)


class Commands(Provider):
    """Offers what can be done with the server as it is now."""

    @property
    def dashboard(self) -> Dashboard:
        """The app that has opened the palette."""
        from lbhost_tui.app import Dashboard  # it imports us

        assert isinstance(self.app, Dashboard)
        return self.app

    async def discover(self) -> Hits:
        """What there is before anything is typed: a few of each kind."""
        seen: dict[str, int] = {}
        for command in self._all():
            verb = command.text.split()[0]
            seen[verb] = seen.get(verb, 0) + 1
            if seen[verb] <= 2:
                yield DiscoveryHit(command.text, command.run, help=command.help)

    async def search(self, query: str) -> Hits:
        """Those that match what was typed; the exact one first."""
        query = typed.plain(query)
        matcher = self.matcher(query)
        seen: set[str] = set()
        for command in (*self._typed(query), *self._all()):
            if command.text.lower() in seen:
                continue
            seen.add(command.text.lower())
            exact = command.text.lower() == query
            score = 2.0 if exact else matcher.match(command.text)
            if score > 0:
                shown = matcher.highlight(command.text)
                yield Hit(score, shown, command.run, text=command.text, help=command.help)

    def _typed(self, query: str) -> Iterator[Command]:
        """What no list could hold."""
        status = self.dashboard.status
        if status is None or self.dashboard.readonly:
            return
        action = typed.order(query, status)
        if action is not None:
            yield self._order(query, action)

    def _order(self, text: str, action: Action) -> Command:
        return Command(text, action.question or action.name, partial(self.dashboard.order, action))

    def _all(self) -> Iterator[Command]:
        app = self.dashboard
        if app.status is not None and not app.readonly:
            yield from self._orders()
        for text, help_, action in _SHOWN:
            yield Command(text, help_, partial(app.run_action, action))
        for key in SORTABLE:
            yield Command(f"sort {key}", "the live requests", partial(app.action_sort_by, key))
        for name in sorted(app.available_themes):
            yield Command(f"theme {name}", "the colours", partial(setattr, app, "theme", name))

    def _orders(self) -> Iterator[Command]:
        status = self.dashboard.status
        assert status is not None
        for worker in status.workers:
            yield self._order(f"drain {worker.id}", actions.drain(status, worker))
            yield self._order(f"restart {worker.id}", actions.restart(status, worker))
            if worker.state in ("stopped", "failed", "draining", "stopping", "backoff"):
                yield self._order(f"resume {worker.id}", actions.resume(worker))
        yield self._order("restart all", actions.restart_all(status))
        several = len(status.models) > 1
        scaled = {model.name: model.scaling != "fixed" for model in status.models}
        for name in scaled if several else [None]:
            whose = "" if name is None else f" --model {name}"
            for change in (1, -1):
                action = actions.scale(status, change, name)
                if action is not None:
                    yield self._order(f"scale {action.body['workers']}{whose}", action)
            if any(scaled.values()) if name is None else scaled[name]:
                yield self._order(f"scale auto{whose}", actions.scale_auto(name))
        yield self._order("reload", actions.reload())
        yield self._order("upgrade", actions.upgrade())
        for request in self.dashboard.live_requests:
            yield self._order(f"cancel {request.id}", actions.cancel(request))
