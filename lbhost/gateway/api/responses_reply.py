"""The answers to OpenAI's responses: their types and their events. Pure."""

from __future__ import annotations

import time
from typing import Any, Literal, TypeAlias

import msgspec

from lbhost import wire
from lbhost.errors import LbhostError
from lbhost.gateway.api.blocks import Block, BlockKind, BlockWriter
from lbhost.gateway.api.generation import Style
from lbhost.gateway.api.replies import ReasoningTokens
from lbhost.gateway.api.responses import Repeated
from lbhost.gateway.api.writer import tagged_event

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    """What the model says."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    """What it wrote for itself before."""

    text: str


class MessageItem(msgspec.Struct, frozen=True, tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(msgspec.Struct, frozen=True, tag="reasoning"):
    id: str
    status: Status
    content: list[ReasoningText]
    summary: list[Any] = []
    encrypted_content: None = None


class CallItem(msgspec.Struct, frozen=True, tag="function_call"):
    """A call of one of the client's functions."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem: TypeAlias = MessageItem | ReasoningItem | CallItem


class InputTokens(msgspec.Struct, frozen=True):
    """Part of ResponseUsage."""

    cached_tokens: int
    cache_write_tokens: int = 0
    """Always 0: nothing is billed for being kept."""


class ResponseUsage(msgspec.Struct, frozen=True):
    """What a response cost, in tokens."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: str


class ResponseBody(Repeated, frozen=True, kw_only=True):
    """The answer."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    background: bool = False
    store: bool = False
    previous_response_id: None = None
    top_logprobs: int = 0
    truncation: str = "disabled"


class _Event(msgspec.Struct, frozen=True):
    sequence_number: int


class _OfResponse(_Event, frozen=True):
    response: ResponseBody


class ResponseCreated(_OfResponse, frozen=True, tag="response.created"):
    pass


class ResponseInProgress(_OfResponse, frozen=True, tag="response.in_progress"):
    pass


class ResponseCompleted(_OfResponse, frozen=True, tag="response.completed"):
    pass


class ResponseIncomplete(_OfResponse, frozen=True, tag="response.incomplete"):
    pass


class ResponseFailed(_OfResponse, frozen=True, tag="response.failed"):
    pass


class ItemAdded(_Event, frozen=True, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class ItemDone(_Event, frozen=True, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class _OfItem(_Event, frozen=True):
    item_id: str
    output_index: int


class _OfPart(_OfItem, frozen=True):
    content_index: int


class PartAdded(_OfPart, frozen=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(_OfPart, frozen=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class OutputTextDelta(_OfPart, frozen=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[Any] = []


class OutputTextDone(_OfPart, frozen=True, tag="response.output_text.done"):
    text: str
    logprobs: list[Any] = []


class ReasoningTextDelta(_OfPart, frozen=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningTextDone(_OfPart, frozen=True, tag="response.reasoning_text.done"):
    text: str


class ArgumentsDelta(_OfItem, frozen=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_OfItem, frozen=True, tag="response.function_call_arguments.done"):
    arguments: str


ResponseEvent: TypeAlias = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ArgumentsDelta
    | ArgumentsDone
)

_PREFIXES = {BlockKind.TEXT: "msg", BlockKind.THOUGHT: "rs", BlockKind.CALL: "fc"}


class ResponsesReply(BlockWriter):
    """The answer: a response, or events that add up to one."""

    def __init__(self, name: str, model: str, style: Style | None = None, **more: Any) -> None:
        super().__init__(name, model, style, **more)
        self._sequence = 0
        self._begun = False
        tier = self.style.tier
        self._response = ResponseBody(
            id=f"resp_{name}",
            created_at=int(time.time()),
            status="in_progress",
            model=model,
            output=[],
            service_tier=msgspec.UNSET if tier is None else tier,
            **msgspec.structs.asdict(Repeated.of(self.style)),
        )

    def answer(self, finish: wire.Finish) -> ResponseBody:
        cut = finish.reason is wire.FinishReason.LENGTH
        return msgspec.structs.replace(
            self._response,
            status="incomplete" if cut else "completed",
            output=self._items(cut=cut),
            usage=_usage(finish, self.thought_tokens.of(finish)),
            incomplete_details=IncompleteDetails("max_output_tokens") if cut else None,
        )

    def begin(self) -> bytes:
        self._begun = True
        return self._event(ResponseCreated, self._response) + self._event(
            ResponseInProgress, self._response
        )

    def open(self, block: Block) -> bytes:
        item = self._item(block, "in_progress")
        if not isinstance(item, CallItem):
            item = msgspec.structs.replace(item, content=[])
        added = self._event(ItemAdded, block.index, item)
        if isinstance(item, CallItem):
            return added
        part = OutputText("") if isinstance(item, MessageItem) else ReasoningText("")
        return added + self._event(PartAdded, item.id, block.index, 0, part)

    def more(self, block: Block, text: str) -> bytes:
        item = self._id(block)
        match block.kind:
            case BlockKind.TEXT:
                return self._event(OutputTextDelta, item, block.index, 0, text)
            case BlockKind.THOUGHT:
                return self._event(ReasoningTextDelta, item, block.index, 0, text)
            case BlockKind.CALL:
                return self._event(ArgumentsDelta, item, block.index, text)

    def close(self, block: Block, *, cut: bool) -> bytes:
        item = self._item(block, "incomplete" if cut else "completed")
        at = (item.id, block.index)
        match item:
            case CallItem():
                ends = self._event(ArgumentsDone, *at, block.text)
            case MessageItem():
                ends = self._event(OutputTextDone, *at, 0, block.text)
                ends += self._event(PartDone, *at, 0, item.content[0])
            case ReasoningItem():
                ends = self._event(ReasoningTextDone, *at, 0, block.text)
                ends += self._event(PartDone, *at, 0, item.content[0])
        return ends + self._event(ItemDone, block.index, item)

    def closed(self, finish: wire.Finish) -> bytes:
        response = self.answer(finish)
        cut = response.status == "incomplete"
        return self._event(ResponseIncomplete if cut else ResponseCompleted, response)

    def failing(self, error: LbhostError) -> bytes:
        begun = b"" if self._begun else self.begin()
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = msgspec.structs.replace(
            self._response,
            status="failed",
            output=self._items(cut=True),
            error=ResponseError(code, error.message),
        )
        return begun + self._event(ResponseFailed, failed)

    def _items(self, *, cut: bool) -> list[OutputItem]:
        """All blocks; the last one is the one that was cut off, if any was."""
        last = len(self.blocks) - 1
        return [
            self._item(block, "incomplete" if cut and block.index == last else "completed")
            for block in self.blocks
        ]

    def _item(self, block: Block, status: Status) -> OutputItem:
        item = self._id(block)
        match block.kind:
            case BlockKind.TEXT:
                return MessageItem(item, status, [OutputText(block.text)])
            case BlockKind.THOUGHT:
                return ReasoningItem(item, status, [ReasoningText(block.text)])
            case BlockKind.CALL:
                call = f"call_{self.unique(block)}"
                return CallItem(item, status, call, block.name, block.text)

    def _id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self.unique(block)}"

    def _event(self, kind: type[_Event], *fields: Any) -> bytes:
        event = kind(self._sequence, *fields)
        self._sequence += 1
        return tagged_event(event)


def _usage(finish: wire.Finish, thought_tokens: int) -> ResponseUsage:
    return ResponseUsage(
        finish.prompt_tokens,
        InputTokens(finish.cached_tokens),
        finish.completion_tokens,
        ReasoningTokens(thought_tokens),
        finish.prompt_tokens + finish.completion_tokens,
    )
