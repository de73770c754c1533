"""The answers to Anthropic's messages: their types and their events. Pure."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

import msgspec

from lbhost import wire
from lbhost.errors import LbhostError
from lbhost.gateway.api import error_shapes
from lbhost.gateway.api.blocks import Block, BlockKind, BlockWriter
from lbhost.gateway.api.error_shapes import AnthropicError
from lbhost.gateway.api.replies import PING
from lbhost.gateway.api.writer import named_event, tagged_event

StopReason: TypeAlias = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    """What the model says."""

    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    """What it wrote for itself before."""

    thinking: str
    signature: str = ""
    """Always empty: nothing here has to be proven later."""


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    """A call of one of the client's tools."""

    id: str
    name: str
    input: dict[str, Any]
    """Empty where the answer was cut off before it was complete, and while it streams."""


ContentBlock: TypeAlias = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, frozen=True):
    """What an answer cost, in tokens."""

    input_tokens: int
    """Those that no cache had."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(msgspec.Struct, frozen=True, tag="message"):
    """The answer."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TextPiece(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingPiece(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignaturePiece(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputPiece(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


_PIECES: dict[BlockKind, type[TextPiece | ThinkingPiece | InputPiece]] = {
    BlockKind.TEXT: TextPiece,
    BlockKind.THOUGHT: ThinkingPiece,
    BlockKind.CALL: InputPiece,
}


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: MessageAnswer


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: ContentBlock


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class Stopped(msgspec.Struct, frozen=True):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: Stopped
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    """The last event."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Says nothing."""


MessageEvent: TypeAlias = (
    MessageStart
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | AnthropicError
)


class MessagesReply(BlockWriter):
    """The answer: a message, or events that add up to one."""

    _begun = False

    def answer(self, finish: wire.Finish) -> MessageAnswer:
        reason, stop = self._why(finish)
        content = [self._block(block) for block in self.blocks]
        return self._message(content, reason, stop, _usage(finish))

    def begin(self) -> bytes:
        self._begun = True
        usage = _usage(wire.Finish(wire.FinishReason.STOP, self.style.prompt_tokens))
        return tagged_event(MessageStart(self._message([], None, None, usage))) + self.ping()

    def open(self, block: Block) -> bytes:
        return tagged_event(BlockStart(block.index, self._block(block, empty=True)))

    def more(self, block: Block, text: str) -> bytes:
        return tagged_event(BlockDelta(block.index, _PIECES[block.kind](text)))

    def close(self, block: Block, *, cut: bool) -> bytes:
        signature = b""
        if block.kind is BlockKind.THOUGHT:  # clients keep no thought that has none
            signature = tagged_event(BlockDelta(block.index, SignaturePiece("")))
        return signature + tagged_event(BlockStop(block.index))

    def closed(self, finish: wire.Finish) -> bytes:
        delta = MessageDelta(Stopped(*self._why(finish)), _usage(finish))
        return tagged_event(delta) + tagged_event(MessageStop())

    def failing(self, error: LbhostError) -> bytes:
        return named_event("error", error_shapes.of_anthropic(error, self.request_id))

    def ping(self) -> bytes:
        # A comment before message_start, which is the first event that clients expect.
        return tagged_event(Ping()) if self._begun else PING

    def _why(self, finish: wire.Finish) -> tuple[StopReason, str | None]:
        """stop_reason and stop_sequence."""
        if finish.stop is not None:
            return "stop_sequence", finish.stop
        if finish.reason is not wire.FinishReason.LENGTH:
            return "tool_use" if self.calls() else "end_turn", None
        if finish.completion_tokens < self.style.repeated["max_tokens"]:
            return "model_context_window_exceeded", None
        return "max_tokens", None

    def _block(self, block: Block, *, empty: bool = False) -> ContentBlock:
        text = "" if empty else block.text
        match block.kind:
            case BlockKind.TEXT:
                return TextBlock(text)
            case BlockKind.THOUGHT:
                return ThinkingBlock(text)
            case BlockKind.CALL:
                return ToolUseBlock(f"toolu_{self.unique(block)}", block.name, _input(text))

    def _message(
        self,
        content: list[ContentBlock],
        reason: StopReason | None,
        stop: str | None,
        usage: MessageUsage,
    ) -> MessageAnswer:
        return MessageAnswer(
            f"msg_{self.name}", "assistant", self.model, content, reason, stop, usage
        )


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; nothing where they were cut off."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _usage(finish: wire.Finish) -> MessageUsage:
    return MessageUsage(
        finish.prompt_tokens - finish.cached_tokens,
        0,
        finish.cached_tokens,
        finish.completion_tokens,
    )
