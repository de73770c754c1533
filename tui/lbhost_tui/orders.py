"""What the dashboard orders: keys to actions, a question before what stops work, the outcome.

A base of the app. Knows no widget beyond what it asks for a selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import work
from textual.app import App

from lbhost.errors import ServerGoneError
from lbhost.status import RequestStatus, Status, WorkerStatus
from lbhost_tui import actions
from lbhost_tui.actions import Action
from lbhost_tui.client import AdminClient, RefusedError
from lbhost_tui.confirm import Confirm
from lbhost_tui.feed import Feed
from lbhost_tui.paint import Parts, Role

if TYPE_CHECKING:
    from textual.timer import Timer

SAID_S = 8.0
"""How long the outcome of an order stands in the notice."""

ORDERS = frozenset(
    {"drain", "resume", "restart", "restart_all", "scale_up", "scale_down", "cancel_request"}
)
"""The actions that order something: not there with --readonly."""


class Orders(App[int]):
    """Has orders carried out, one of a name at a time; the screen goes on meanwhile."""

    readonly: bool
    _client: AdminClient
    _doing: dict[str, None]
    _feed: Feed
    _said: Parts
    _said_timer: Timer | None
    _stops_server: bool

    @property
    def status(self) -> Status | None:
        """The last picture."""
        raise NotImplementedError

    @property
    def stale(self) -> bool:
        """Whether that picture is only a memory."""
        raise NotImplementedError

    def selected_worker(self) -> WorkerStatus | None:
        """The one that an order is for."""
        raise NotImplementedError

    def selected_request(self) -> RequestStatus | None:
        """The one that a cancel is for."""
        raise NotImplementedError

    def draw_notice(self) -> None:
        """Show what is going on."""
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """With --readonly nothing can be ordered."""
        if self.readonly and action in ORDERS:
            return False
        return super().check_action(action, parameters)

    def action_drain(self) -> None:
        """Drain the selected worker."""
        status, worker = self.status, self.selected_worker()
        if status is not None and worker is not None:
            self.order(actions.drain(status, worker))

    def action_resume(self) -> None:
        """Resume the selected worker."""
        worker = self.selected_worker()
        if worker is not None:
            self.order(actions.resume(worker))

    def action_restart(self) -> None:
        """Restart the selected worker."""
        status, worker = self.status, self.selected_worker()
        if status is not None and worker is not None:
            self.order(actions.restart(status, worker))

    def action_restart_all(self) -> None:
        """Restart all, one after the other."""
        if self.status is not None:
            self.order(actions.restart_all(self.status))

    def action_scale_up(self) -> None:
        """One worker more."""
        self._scale(1)

    def action_scale_down(self) -> None:
        """One worker fewer."""
        self._scale(-1)

    def _scale(self, change: int) -> None:
        if self.status is None:
            return
        worker = self.selected_worker()
        several = len(self.status.models) > 1 and worker is not None
        action = actions.scale(self.status, change, worker.model if several and worker else None)
        if action is None:
            self.say("scale", "one worker is the least", Role.WARN)
        else:
            self.order(action)

    def action_cancel_request(self) -> None:
        """End the selected request."""
        request = self.selected_request()
        if request is not None:
            self.order(actions.cancel(request))

    async def action_quit(self) -> None:
        """End the dashboard; ask first where the server ends with it."""
        self._leave()

    @work(group="quit", exclusive=True)
    async def _leave(self) -> None:
        status = self.status
        if self._stops_server and status is not None and not self.stale:
            if isinstance(self.screen, Confirm):
                return
            if not await self.push_screen_wait(Confirm(actions.quit_server(status))):
                return
        self.exit()

    def say(self, name: str, text: str, role: Role) -> None:
        """Put the outcome of an order into the notice for a while."""
        self._said = ((f" {name}: {text}", role),)
        if self._said_timer is not None:
            self._said_timer.stop()
        self._said_timer = self.set_timer(SAID_S, self._forget_said)
        self.draw_notice()

    def _forget_said(self) -> None:
        self._said = ()
        self.draw_notice()

    @work(group="orders")
    async def order(self, action: Action) -> None:
        """Ask if it stops work, have it done, say how it went."""
        if self.stale:
            self.say(action.name, "the server is gone", Role.BAD)
            return
        if action.question and not await self.push_screen_wait(Confirm(action)):
            return
        if action.name in self._doing:
            self.say(action.name, "already under way", Role.WARN)
            return
        self._doing[action.name] = None
        self.draw_notice()
        self._feed.wake()
        try:
            said = await self._client.send(action)
            self.say(action.name, said, Role.GOOD)
        except (RefusedError, ServerGoneError) as error:
            self.say(action.name, error.message, Role.BAD)
        finally:
            del self._doing[action.name]
            self.draw_notice()
            self._feed.wake()
