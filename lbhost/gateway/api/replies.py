"""The answers that clients get, as OpenAI defines them: what all its dialects share.

Pure. One Reply per request knows its id and its model; it turns text and a Finish into JSON
bytes, ready to be sent. Errors have one shape wherever they are made.
"""

from __future__ import annotations

import abc
import enum
import time
from typing import Any, ClassVar

import msgspec

from lbhost import __version__, wire
from lbhost.errors import LbhostError

FINGERPRINT = f"lbhost-{__version__}"

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_encode = msgspec.json.Encoder().encode


class Kind(enum.Enum):
    """Which endpoint was asked."""

    CHAT = "chat"
    COMPLETION = "completion"


class CachedTokens(msgspec.Struct, frozen=True):
    """Part of Usage."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """What the request cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Completion(msgspec.Struct, frozen=True):
    """A whole answer, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET


class Reply(abc.ABC):
    """Shapes everything that is sent in answer to one request; each dialect has its own.

    Server-sent events of OpenAI's kind are made here; a dialect says what is in them.
    """

    id_prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(
        self, name: str, model: str, include_usage: bool = False, tier: str | None = None
    ) -> None:
        """`name` is unique among requests; `include_usage` as in stream_options; `tier` is the
        class that answers name, None for none."""
        self._id = f"{self.id_prefix}-{name}"
        self._model = model
        self._created = int(time.time())
        self._usage_last = include_usage
        self._tier: str | msgspec.UnsetType = msgspec.UNSET if tier is None else tier
        self._between: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET

    # --- what a dialect says ---------------------------------------------------------

    @abc.abstractmethod
    def opening(self) -> bytes:
        """The first event of a stream, before any text; nothing where there is none."""

    @abc.abstractmethod
    def text(self, text: str) -> bytes:
        """An event with some text."""

    @abc.abstractmethod
    def whole_choice(self, text: str, finish: wire.Finish) -> Any:
        """The one choice of an answer that is not streamed."""

    @abc.abstractmethod
    def last_chunk(self, reason: str) -> bytes:
        """The event that says why a stream ended."""

    # --- what they share -------------------------------------------------------------

    def whole(self, text: str, finish: wire.Finish) -> bytes:
        """The body of an answer that is not streamed."""
        choice = self.whole_choice(text, finish)
        return _encode(self._completion(self.whole_kind, [choice], _usage(finish)))

    def closing(self, finish: wire.Finish) -> bytes:
        """The last events: why it ended, what it cost if that was asked for, and [DONE]."""
        last = self.last_chunk(str(finish.reason))
        if self._usage_last:
            last += _sse(self._completion(self.chunk_kind, [], _usage(finish)))
        return last + DONE

    def failing(self, error: LbhostError) -> bytes:
        """How a stream that cannot go on ends: clients raise it. Never end one silently."""
        return b"data: " + error_body(error) + b"\n\n"

    def ping(self) -> bytes:
        """Something that says nothing: proxies cut streams that are silent."""
        return PING

    def chunk(self, choice: Any) -> bytes:
        """An event with one choice."""
        return _sse(self._completion(self.chunk_kind, [choice], self._between))

    def _completion(
        self, kind: str, choices: list[Any], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        return Completion(
            self._id,
            kind,
            self._created,
            self._model,
            FINGERPRINT,
            choices,
            usage,
            self._tier,
        )


def error_body(error: LbhostError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _encode(error.body())


def error_headers(error: LbhostError) -> list[tuple[bytes, bytes]]:
    """What tells clients whether and when to try again."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retryable:
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    else:
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def _sse(completion: Completion) -> bytes:
    return b"data: " + _encode(completion) + b"\n\n"


def _usage(finish: wire.Finish) -> Usage:
    return Usage(
        finish.prompt_tokens,
        finish.completion_tokens,
        finish.prompt_tokens + finish.completion_tokens,
        CachedTokens(finish.cached_tokens),
    )
