"""The data link between gateway and worker: messages, one frozen struct each, and framing.

A link is a unix stream socketpair that the supervisor makes and hands out (see control.py);
it carries frames: a little-endian u32 length, then msgpack. Owns no socket and keeps no
state but a decoder's unfinished frame.

A request is named by an id that the gateway never uses twice, and a link belongs to one
epoch of one worker, so that a late cancel can never hit the next user of a slot.
"""

from __future__ import annotations

import array
import enum
import struct
import sys
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from lbhost import order
from lbhost.errors import WireError

MAX_FRAME = 16 * 1024 * 1024
"""Bytes. A prompt of a million tokens is 4 MB."""

MAX_PROMPT_TOKENS = (MAX_FRAME // 2 - 256 * 1024) // 4
"""That a Submit can hold beside as many output tokens and the longest stop strings and biases that
requests may have."""

_LENGTH = struct.Struct("<I")


# --- gateway -> worker -------------------------------------------------------


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How to pick tokens. Ranges are checked in the gateway; see gateway/api/parameters.py."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all."""
    min_p: float = 0.0
    seed: int = 0
    """What the draws start from; the gateway settles it when the request has none."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, bias) pairs; a bias of -100 forbids the token."""


class Submit(msgspec.Struct, frozen=True, tag="submit", array_like=True):
    """Start a request. The worker answers with Steps, ending in one Delta that has `finish`."""

    request: int
    prompt: bytes
    """Token ids, see pack_tokens. At least one; prompt and max_tokens together fit n_ctx."""
    max_tokens: int
    """0: the prompt is computed and nothing else."""
    sampling: Sampling
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    rank: int = order.DEFAULT
    """Its class: lower goes first; see order.py."""
    logprobs: int | None = None
    """Tell the log-probability of each output token, and so many of the most probable ones."""
    prompt_logprobs: bool = False
    """The same for the prompt, which is computed anew for it. Needs `logprobs`."""
    grammar: str = ""
    """What the answer must follow, as guidance.check wrote it; empty: nothing."""
    shown: tuple[int, ...] = ()
    """Special tokens that are part of the text, as marks of calls and thoughts; others are not."""
    done: bytes = b""
    """Output tokens, packed, that other workers have produced and told: the answer goes on after
    them. With the prompt they fit n_ctx."""
    state: int = 0
    """The number of the KV state that was sent for it over the states link; 0: none."""
    kept: int = 0
    """How many of its tokens, from the first on, the store has the KV of: not to be saved again."""
    scope: int = 0
    """Who shares KV with whom: what was computed for one scope answers no other sooner. Requests
    with different adapters are of different scopes: their KV differs; see adapters.py."""
    adapter: int = 0
    """The LoRA adapter to compute it with, by its number among the model's; 0: none."""


class Embed(msgspec.Struct, frozen=True, tag="embed", array_like=True):
    """Compute a vector for each of some inputs. The worker answers with Vectors, or with a Step
    whose Delta says why not."""

    request: int
    tokens: bytes
    """Token ids of all inputs, one after the other; see pack_tokens."""
    lengths: tuple[int, ...]
    """Tokens of each, at least 1 and at most n_ctx."""
    rank: int = order.DEFAULT
    """Its class; see order.py."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel", array_like=True):
    """Stop a request, wherever it is. Unknown ids are ignored: it may just have ended.

    The worker answers with a final Delta (finish CANCELLED) if it still had the request.
    """

    request: int


class Move(msgspec.Struct, frozen=True, tag="move", array_like=True):
    """Give a request back after the step that runs: it goes on elsewhere. Unknown ids are ignored.

    The worker answers with a final Delta (finish MOVED) if it still had the request.
    """

    request: int


class Lend(msgspec.Struct, frozen=True, tag="lend", array_like=True):
    """The CPUs that the worker may use beside its own from its next step on, one thread each.

    The nearest come first. Empty: none; the worker that lives there is about to need them.
    """

    cpus: tuple[int, ...]


ToWorker: TypeAlias = Submit | Embed | Cancel | Move | Lend


# --- worker -> gateway -------------------------------------------------------


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """End-of-generation token or a stop string."""
    LENGTH = "length"
    """max_tokens reached, or the context is full."""
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    """Not started: the worker is draining. Nothing was computed; send it elsewhere."""
    MOVED = "moved"
    """Given back, because the gateway asked for it or the worker ends. All tokens were told."""
    ERROR = "error"
    """The engine failed on it; `error` says how."""
    GRAMMAR = "grammar"
    """Its grammar cannot be followed any further; `error` says why. Nobody else's fault."""
    FAILED = "failed"
    """The decode failed that it was in, with all others that were; `error` says how. It may go on
    elsewhere. All tokens were told."""


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """The end of a request."""

    reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose KV was reused."""
    completion_tokens: int = 0
    """Those that other workers had done included."""
    queued_s: float = 0.0
    prefill_s: float = 0.0
    """0: it was not begun."""
    decode_s: float = 0.0
    error: str | None = None
    stop: str | None = None
    """The stop string that ended it; None: something else did."""
    alone: bool = False
    """FAILED: no other request was in the decode."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """How probable the model held a token, before bias, penalties and temperature."""

    token: int
    logprob: float
    """Natural logarithm, -9999 at least."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens, most probable first; as many as were asked for."""


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one request.

    `text` may lag behind `tokens` (UTF-8, stop strings), but follows from the tokens told so far
    alone: a worker that is given them can go on where another one stopped.
    """

    request: int
    tokens: tuple[int, ...]
    text: str
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of `tokens`, where they were asked for; none of one that ends the generation."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt's next tokens, beginning with its second: nothing comes before the first."""
    cached_tokens: int | None = None
    """With the first token from this worker: the Finish's, should that never come."""
    step_s: float | None = None
    """With the first token: how long the step took that computed the end of the prompt and it."""


def joined(deltas: Sequence[Delta]) -> Delta:
    """What several deltas of one request add to it. At least one; nothing follows an end."""
    return msgspec.structs.replace(
        deltas[0],
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        text="".join([delta.text for delta in deltas]),
        finish=deltas[-1].finish,
        logprobs=tuple(score for delta in deltas for score in delta.logprobs),
        prompt_logprobs=tuple(score for delta in deltas for score in delta.prompt_logprobs),
    )


class Step(msgspec.Struct, frozen=True, tag="step", array_like=True):
    """All that one engine step produced: one frame a step, however many sequences it carried."""

    deltas: tuple[Delta, ...]
    prefill_pending: int
    """Prompt tokens still to compute in this worker, so that the router need not poll."""


VECTORS_BYTES = 4 * 1024 * 1024
"""That one Vectors carries at most: 2,048 vectors of 4,096 numbers are 32 MB."""


class Vectors(msgspec.Struct, frozen=True, tag="vectors", array_like=True):
    """The answer to an Embed, or the next part of it."""

    request: int
    values: bytes
    """float32, little-endian: the vector of each input after the other, all of one length. Of
    rerankers the score alone."""
    finish: Finish | None = None
    """None: more comes."""


def vectors(request: int, values: bytes, finish: Finish) -> list[Vectors]:
    """An answer in parts of VECTORS_BYTES, which may be cut anywhere; at least one."""
    starts = range(0, len(values), VECTORS_BYTES) or (0,)
    parts = [Vectors(request, values[at : at + VECTORS_BYTES]) for at in starts]
    parts[-1] = msgspec.structs.replace(parts[-1], finish=finish)
    return parts


FromWorker: TypeAlias = Step | Vectors


# --- framing ----------------------------------------------------------------------------

_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """One frame, length included.

    Raises:
        WireError: it would be over MAX_FRAME.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise WireError(f"a {type(message).__name__} of {len(body)} bytes is over {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def decode_to_worker(body: bytes) -> ToWorker:
    """A frame's body, in the worker. Raises WireError."""
    try:
        return _to_worker.decode(body)
    except _UNDECODABLE as error:
        raise WireError(f"undecodable frame for a worker: {error}") from error


def decode_from_worker(body: bytes) -> FromWorker:
    """A frame's body, in the gateway. Raises WireError."""
    try:
        return _from_worker.decode(body)
    except _UNDECODABLE as error:
        raise WireError(f"undecodable frame from a worker: {error}") from error


class Frames:
    """Cuts a byte stream into frame bodies. One per link and direction."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes, in order.

        Raises:
            WireError: a length over MAX_FRAME; the link is beyond repair.
        """
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        at = 0
        while len(buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_FRAME:
                raise WireError(f"a frame of {length} bytes is over {MAX_FRAME}")
            if len(buffer) - at - 4 < length:
                break
            bodies.append(bytes(buffer[at + 4 : at + 4 + length]))
            at += 4 + length
        del buffer[:at]
        return bodies


def pack_tokens(tokens: list[int]) -> bytes:
    """Token ids as little-endian int32: a prompt costs 4 bytes a token and one memcpy."""
    packed = array.array("i", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """The reverse of pack_tokens.

    Raises:
        WireError: not a whole number of tokens.
    """
    if len(packed) % 4:
        raise WireError(f"{len(packed)} bytes are not whole tokens")
    tokens = array.array("i", packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tolist()


def common_prefix(a: bytes | bytearray, b: bytes | bytearray) -> int:
    """Tokens (4 bytes each) that two packed sequences share from the start."""
    low, high = 0, min(len(a), len(b)) // 4
    view_a, view_b = memoryview(a), memoryview(b)
    if view_a[: 4 * high] == view_b[: 4 * high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if view_a[4 * low : 4 * middle] == view_b[4 * low : 4 * middle]:
            low = middle
        else:
            high = middle
    return low
