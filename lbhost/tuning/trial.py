"""What the one who measures (gauge.py) and the measuring process (measuring.py) say to each other.

A SEQPACKET socketpair between the two: a message is a packet. Question and answer in turn; end of
file means that the other side is gone.
"""

from __future__ import annotations

import socket

import msgspec

from lbhost.errors import TuningError
from lbhost.placement.placement import Placement
from lbhost.purpose import Pooling
from lbhost.tuning.shapes import Speeds
from lbhost.weights import FilePart

MAX_PACKET = 64 * 1024


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Have this model's weights in memory; once."""

    path: str
    parts: tuple[FilePart, ...]
    """Its files as they must be."""
    node: int | None = None
    """The NUMA node to load on."""
    folder: str | None = None
    """The only one that may be written in from then on."""


class Trial(msgspec.Struct, frozen=True, tag="trial"):
    """How fast are workers of this shape, all at once?"""

    placements: tuple[Placement, ...]
    slots: int
    window_s: float
    """How long prefill and decode are each measured; one step at least."""
    flash_attention: bool | None = None
    """None: as `serve` would have it by itself."""
    pooling: Pooling | None = None
    """How the vectors of its texts are pooled; None: it generates."""


class Rewrite(msgspec.Struct, frozen=True, tag="rewrite"):
    """Write a model's weights in another format."""

    source: str
    target: str
    format_number: int
    threads: int


class Judge(msgspec.Struct, frozen=True, tag="judge"):
    """What does the loaded model say to the fixed text?"""

    answers: str
    """A file: of its logits, or of its vectors. Written if it is not there; else compared with."""
    pooling: Pooling | None = None
    """As in Trial."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Answer to Load."""

    weights_bytes: int
    flash_attention: bool


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """Answer to Trial."""

    speeds: Speeds


class Rewritten(msgspec.Struct, frozen=True, tag="rewritten"):
    """Answer to Rewrite."""


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """Answer to Judge; a model does not differ from what it has just written itself."""

    kl: float
    """What is lost: mean KL divergence from the other one, nats a token; of vectors 1 - cosine."""
    agreement: float
    """Part of the tokens of which both have the same first choice; of texts, the same nearest."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Answer to anything: it cannot be done, and why."""

    message: str


def send(link: socket.socket, message: msgspec.Struct) -> None:
    """Raises OSError when the other side is gone or does not take it in time."""
    link.send(msgspec.msgpack.encode(message))


def receive_question(link: socket.socket) -> Load | Trial | Rewrite | Judge | None:
    """The next one; None when the other side is gone."""
    data = link.recv(MAX_PACKET)
    return msgspec.msgpack.decode(data, type=Load | Trial | Rewrite | Judge) if data else None


def receive_answer(link: socket.socket) -> Loaded | Measured | Rewritten | Judged | Failed:
    """The answer.

    Raises:
        TuningError: the measuring process has ended.
        TimeoutError: it takes too long.
    """
    data = link.recv(MAX_PACKET)
    if not data:
        raise TuningError("the measuring process has ended")
    return msgspec.msgpack.decode(data, type=Loaded | Measured | Rewritten | Judged | Failed)
