"""The states link between gateway and worker: KV states as descriptors, and what became of them.

A SEQPACKET socketpair that the supervisor makes beside the data link (see control.Link): one
packet is one message and at most one descriptor. Neither side waits for it: a link that is full or
broken only means that something is computed again. Keeps no state.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TypeAlias, TypeVar

import msgspec

from lbhost import control
from lbhost.errors import WireError


class State(msgspec.Struct, frozen=True, tag="state", array_like=True):
    """Gateway -> worker, before the Submit that names it: a state to go on from. Carries it."""

    number: int
    """Submit.state."""


class Saved(msgspec.Struct, frozen=True, tag="saved", array_like=True):
    """Worker -> gateway: the state of a slot, for the store. Carries it."""

    seconds: float
    """That the saving took."""
    computed_s: float
    """That computing what the store did not have yet took, as far as it was measured."""


class Taken(msgspec.Struct, frozen=True, tag="taken", array_like=True):
    """Worker -> gateway: what became of a State."""

    number: int
    tokens: int
    """That need not be computed; 0: it was not used."""
    bytes: int
    seconds: float
    """That loading it took."""
    problem: str = ""
    """Why it could not be used; empty where it was, or where the worker had as much already."""


class Left(msgspec.Struct, frozen=True, tag="left", array_like=True):
    """Gateway -> the gateway that takes over from it: a state of its store. Carries it."""

    unused_s: float
    """How long ago it was last of use."""
    uses: int


class Unable(msgspec.Struct, frozen=True, tag="unable", array_like=True):
    """Worker -> gateway: this model's states cannot be moved; none will come."""

    reason: str


class Able(msgspec.Struct, frozen=True, tag="able", array_like=True):
    """Worker -> gateway: what a state must have in common with this worker; see state_file.py."""

    identity: bytes


ToWorker: TypeAlias = State
FromWorker: TypeAlias = Saved | Taken | Unable | Able

M = TypeVar("M")

_CARRYING = (State, Saved, Left)
"""Messages that come with a descriptor."""

_from_before = msgspec.msgpack.Decoder(Left)
_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def send(link: socket.socket, message: ToWorker | FromWorker | Left, fd: int | None = None) -> bool:
    """Send a message with its descriptor, which stays open here.

    Returns:
        False if the link is full, or too many descriptors are under way.

    Raises:
        ConnectionError: the other side is gone.
    """
    with_it = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        # Not socket.send_fds: it ignores its flags, and would wait.
        link.sendmsg([_encoder.encode(message)], with_it, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    except ConnectionError:
        raise
    except OSError:
        return False
    return True


def receive_in_worker(link: socket.socket) -> tuple[State, int] | None:
    """The next State and its descriptor, now the caller's; None at end of file.

    Raises:
        BlockingIOError: nothing there yet.
        WireError: not a message of ours.
    """
    return _receive_carried(link, _to_worker)


def receive_in_gateway(link: socket.socket) -> tuple[FromWorker, int | None] | None:
    """The next message and the descriptor of a Saved, now the caller's; None at end of file.

    Raises:
        BlockingIOError: nothing there yet.
        WireError: not a message of ours.
    """
    return _receive(link, _from_worker)


def receive_from_before(link: socket.socket) -> tuple[Left, int] | None:
    """The next state of the gateway before this one, now the caller's; None at end of file.

    Raises:
        BlockingIOError: nothing there yet.
        WireError: not a message of ours.
    """
    return _receive_carried(link, _from_before)


def _receive_carried(
    link: socket.socket, decoder: msgspec.msgpack.Decoder[M]
) -> tuple[M, int] | None:
    """The same of messages that all come with a descriptor."""
    received = _receive(link, decoder)
    if received is None:
        return None
    message, fd = received
    assert fd is not None, "_CARRYING has its kind"
    return message, fd


def _receive(
    link: socket.socket, decoder: msgspec.msgpack.Decoder[M]
) -> tuple[M, int | None] | None:
    packet = control.receive_packet(link)
    if packet is None:
        return None
    data, fds = packet
    try:
        message = decoder.decode(data)
        if len(fds) != isinstance(message, _CARRYING):
            raise WireError(f"a {type(message).__name__} with {len(fds)} descriptors")
    except (msgspec.DecodeError, UnicodeDecodeError, WireError) as error:
        _close(fds)
        raise WireError(f"undecodable packet on a states link: {error}") from error
    return message, fds[0] if fds else None


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
