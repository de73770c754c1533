"""Anthropic's messages: their bodies. Pure; the answers are in messages_reply.py.

What an answer may cost is cut to what the context holds, and the answer says so, as Anthropic's
newer models do: `max_tokens` must be given there, and clients have large ones built in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lbhost import order
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import formats, parameters
from lbhost.gateway.api.generation import Generation, Parsed, PastCall, Style, ToolUse, Turn
from lbhost.gateway.api.parameters import MAX_STOPS, Fraction, Parameters, Stop, Tokens, only
from lbhost.gateway.api.tools.forced import Tool
from lbhost.gateway.api.tools.request import MAX_TOOLS, CallId, LongFunctionName, chosen
from lbhost.gateway.api.turns import check_results, merged
from lbhost.grammar import Grammar


class Block(msgspec.Struct, frozen=True):
    """A part of a message, of the system prompt or of a tool's result."""

    type: str
    """text, thinking, redacted_thinking, tool_use or tool_result."""
    text: str | None = None
    thinking: str | None = None
    id: CallId | None = None
    name: LongFunctionName | None = None
    input: dict[str, Any] | None = None
    tool_use_id: CallId | None = None
    content: str | list[Block] | None = None
    """Of a tool_result: text."""
    is_error: bool | None = None


class MessageParam(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolParam(msgspec.Struct, frozen=True):
    """A tool of the client's. None of Anthropic's own is known here."""

    name: LongFunctionName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None


class ToolChoiceParam(msgspec.Struct, frozen=True):
    """Which tools the answer may or must use."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(msgspec.Struct, frozen=True):
    """Whether a model that can is to think; how long is the model's matter."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None


class OutputFormat(msgspec.Struct, frozen=True):
    """What the answer must look like."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True):
    """How the answer is to be written. `effort` is told to the chat template; few ask for it."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(msgspec.Struct, frozen=True):
    """About the request; nothing follows from it."""

    user_id: str | None = None


class CountRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens, and what /v1/messages has beside it."""

    messages: Annotated[list[MessageParam], Meta(min_length=1, max_length=10_000)]
    system: str | list[Block] | None = None
    temperature: Fraction | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None  # type: ignore[assignment]
    tools: Annotated[list[ToolParam], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The older way to say output_config.format."""

    # Looked at only to refuse them.
    container: Annotated[Any, only()] = None
    mcp_servers: Annotated[Any, only([])] = None
    context_management: Annotated[Any, only({})] = None

    def unsupported(self) -> str | None:
        for name in ("container", "mcp_servers", "context_management"):
            if getattr(self, name) not in (None, [], {}):
                return name
        return "n" if self.n not in (None, 1) else super().unsupported()

    def stops(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.stop_sequences or ()))

    def rank(self) -> int:
        return order.DEFAULT

    def named_tier(self) -> str | None:
        return "default" if self.service_tier == "standard_only" else None

    def grammars(self) -> list[Grammar]:
        given = super().grammars()
        config = None if self.output_config is None else self.output_config.format
        for name, form in (("output_config", config), ("output_format", self.output_format)):
            if form is not None:
                where = name if name == "output_format" else f"{name}.format"
                found = formats.of_kind(
                    form.type, form.schema, where=where, schema_at=f"{where}.schema"
                )
                given += [] if found is None else [found]
        return given

    def tool_use(self) -> ToolUse | None:
        """Raises InvalidRequestError: see tools/request.py."""
        choice = self.tool_choice or ToolChoiceParam("auto")
        if choice.type == "tool" and choice.name is None:
            raise InvalidRequestError("tool_choice.name: must be given", param="tool_choice")
        return chosen(
            [
                Tool(tool.name, tool.description or "", tool.input_schema)
                for tool in self.tools or ()
            ],
            must=choice.type in ("any", "tool"),
            may=choice.type != "none",
            only=[choice.name] if choice.type == "tool" and choice.name is not None else None,
            parallel=not choice.disable_parallel_tool_use,
        )

    def template_options(self) -> dict[str, Any]:
        """What the chat template is told: Qwen's and DeepSeek's names for it."""
        options: dict[str, Any] = {}
        if self.thinking is not None and self.thinking.type != "adaptive":
            thinks = self.thinking.type == "enabled"
            options |= {"enable_thinking": thinks, "thinking": thinks}
        if self.output_config is not None and self.output_config.effort is not None:
            options["reasoning_effort"] = self.output_config.effort
        return options

    def turns(self) -> tuple[Turn, ...]:
        """Who said what, the system first.

        Raises:
            InvalidRequestError: a block that is not supported, or not where it stands; the result
                of a call that was not made.
        """
        said = []
        if self.system:
            said.append(Turn("system", _text(self.system, "system", "system")))
        for i, message in enumerate(self.messages):
            said += _turns(message, f"messages[{i}].content")
        turns = merged(said)
        check_results(turns, "messages")
        return turns

    def continues(self) -> bool:
        """Whether the answer goes on with the last message, as Anthropic has it."""
        return self.messages[-1].role == "assistant"

    def asked(self, n_vocab: int, usual_tokens: int | None) -> Generation:
        """The same in nobody's dialect. Raises InvalidRequestError."""
        use, turns, continues = self.tool_use(), self.turns(), self.continues()
        self.check_bound_once(use)
        if continues and (use is not None or turns[-1].calls):
            raise InvalidRequestError(
                "messages: the last one is the assistant's, which is not continued together with "
                "tools; send the tools' results, or a user's message",
                param="messages",
            )
        return self.generation(
            turns,
            "messages",
            n_vocab,
            usual_tokens=usual_tokens,
            continues=continues,
            tools=use,
            template_options=self.template_options(),
            reads=not continues,
        )


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Tokens


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, MessagesRequest)
    # As a usual number it is cut to the room that there is, instead of refused.
    cut = msgspec.structs.replace(request.asked(n_vocab, request.max_tokens), max_tokens=None)
    return Parsed(cut, Style(repeated={"max_tokens": request.max_tokens}))


def parse_count(body: bytes, n_vocab: int) -> Generation:
    """What count_tokens asks about. Raises InvalidRequestError."""
    return parameters.parse(body, CountRequest).asked(n_vocab, None)


def _turns(message: MessageParam, where: str) -> Iterator[Turn]:
    """What a message holds: results of calls, each a turn, and what its speaker says."""
    if isinstance(message.content, str):
        yield Turn(message.role, message.content)
        return
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[PastCall] = []
    for i, block in enumerate(message.content):
        at = f"{where}[{i}]"
        match message.role, block.type:
            case "assistant", "thinking":
                thoughts.append(block.thinking or "")
            case "assistant", "redacted_thinking":
                pass  # nobody here can read it
            case "assistant", "tool_use":
                calls.append(_call(block, at))
            case "user", "tool_result":
                yield _result(block, at)
            case _:
                texts.append(_text([block], where, "messages", first=i))
    if texts or thoughts or calls or not message.content:
        thought = "\n".join(thoughts) if thoughts else None
        yield Turn(message.role, "\n".join(texts), calls=tuple(calls), thought=thought)


def _call(block: Block, where: str) -> PastCall:
    if block.id is None or block.name is None or block.input is None:
        raise InvalidRequestError(f"{where}: id, name and input must be given", param="messages")
    return PastCall(block.id, block.name, block.input)


def _result(block: Block, where: str) -> Turn:
    if block.tool_use_id is None:
        raise InvalidRequestError(f"{where}.tool_use_id: must be given", param="messages")
    text = _text(block.content or "", f"{where}.content", "messages")
    # Templates have no other way to say so.
    told = f"Error: {text}" if block.is_error else text
    return Turn("tool", told, answers=block.tool_use_id)


def _text(content: str | list[Block], where: str, param: str, *, first: int = 0) -> str:
    """`first`: the place of the first of these blocks."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, block in enumerate(content, first):
        if block.type != "text" or block.text is None:
            raise InvalidRequestError(
                f"{where}[{i}]: {block.type[:40]!r} is not supported here, text is"
                if block.type != "text"
                else f"{where}[{i}].text: must be given",
                param=param,
            )
        texts.append(block.text)
    return "\n".join(texts)
