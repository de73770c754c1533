"""What the gateway and a prompt helper say to each other: a struct each, in frames.

A frame is a little-endian u32 length, then msgpack, over a unix stream socketpair. Both sides
check types and sizes: a helper works on strangers' input and is not to be believed blindly.
"""

from __future__ import annotations

import struct
from typing import TypeAlias, TypeVar

import msgspec

from lbhost import errors
from lbhost.choices import LogFormat, LogLevel
from lbhost.errors import LbhostError, WireError
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.inputs import Inputs
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.prompt.questions import Told
from lbhost.purpose import Purpose

LENGTH = struct.Struct("<I")

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of a helper's answer. A prompt of a million tokens is 4 MB."""

MAX_MESSAGE = 2000
"""Characters of an error's message that a client gets to read."""


class Setup(msgspec.Struct, frozen=True):
    """Gateway -> helper, first frame."""

    model_path: str
    n_ctx: int
    alias: str
    nice: int
    log_format: LogFormat
    log_level: LogLevel
    purpose: Purpose = Purpose()
    aliases: tuple[str, ...] = ()


class Task(msgspec.Struct, frozen=True):
    """Gateway -> helper: prepare this body."""

    kind: Kind
    body: bytes
    cpu_s: int
    """Seconds of CPU that it may take; the kernel ends the helper after them."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Helper -> gateway: the vocabulary is loaded."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Helper -> gateway, before it exits: why it cannot work."""

    message: str


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """Helper -> gateway: it has the body and works on it. Its answer follows."""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """Helper -> gateway: the body is good."""

    taken: Taken | Inputs | Told


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Helper -> gateway: the body is not good; an error of errors.py by its name."""

    error: str
    message: str
    param: str | None

    def as_error(self) -> LbhostError:
        """Raises WireError: no error of ours has that name."""
        known = getattr(errors, self.error, None)
        if not (isinstance(known, type) and issubclass(known, LbhostError)):
            raise WireError("a prompt helper names an unknown error")
        return known(self.message[:MAX_MESSAGE], param=self.param)


Answer: TypeAlias = Ready | Failed | Begun | Prepared | Refused

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(message: Setup | Task | Answer) -> bytes:
    """One message with its length."""
    data = _encoder.encode(message)
    return LENGTH.pack(len(data)) + data


def answer(data: bytes) -> Answer:
    """A helper's answer. Raises WireError: anything else."""
    try:
        return _answers.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a prompt helper's answer is not one: {error}") from error
