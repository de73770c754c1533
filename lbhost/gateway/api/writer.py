"""What an answer's writer can do, whichever dialect it writes. Pure.

One writer per request turns deltas and Finishes into bytes that are ready to be sent: either
`whole` once; or for each answer `opening`, any number of `text`, and `last_chunk`, then `closing`
once; `failing` instead whenever it cannot go on, and `ping` between.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from lbhost import wire
from lbhost.errors import LbhostError
from lbhost.gateway.api.generation import Style
from lbhost.gateway.api.replies import PING, Given
from lbhost.gateway.scheduling.deltas import TextDelta

_encode = msgspec.json.Encoder().encode


class Writer(Protocol):
    """Shapes everything that is sent in answer to one request. replies.Reply is one."""

    def whole(self, answers: Sequence[Given], costs: Sequence[wire.Finish]) -> bytes: ...
    def opening(self, index: int) -> bytes: ...
    def text(self, index: int, delta: TextDelta) -> bytes: ...
    def last_chunk(self, index: int, finish: wire.Finish) -> bytes: ...
    def closing(self, costs: Sequence[wire.Finish]) -> bytes: ...
    def failing(self, error: LbhostError) -> bytes: ...
    def ping(self) -> bytes: ...


class OneAnswer(abc.ABC):
    """A writer of dialects in which a request has one answer."""

    def __init__(
        self,
        name: str,
        model: str,
        style: Style | None = None,
        *,
        request_id: str = "",
        pieces: Callable[[int], bytes] = lambda _: b"",
        **_: Any,
    ) -> None:
        """For one request. Takes what Reply takes.

        Args:
            name: unique among requests, whatever their clients call them.
            request_id: what the client may call it.
        """
        self.name = name
        self.model = model
        self.style = style or Style()
        self.request_id = request_id
        self.pieces = pieces

    # --- what a dialect says ---------------------------------------------------------

    @abc.abstractmethod
    def complete(self, text: str, finish: wire.Finish) -> Any:
        """An answer that is not streamed, ready to be encoded as JSON."""

    @abc.abstractmethod
    def begin(self) -> bytes:
        """What a stream begins with, before any text; nothing where there is none."""

    @abc.abstractmethod
    def piece(self, text: str) -> bytes:
        """An event with some text."""

    @abc.abstractmethod
    def end(self, finish: wire.Finish) -> bytes:
        """The last events: why it ended, what it cost."""

    @abc.abstractmethod
    def failing(self, error: LbhostError) -> bytes:
        """How a stream that cannot go on ends, begun or not: clients raise it."""

    def ping(self) -> bytes:
        """Something that says nothing: proxies cut streams that are silent."""
        return PING

    # --- as a Writer -----------------------------------------------------------------

    def whole(self, answers: Sequence[Given], costs: Sequence[wire.Finish]) -> bytes:
        (answer,) = answers
        return _encode(self.complete(answer.delta.text, answer.finish))

    def opening(self, index: int) -> bytes:
        return self.begin()

    def text(self, index: int, delta: TextDelta) -> bytes:
        return self.piece(delta.text)

    def last_chunk(self, index: int, finish: wire.Finish) -> bytes:
        return self.end(finish)

    def closing(self, costs: Sequence[wire.Finish]) -> bytes:
        return b""


def event(data: Any) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + _encode(data) + b"\n\n"


def named_event(name: str, data: Any) -> bytes:
    """A server-sent event of a type."""
    return b"event: " + name.encode() + b"\n" + event(data)


def tagged_event(data: msgspec.Struct) -> bytes:
    """The same, of a struct whose tag is the event's type."""
    return named_event(str(data.__struct_config__.tag), data)
