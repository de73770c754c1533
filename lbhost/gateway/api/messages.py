"""Anthropic's messages: their bodies and their answers. Pure.

What an answer may cost is cut to what the context holds, and the answer says so, as Anthropic's
newer models do: `max_tokens` must be given there, and clients have large ones built in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lbhost import order, wire
from lbhost.errors import InvalidRequestError, LbhostError
from lbhost.gateway.api import error_shapes, parameters
from lbhost.gateway.api.generation import Generation, Parsed, Style, Turn
from lbhost.gateway.api.parameters import MAX_STOPS, Fraction, Parameters, Stop, Tokens
from lbhost.gateway.api.replies import PING
from lbhost.gateway.api.turns import merged
from lbhost.gateway.api.writer import OneAnswer, named_event

_IGNORED_BLOCKS = frozenset({"thinking", "redacted_thinking"})
"""What a model thought in earlier turns: templates leave it out."""


class Block(msgspec.Struct, frozen=True):
    """A part of a message or of the system prompt."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Metadata(msgspec.Struct, frozen=True):
    """About the request; nothing follows from it."""

    user_id: str | None = None


class CountRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens, and what /v1/messages has beside it."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    system: str | list[Block] | None = None
    temperature: Fraction | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None  # type: ignore[assignment]

    # Looked at only to refuse them.
    tools: Any = None
    tool_choice: Any = None
    thinking: Any = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None
    output_config: Any = None
    output_format: Any = None

    def unsupported(self) -> str | None:
        if self.tools not in (None, []):
            return "tools"
        if self.tool_choice is not None and _type_of(self.tool_choice) not in ("auto", "none"):
            return "tool_choice"
        if self.thinking is not None and _type_of(self.thinking) != "disabled":
            return "thinking"
        for name in (
            "container", "mcp_servers", "context_management", "output_config", "output_format",
        ):  # fmt: skip
            if getattr(self, name) not in (None, [], {}):
                return name
        return "n" if self.n not in (None, 1) else super().unsupported()

    def stops(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.stop_sequences or ()))

    def rank(self) -> int:
        return order.DEFAULT

    def turns(self) -> tuple[Turn, ...]:
        """Who said what, the system first.

        Raises:
            InvalidRequestError: a block that is no text.
        """
        said = []
        if self.system:
            said.append(Turn("system", _text(self.system, "system", "system")))
        for i, message in enumerate(self.messages):
            where = f"messages[{i}].content"
            said.append(Turn(message.role, _text(message.content, where, "messages")))
        return merged(said)

    def continues(self) -> bool:
        """Whether the answer goes on with the last message, as Anthropic has it."""
        return self.messages[-1].role == "assistant"


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Tokens


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, MessagesRequest)
    generation = request.generation(
        request.turns(),
        "messages",
        n_vocab,
        usual_tokens=request.max_tokens,
        continues=request.continues(),
    )
    # As a usual number it is cut to the room that there is, instead of refused.
    cut = msgspec.structs.replace(generation, max_tokens=None)
    return Parsed(cut, Style(repeated={"max_tokens": request.max_tokens}))


def parse_count(body: bytes, n_vocab: int) -> Generation:
    """What count_tokens asks about. Raises InvalidRequestError."""
    request = parameters.parse(body, CountRequest)
    return request.generation(
        request.turns(), "messages", n_vocab, usual_tokens=None, continues=request.continues()
    )


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else value


def _text(content: str | list[Block], where: str, param: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, block in enumerate(content):
        if block.type in _IGNORED_BLOCKS:
            continue
        if block.type != "text" or block.text is None:
            raise InvalidRequestError(
                f"{where}[{i}]: only text blocks are supported, not {block.type[:40]!r}"
                if block.type != "text"
                else f"{where}[{i}].text: must be given",
                param=param,
            )
        texts.append(block.text)
    return "\n".join(texts)


class MessagesReply(OneAnswer):
    """The answer: a message, or events that add up to one."""

    _begun = False

    def complete(self, text: str, finish: wire.Finish) -> Any:
        reason, stop = self._why(finish)
        return self._message([{"type": "text", "text": text}], reason, stop, _usage(finish))

    def begin(self) -> bytes:
        self._begun = True
        usage = _usage(wire.Finish(wire.FinishReason.STOP, self.style.prompt_tokens))
        message = self._message([], None, None, usage)
        block = {"type": "text", "text": ""}
        return (
            named_event("message_start", {"type": "message_start", "message": message})
            + named_event(
                "content_block_start",
                {"type": "content_block_start", "index": 0, "content_block": block},
            )
            + self.ping()
        )

    def piece(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return named_event(
            "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
        )

    def end(self, finish: wire.Finish) -> bytes:
        reason, stop = self._why(finish)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return (
            named_event("content_block_stop", {"type": "content_block_stop", "index": 0})
            + named_event(
                "message_delta",
                {"type": "message_delta", "delta": delta, "usage": _usage(finish)},
            )
            + named_event("message_stop", {"type": "message_stop"})
        )

    def failing(self, error: LbhostError) -> bytes:
        return b"event: error\ndata: " + error_shapes.anthropic(error, self.name) + b"\n\n"

    def ping(self) -> bytes:
        # A comment before message_start, which is the first event that clients expect.
        return named_event("ping", {"type": "ping"}) if self._begun else PING

    def _why(self, finish: wire.Finish) -> tuple[str, str | None]:
        """stop_reason and stop_sequence."""
        if finish.stop is not None:
            return "stop_sequence", finish.stop
        if finish.reason is not wire.FinishReason.LENGTH:
            return "end_turn", None
        if finish.completion_tokens < self.style.repeated["max_tokens"]:
            return "model_context_window_exceeded", None
        return "max_tokens", None

    def _message(
        self, content: list[Any], reason: str | None, stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self.name}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }


def _usage(finish: wire.Finish) -> dict[str, int]:
    """Anthropic's input_tokens are those that no cache had."""
    return {
        "input_tokens": finish.prompt_tokens - finish.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": finish.cached_tokens,
        "output_tokens": finish.completion_tokens,
    }
