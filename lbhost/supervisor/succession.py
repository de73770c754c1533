"""The line between a server and the one that takes over from it: messages, and how they are sent.

A SEQPACKET socketpair, JSON, so that two versions of lbhost understand each other as far as they
can: unknown fields are left out. The old one gives its listening socket and its runtime dir; the
new one says when it serves. Knows no process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from lbhost import control
from lbhost.errors import StartupError, WireError
from lbhost.placement.placement import Placement
from lbhost.supervisor.message_link import MessageLink

LINK_VARIABLE = "LBHOST_HANDOVER_FD"
"""Names the new server's end of the line in its environment."""


class Context(msgspec.Struct, frozen=True):
    """How a model is served."""

    name: str
    path: str
    n_ctx: int
    """Tokens per slot."""
    workers: int = 0
    """Wanted up; 0: it sleeps, all are taken down, or nobody says."""
    asleep: bool = False
    down: tuple[Placement, ...] = ()
    """Homes of workers that an operator has taken down."""
    pinned: bool = False
    """Whether an operator has said how many, where the load would."""


class Inherit(msgspec.Struct, frozen=True, tag="inherit"):
    """Old -> new, first: carries the listening socket, the runtime dir's descriptor, the line on
    which its gateway will give its KV states, and the line to the process that stays (see
    TakeOver) where that is another one than the old server."""

    endpoint: str
    runtime_dir: str
    model_path: str
    n_ctx: int
    """Tokens per slot that model_path has been served with."""
    contexts: tuple[Context, ...] = ()
    """The same of every model."""


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """New -> old: requests are answered here; take your hands off."""

    pid: int


class TakeOver(msgspec.Struct, frozen=True, tag="take_over"):
    """Old -> new: everything is yours; I end what I have."""

    anchor: int
    """The process that stays for whoever started the first server, and passes signals on; 0: none,
    the service manager has been told of the new one."""
    contexts: tuple[Context, ...] = ()
    """How the models are served by now: an operator may have drained a worker since Inherit."""


class TookOver(msgspec.Struct, frozen=True, tag="took_over"):
    """New -> old: the admin socket is mine."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Old -> new: what I had begun has ended."""


class Next(msgspec.Struct, frozen=True, tag="next"):
    """New -> the process that stays, much later: this one has taken over from me."""

    pid: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """New -> old: I cannot start."""

    message: str


Message: TypeAlias = Inherit | Serving | TakeOver | TookOver | Done | Next | Refused

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


class Inheritance(msgspec.Struct, frozen=True):
    """What a new server has been given."""

    link: socket.socket
    listener: socket.socket
    folder: int
    """The runtime dir's descriptor, which holds its lock."""
    given: Inherit
    states: int | None = None
    """The line from the old gateway; None: it has none to give."""
    anchor: socket.socket | None = None
    """The line to the process that stays; None: `link` leads there, or nobody stays."""

    @property
    def runtime_dir(self) -> Path:
        return Path(self.given.runtime_dir)


def send(link: socket.socket, message: Message, fds: Sequence[int] = ()) -> bool:
    """Send a message; False if nobody takes it."""
    try:
        socket.send_fds(link, [_encoder.encode(message)], list(fds), socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def receive(link: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors; None at end of file.

    Raises:
        BlockingIOError: nothing there yet, on a non-blocking link.
        WireError: not a message of ours.
    """
    packet = control.receive_packet(link)
    if packet is None:
        return None
    data, fds = packet
    try:
        return _decoder.decode(data), fds
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        for fd in fds:
            os.close(fd)
        raise WireError(f"undecodable packet of another server: {error}") from error


def inherited(environ: MutableMapping[str, str]) -> Inheritance | None:
    """What the server before this one gives, if this one was started to take over from it.

    Raises:
        StartupError: there is something else.
    """
    number = environ.pop(LINK_VARIABLE, None)
    if number is None:
        return None
    try:
        link = socket.socket(fileno=int(number))
        link.set_inheritable(False)
        packet = receive(link)
    except (OSError, ValueError, WireError) as error:
        raise StartupError(f"{LINK_VARIABLE} leads to no server: {error}") from error
    given, fds = packet or (None, [])
    if not isinstance(given, Inherit) or len(fds) not in (2, 3, 4):
        raise StartupError(f"{LINK_VARIABLE}: the server before this one gives nothing")
    listener, folder, *others = fds
    states, anchor = (*others, None, None)[:2]
    made = socket.socket(fileno=listener)
    made.setblocking(False)
    line = None if anchor is None else socket.socket(fileno=anchor)
    return Inheritance(link, made, folder, given, states, line)


class Line(MessageLink[Message]):
    """One end as a loop sees it. `on_message` gets each message, `on_end` is called once."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        broken = "the line to another server is broken"
        super().__init__(end, receive, on_message, on_end, broken)

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send a message; False if nobody takes it."""
        return self._open and send(self._socket, message, fds)
