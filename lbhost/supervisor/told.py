"""What the gateway and the fork servers tell the supervisor, and what follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from lbhost import control
from lbhost.errors import StartupError
from lbhost.supervisor.autoscaling import Autoscaling
from lbhost.supervisor.configuration import Configuration
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.fleet import Fleet
from lbhost.supervisor.questions import Questions
from lbhost.supervisor.service import Service
from lbhost.supervisor.shared import Shared


class Told:
    """The supervisor as its services see it (service.Owner); the supervisor makes the parts."""

    configuration: Configuration
    events: EventLog
    fleet: Fleet
    gateway: Service
    questions: Questions
    _announced: bool
    _autoscaling: Autoscaling
    _failure: StartupError | None
    _shared: Shared
    _wake: asyncio.Event

    def service_message(self, service: Service, message: control.Control) -> None:
        """A service is ready, has other settings, or answers. No more is said on these links."""
        if isinstance(message, control.ToldRequests | control.Cancelled):
            self.questions.told(message)
            return
        if isinstance(message, control.Loaded) and service is not self.gateway:
            service.ready()
            text = f"weights loaded in {message.load_s:.2f} s"
            model = self.fleet.of_service(service)
            if model is not None:
                model.failure, text = None, model.pool.naming(text)
            self.events.add("info", "fork_server", text)
        elif isinstance(message, control.Ready) and service is self.gateway:
            service.ready()
            self._refusals(message.refused)
        elif isinstance(message, control.Reconfigured) and service is self.gateway:
            self.configuration.told(message.number)
            self._shared.changes.notify()
        elif isinstance(message, control.Wake) and service is self.gateway:
            self._autoscaling.wake(message.model)
        self.fleet.reconcile()

    def _refusals(self, refused: Mapping[int, str]) -> None:
        """What a gateway that has just started cannot serve."""
        for number, model in enumerate(self.fleet):
            model.refused = refused.get(number)
            if model.refused is not None:
                why = f"the gateway cannot serve {model.name}: {model.refused}"
                self.events.add("error", "gateway", why)

    def service_down(self, service: Service) -> None:
        """The loop may be waiting for that, and whoever has asked it something."""
        if service is self.gateway:
            self.questions.lost()
        self._wake.set()

    def service_hopeless(self, service: Service, why: str) -> bool:
        """It never came up: at the start that is the server's end, or its model's where another one
        can be served. Later on it is a fork server of a node that came to have workers, and the
        other nodes' go on."""
        model = self.fleet.of_service(service)
        if model is not None:
            model.failure = why
            self._shared.changes.notify()
        alone = model is None or None not in [one.hopeless for one in self.fleet]
        if not self._announced and alone:
            self._give_up(why)
        return not self._announced and alone

    def _give_up(self, why: str) -> None:
        """The server cannot go on; the first reason is the one that is told."""
        if self._failure is None:
            self._failure = StartupError(why)
            self._wake.set()
