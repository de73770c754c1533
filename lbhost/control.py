"""The control links between the supervisor and each of fork server, worker and gateway.

A link is a unix SOCK_SEQPACKET socketpair: one packet is one message, with the descriptors
that belong to it. End of file on it means that the other side is gone, and every child of
the supervisor ends itself then. Owns the messages and how they are sent; keeps no state.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from lbhost.adapters import AdapterFile
from lbhost.config import Settings
from lbhost.errors import WireError
from lbhost.placement.gain import WidthGain
from lbhost.placement.placement import Placement
from lbhost.purpose import Purpose
from lbhost.status import RequestStatus
from lbhost.weights import FilePart

MAX_PACKET = 64 * 1024
MAX_FDS = 4
_ANCILLARY = socket.CMSG_LEN(MAX_FDS * array.array("i").itemsize)


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Supervisor -> fork server or GPU worker: first frame. Carries the board's fd."""

    settings: Settings
    """Those of this model: see Settings.served."""
    model_path: str
    model_alias: str
    n_ctx: int
    """Tokens per slot, resolved."""
    weights: tuple[FilePart, ...] = ()
    """The model's files as the supervisor found them; who finds others refuses."""
    node: int | None = None
    """The NUMA node that a fork server loads the weights on; None: wherever it runs."""
    purpose: Purpose = Purpose()
    """What the model is served as."""
    aliases: tuple[str, ...] = ()
    """More names that clients may use for it."""
    adapters: tuple[AdapterFile, ...] = ()
    """Its LoRA adapters, by their names; for their numbers see adapters.py."""
    gains: tuple[WidthGain, ...] = ()
    """What the probe has measured of cores beyond a worker's own; empty: nothing."""

    @property
    def files(self) -> tuple[FilePart, ...]:
        """All that its weights are made from."""
        return (*self.weights, *(adapter.file for adapter in self.adapters))


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Supervisor -> gateway: first frame. Carries the board's fd and the listening socket."""

    settings: Settings
    """Those of the server as a whole."""
    models: tuple[Configure, ...]
    """What it serves, at least one; a model's number is its place here. None has the API key."""


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Supervisor -> fork server: fork this worker. Carries the worker's end of its control link,
    and what its standard output and error are to be where it is `relayed`."""

    worker: int
    epoch: int
    placement: Placement
    settings: Settings | None = None
    """Those of Configure if None. What shapes the context is the same in both."""
    relayed: bool = False
    """Whether the supervisor reads its output: all levels are wanted then, as JSON."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Fork server -> supervisor: weights are in memory, forks are welcome."""

    load_s: float
    weights_bytes: int
    n_ctx_train: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Worker -> supervisor, once it is the supervisor's child: who to watch."""

    pid: int
    inherited_bytes: int = 0
    """Memory that it shares with the fork server from the start: the weights above all."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker or gateway -> supervisor: open for work."""

    refused: dict[int, str] = {}
    """Of a gateway: models, by their places in Serve, that it cannot serve, and why."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Fork server, worker or gateway -> supervisor, before it exits: why it cannot work."""

    message: str


class Link(msgspec.Struct, frozen=True, tag="link"):
    """Supervisor -> worker and gateway: new links between the two. Carries their ends' fds: of the
    data link, and of the states link if there is one."""

    worker: int
    epoch: int
    model: int = 0
    """Which of Serve's models the worker is of."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Supervisor -> worker: reject new Submits; say Drained once nothing runs."""

    number: int = 0
    """Counts the drains of this worker: an answer to one that was withdrawn is none to the next."""


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Worker -> supervisor: draining, and idle."""

    number: int = 0
    """The drain's."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Supervisor -> worker: take Submits again. Withdraws Drain."""


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """Supervisor -> gateway: the board says since just now that a worker drains or rests.

    Its requests may go on elsewhere. Lost, it costs the time until the gateway looks by itself.
    """

    worker: int
    epoch: int


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Gateway -> supervisor: a request has come for a model that sleeps. Told again as long as one
    waits."""

    model: int
    """Which of Serve's models."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Supervisor -> gateway: a worker's process has ended, or was found hung."""

    worker: int
    epoch: int
    by_its_work: bool
    """Whether what it computed may be the cause: it crashed or hung. False when it was told to
    end, or somebody has killed or stopped it."""


class Reconfigure(msgspec.Struct, frozen=True, tag="reconfigure"):
    """Supervisor -> gateway: other settings from now on. Only those change that changes.py calls
    live or rolling."""

    number: int
    """Counts the changes."""
    settings: Settings
    models: tuple[Settings, ...] = ()
    """Each model's, in Serve's order."""


class Reconfigured(msgspec.Struct, frozen=True, tag="reconfigured"):
    """Gateway -> supervisor: the settings of that number are in force."""

    number: int


class AskRequests(msgspec.Struct, frozen=True, tag="ask_requests"):
    """Supervisor -> gateway: which requests are live? Answered by one ToldRequests."""

    number: int
    """Of the question; the answer has the same."""
    after: int = 0
    """Only those behind this place; a page's `next`."""


class ToldRequests(msgspec.Struct, frozen=True, tag="told_requests"):
    """Gateway -> supervisor: so many of them as fit a packet, the oldest first."""

    number: int
    requests: tuple[RequestStatus, ...]
    total: int
    """How many there are in all."""
    next: int | None
    """Where to ask on; None: that was the last page."""


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel_request"):
    """Supervisor -> gateway: an operator ends a request. Answered by one Cancelled."""

    number: int
    request: str
    """Its x-request-id."""


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    """Gateway -> supervisor: so many requests of that id were ended; 0: there was none."""

    number: int
    count: int


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Supervisor -> gateway: another one accepts on your socket now. End what you have, within
    limit_s, and then yourself. May carry the line to that one, for KV states."""

    limit_s: float


class TakeStates(msgspec.Struct, frozen=True, tag="take_states"):
    """Supervisor -> gateway: here comes what the gateway before you had computed. Carries the line
    from it."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Supervisor -> fork server, worker or gateway: end.

    A worker gives back what it runs as MOVED and exits; the gateway takes no new requests,
    lets running ones finish for grace_s, ends the rest with an error event, and exits 0.
    """

    grace_s: float = 0.0


Control: TypeAlias = (
    Configure
    | Serve
    | Fork
    | Loaded
    | Hello
    | Ready
    | Failed
    | Link
    | Drain
    | Drained
    | Resume
    | Leaving
    | Wake
    | Ended
    | Reconfigure
    | Reconfigured
    | AskRequests
    | ToldRequests
    | CancelRequest
    | Cancelled
    | Retire
    | TakeStates
    | Stop
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Control)


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new control link, blocking, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def size(message: Control) -> int:
    """Bytes of its packet."""
    return len(_encoder.encode(message))


def send(link: socket.socket, message: Control, fds: Sequence[int] = ()) -> None:
    """Send one message with its descriptors (which stay open here).

    Raises:
        OSError: the other side is gone (BrokenPipeError), or a non-blocking link is full.
    """
    socket.send_fds(link, [_encoder.encode(message)], list(fds), socket.MSG_NOSIGNAL)


def receive(link: socket.socket) -> tuple[Control, list[int]] | None:
    """The next message and its descriptors, now the caller's; None at end of file.

    Raises:
        BlockingIOError: nothing there yet, on a non-blocking link.
        WireError: not a message of ours.
    """
    packet = receive_packet(link)
    if packet is None:
        return None
    data, fds = packet
    try:
        return _decoder.decode(data), fds
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise WireError(f"undecodable control packet: {error}") from error


def receive_packet(link: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next packet's bytes and descriptors, now the caller's; None at end of file.

    Raises:
        BlockingIOError: nothing there yet, on a non-blocking link.
        WireError: it was cut short.
    """
    # Not socket.recv_fds: it ignores its flags, and descriptors would leak into children.
    try:
        data, ancillary, flags, _ = link.recvmsg(MAX_PACKET, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data:
        return None
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise WireError("a packet was cut short")
    return data, fds.tolist()
