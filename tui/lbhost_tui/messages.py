"""What the feed and the widgets tell the app."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from textual.message import Message

from lbhost.status import Event, LogLine, Requests, Status


class Pane(enum.Enum):
    """What has a filter of its own; the value is its name on the screen."""

    WORKERS = "workers"
    REQUESTS = "requests"
    LOG = "log"


@dataclass
class StatusArrived(Message):
    """A fresh picture of the server."""

    status: Status
    at_s: float
    """time.monotonic() of its arrival."""

    def can_replace(self, message: Message) -> bool:
        """Only the newest picture matters when several wait."""
        return isinstance(message, StatusArrived)


@dataclass
class RequestsArrived(Message):
    """A fresh list of the live requests, or why there is none."""

    found: Requests | None
    problem: str = ""

    def can_replace(self, message: Message) -> bool:
        """Only the newest one matters."""
        return isinstance(message, RequestsArrived)


@dataclass
class ServerGone(Message):
    """The server does not answer; the feed goes on trying."""

    reason: str
    unreadable: bool = False
    """It does answer, but as another version does."""


@dataclass
class EventsArrived(Message):
    """New lines for the event log, oldest first."""

    events: tuple[Event, ...]


@dataclass
class LogArrived(Message):
    """New lines of the worker whose log is shown, oldest first."""

    worker: int
    lines: tuple[LogLine, ...]
    first: bool
    """Whether they replace those from before."""


@dataclass
class FilterChanged(Message):
    """A pane's filter was edited."""

    pane: Pane
    text: str


@dataclass
class FilterDone(Message):
    """The user has left the filter's line."""

    pane: Pane


@dataclass
class WorkerSelected(Message):
    """Another line of the table is selected; None when there is none."""

    worker: int | None


@dataclass
class DetailsWanted(Message):
    """Enter or a second click on a worker."""
