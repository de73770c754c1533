"""Reads what the admin API answers, for the CLI and the TUI. Pure.

One place that knows how the answer of another lbhost looks: a command that is newer or older
than the running server says so in one line, and never shows a decoder's traceback.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from lbhost import __version__
from lbhost.errors import OtherVersionError
from lbhost.status import Accepted, Event, LogLine, Requests, Status


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Problem(msgspec.Struct, frozen=True):
    message: str


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Problem


_T = TypeVar("_T")
_status = msgspec.json.Decoder(Status)
_event = msgspec.json.Decoder(Event)
_log_line = msgspec.json.Decoder(LogLine)
_requests = msgspec.json.Decoder(Requests)
_accepted = msgspec.json.Decoder(Accepted)
_version = msgspec.json.Decoder(_Version)
_error = msgspec.json.Decoder(_ErrorBody)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def status(data: bytes) -> Status:
    """What `GET /status` answered.

    Raises:
        OtherVersionError: it has another shape.
    """
    return _read(_status, data)


def event(data: str | bytes) -> Event:
    """One `data:` line of `GET /events`. Raises OtherVersionError."""
    return _read(_event, data)


def log_line(data: str | bytes) -> LogLine:
    """One `data:` line of `GET /workers/{id}/log`. Raises OtherVersionError."""
    return _read(_log_line, data)


def requests(data: bytes) -> Requests:
    """What `GET /requests` answered. Raises OtherVersionError."""
    return _read(_requests, data)


def accepted(data: bytes) -> Accepted:
    """What a command answered. Raises OtherVersionError."""
    return _read(_accepted, data)


def refusal(data: bytes, code: int) -> str:
    """The server's words about why not, or its HTTP status if it has none."""
    try:
        return _error.decode(data).error.message
    except _UNREADABLE:
        return f"the server answered {code}"


def _read(decoder: msgspec.json.Decoder[_T], data: str | bytes) -> _T:
    try:
        return decoder.decode(data)
    except _UNREADABLE as error:
        raise OtherVersionError(_words(data, error)) from error


def _words(data: str | bytes, error: Exception) -> str:
    try:
        theirs: Any = _version.decode(data).version
    except _UNREADABLE:
        theirs = None
    if theirs == __version__ or theirs is None:
        return f"the server's answer cannot be read by lbhost {__version__}: {error}"
    return (
        f"the server is lbhost {theirs}, and this is {__version__}, which cannot read its answer "
        f"({error}): use the server's own lbhost, or restart the server with this one"
    )
