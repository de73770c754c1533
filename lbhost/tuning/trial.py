"""What the one who measures (gauge.py) and the measuring process (measuring.py) say to each other.

A SEQPACKET socketpair between the two: a message is a packet. Question and answer in turn; end of
file means that the other side is gone.
"""

from __future__ import annotations

import socket
from typing import TypeAlias

import msgspec

from lbhost.errors import TuningError
from lbhost.placement.placement import Placement
from lbhost.tuning.shapes import Speeds
from lbhost.weights import FilePart

MAX_PACKET = 64 * 1024


class Load(msgspec.Struct, frozen=True, tag="load"):
    """First question: have this model's weights in memory."""

    path: str
    parts: tuple[FilePart, ...]
    """Its files as they must be."""
    node: int | None = None
    """The NUMA node to load on."""


class Trial(msgspec.Struct, frozen=True, tag="trial"):
    """How fast are workers of this shape, all at once?"""

    placements: tuple[Placement, ...]
    slots: int
    window_s: float
    """How long prefill and decode are each measured; one step at least."""
    flash_attention: bool | None = None
    """None: as `serve` would have it by itself."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Answer to Load."""

    weights_bytes: int
    flash_attention: bool


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """Answer to Trial."""

    speeds: Speeds


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Answer to anything: it cannot be done, and why."""

    message: str


Question: TypeAlias = Load | Trial
Answer: TypeAlias = Loaded | Measured | Failed


def send(link: socket.socket, message: msgspec.Struct) -> None:
    """Raises OSError when the other side is gone or does not take it in time."""
    link.send(msgspec.msgpack.encode(message))


def receive_question(link: socket.socket) -> Question | None:
    """The next one; None when the other side is gone."""
    data = link.recv(MAX_PACKET)
    return msgspec.msgpack.decode(data, type=Load | Trial) if data else None


def receive_answer(link: socket.socket) -> Answer:
    """The answer.

    Raises:
        TuningError: the measuring process has ended.
        TimeoutError: it takes too long.
    """
    data = link.recv(MAX_PACKET)
    if not data:
        raise TuningError("the measuring process has ended")
    return msgspec.msgpack.decode(data, type=Loaded | Measured | Failed)
