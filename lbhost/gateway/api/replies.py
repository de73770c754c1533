"""The answers that clients get, as OpenAI defines them: whole ones, chunks, errors.

Pure. One Reply per request knows its id, its kind and its model; it turns text and a Finish
into JSON bytes, ready to be sent.
"""

from __future__ import annotations

import enum
import time
from typing import Any

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


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: str


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: str | None


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class Reply:
    """Shapes everything that is sent in answer to one request."""

    def __init__(self, kind: Kind, name: str, model: str, include_usage: bool = False) -> None:
        """`name` is unique among requests; `include_usage` as in stream_options."""
        self._chat = kind is Kind.CHAT
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{name}"
        self._model = model
        self._created = int(time.time())
        self._usage_last = include_usage
        self._between: msgspec.UnsetType | None = None if include_usage else msgspec.UNSET

    def whole(self, text: str, finish: wire.Finish) -> bytes:
        """The body of an answer that is not streamed."""
        reason = str(finish.reason)
        choice: Any = (
            ChatChoice(0, ChatMessage("assistant", text), None, reason)
            if self._chat
            else TextChoice(0, text, None, reason)
        )
        kind = "chat.completion" if self._chat else "text_completion"
        return _encode(self._completion(kind, [choice], _usage(finish)))

    def opening(self) -> bytes:
        """The first event of a stream: who speaks. Nothing for plain completions."""
        return self._event(ChatDelta(role="assistant", content="")) if self._chat else b""

    def text(self, text: str) -> bytes:
        """An event with some text."""
        return self._event(ChatDelta(content=text)) if self._chat else self._text_event(text, None)

    def closing(self, finish: wire.Finish) -> bytes:
        """The last events: why it ended, what it cost if that was asked for, and [DONE]."""
        reason = str(finish.reason)
        last = self._event(ChatDelta(), reason) if self._chat else self._text_event("", reason)
        if self._usage_last:
            last += _sse(self._completion(self._chunk_kind, [], _usage(finish)))
        return last + DONE

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _event(self, delta: ChatDelta, reason: str | None = None) -> bytes:
        choice = ChatChunkChoice(0, delta, None, reason)
        return _sse(self._completion(self._chunk_kind, [choice], self._between))

    def _text_event(self, text: str, reason: str | None) -> bytes:
        choice = TextChoice(0, text, None, reason)
        return _sse(self._completion(self._chunk_kind, [choice], self._between))

    def _completion(
        self, kind: str, choices: list[Any], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        return Completion(self._id, kind, self._created, self._model, FINGERPRINT, choices, usage)


def error_body(error: LbhostError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _encode(error.body())


def error_event(error: LbhostError) -> bytes:
    """How a stream that cannot go on ends: clients raise it. Never end one silently."""
    return b"data: " + error_body(error) + b"\n\n"


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
