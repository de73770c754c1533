"""The command palette: what can be typed after `:`, and what it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Hits, Provider

from lbhost_tui import actions
from lbhost_tui.actions import Action

if TYPE_CHECKING:
    from lbhost_tui.app import Dashboard


@dataclass(frozen=True)
class Command:
    """A line of the palette."""

    text: str
    help: str
    run: Callable[[], object]


_SCALE = re.compile(r"scale (?:(\S+) )?(\d{1,4})")

_SHOWN = (
    ("requests", "show or hide the live requests", "requests"),
    ("cores", "show or hide what each core does", "cores"),
    ("details", "show or hide the selected worker's details", "details"),
    ("log", "show or hide the event log", "log"),
    ("worker log", "only the selected worker's events, or all again", "worker_log"),
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
        query = " ".join(query.lower().removeprefix(":").split())
        matcher = self.matcher(query)
        for command in (*self._typed(query), *self._all()):
            exact = command.text.lower() == query
            score = 2.0 if exact else matcher.match(command.text)
            if score > 0:
                shown = matcher.highlight(command.text)
                yield Hit(score, shown, command.run, text=command.text, help=command.help)

    def _typed(self, query: str) -> Iterator[Command]:
        """A number that no list could hold."""
        status, found = self.dashboard.status, _SCALE.fullmatch(query)
        if status is None or found is None or self.dashboard.readonly:
            return
        names = {model.name.lower(): model.name for model in status.models}
        name = None if found[1] is None else names.get(found[1])
        if (name is None) is (len(names) > 1):
            return  # which one is meant has to be said where there are several, and only there
        action = actions.scale_to(status, int(found[2]), name)
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
        for name in [model.name for model in status.models] if several else [None]:
            for change in (1, -1):
                action = actions.scale(status, change, name)
                if action is not None:
                    whose = "" if name is None else f"{name} "
                    yield self._order(f"scale {whose}{action.body['workers']}", action)
        for request in self.dashboard.live_requests:
            yield self._order(f"cancel {request.id}", actions.cancel(request))
