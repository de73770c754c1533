"""OpenAI's responses: their bodies. Pure; the answers are in responses_reply.py.

Nothing is kept between requests: whatever would refer to an earlier one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import formats, parameters
from lbhost.gateway.api.generation import Parsed, PastCall, Style, ToolUse, Turn
from lbhost.gateway.api.parameters import Parameters, Tokens, only
from lbhost.gateway.api.tools.forced import Tool
from lbhost.gateway.api.tools.request import (
    MAX_TOOLS,
    CallId,
    LongFunctionName,
    arguments,
    chosen,
)
from lbhost.gateway.api.turns import check_results, merged
from lbhost.grammar import Grammar

MAX_ITEMS = 10_000

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


class Part(msgspec.Struct, frozen=True):
    """A part of an item's content."""

    type: str
    """input_text, output_text, refusal; in a reasoning item reasoning_text."""
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, frozen=True):
    """One item of the input: a message, or what an earlier answer brought, or a call's result."""

    type: str = "message"
    """message, reasoning, function_call or function_call_output."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: CallId | None = None
    name: LongFunctionName | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class FunctionTool(msgspec.Struct, frozen=True):
    """A function of the client's. None of OpenAI's own tools is known here."""

    type: Literal["function"]
    name: LongFunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Only the required and the named are enforced, with it or without."""


class AllowedTool(msgspec.Struct, frozen=True):
    """Part of ToolChoiceObject."""

    type: Literal["function"]
    name: str


class ToolChoiceObject(msgspec.Struct, frozen=True):
    """The one that must be called, or a choice among some."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[AllowedTool], Meta(max_length=MAX_TOOLS)] | None = None

    def mode_and_names(self) -> tuple[Literal["auto", "required"], list[str]]:
        """Raises InvalidRequestError: what its type needs is missing."""
        if self.type == "function":
            if self.name is None:
                raise InvalidRequestError("tool_choice.name: must be given", param="tool_choice")
            return "required", [self.name]
        if not self.tools:
            raise InvalidRequestError("tool_choice.tools: must be given", param="tool_choice")
        return self.mode, [tool.name for tool in self.tools]


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | ToolChoiceObject


class TextFormat(msgspec.Struct, frozen=True):
    """Of which form the answer is to be: text, json_object or json_schema."""

    type: str = "text"
    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    """How the answer is to be written."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """Told to the chat template; few ask for it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters that the answer names again."""

    instructions: str | None = None
    metadata: dict[str, str] = {}
    temperature: float = 1.0
    top_p: float = 1.0
    max_output_tokens: int | None = None
    parallel_tool_calls: bool = True
    tools: list[FunctionTool] = []
    tool_choice: ToolChoice = "auto"
    text: TextOptions = TextOptions(TextFormat())
    reasoning: Reasoning = Reasoning()

    @staticmethod
    def of(style: Style) -> Repeated:
        """What ResponsesRequest.style keeps there."""
        return msgspec.json.decode(style.repeated.get("as_json", "{}"), type=Repeated)


class ResponsesRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/responses. OpenAI's other sampling parameters are understood as in chats."""

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: (
        dict[
            Annotated[str, Meta(max_length=64)],
            Annotated[str, Meta(max_length=512)],
        ]
        | None
    ) = None
    include: list[str] | None = None
    store: Annotated[bool, only(False)] | None = None
    background: Annotated[bool, only(False)] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    # Looked at only to refuse them.
    previous_response_id: Annotated[Any, only()] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    top_logprobs: Annotated[Any, only(0)] = None

    def unsupported(self) -> str | None:
        if self.truncation == "auto":
            return "truncation"
        if self.top_logprobs not in (None, 0):
            return "top_logprobs"
        if "message.output_text.logprobs" in (self.include or ()):
            return "include"
        return "n" if self.n not in (None, 1) else super().unsupported()

    def check_stateless(self) -> None:
        """Raises InvalidRequestError: it wants something kept, or refers to what was."""
        for name in ("store", "background"):
            if getattr(self, name):
                raise InvalidRequestError(
                    f"{name}: this server keeps no responses; leave it out, or false", param=name
                )
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name) is not None:
                raise InvalidRequestError(
                    f"{name}: this server keeps no responses, conversations or prompts; "
                    "send the whole conversation in input",
                    param=name,
                )

    def output_limit(self) -> tuple[str, int | None]:
        if self.max_output_tokens is not None:
            return "max_output_tokens", self.max_output_tokens
        return super().output_limit()

    def grammars(self) -> list[Grammar]:
        given = super().grammars()
        if self.text is not None and self.text.format is not None:
            form = self.text.format
            found = formats.of_kind(
                form.type,
                form.schema,
                where="text.format",
                schema_at="text.format.schema",
                strict=bool(form.strict),
            )
            given += [] if found is None else [found]
        return given

    def tool_use(self) -> ToolUse | None:
        """Raises InvalidRequestError: see tools/request.py."""
        choice = self.tool_choice
        mode, names = choice, None
        if isinstance(choice, ToolChoiceObject):
            mode, names = choice.mode_and_names()
        return chosen(
            [
                Tool(tool.name, tool.description or "", tool.parameters or {})
                for tool in self.tools or ()
            ],
            must=mode == "required",
            may=mode != "none",
            only=names,
            parallel=self.parallel_tool_calls is not False,
        )

    def template_options(self) -> dict[str, Any]:
        """What the chat template is told. `none` is also Qwen's and DeepSeek's way not to think."""
        effort = None if self.reasoning is None else self.reasoning.effort
        if effort is None:
            return {}
        off = {"enable_thinking": False, "thinking": False} if effort == "none" else {}
        return {"reasoning_effort": effort, **off}

    def turns(self) -> tuple[Turn, ...]:
        """Who said what, the instructions first; `developer` is `system` to templates.

        Raises:
            InvalidRequestError: an item of another type, a part that is no text, the result of a
                call that was not made.
        """
        said = [Turn("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            said.append(Turn("user", self.input))
        else:
            said += _turns(self.input)
        if not said:
            raise InvalidRequestError("input: it holds no message", param="input")
        turns = merged(said)
        check_results(turns, "input")
        return turns

    def repeated(self) -> dict[str, Any]:
        """For the answer, as JSON: what clients put in a schema may be beyond msgpack."""
        given = Repeated(
            instructions=self.instructions,
            metadata=self.metadata or {},
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_output_tokens=self.output_limit()[1],
            parallel_tool_calls=self.parallel_tool_calls is not False,
            tools=self.tools or [],
            tool_choice=self.tool_choice or "auto",
            text=msgspec.structs.replace(
                self.text or TextOptions(),
                format=(None if self.text is None else self.text.format) or TextFormat(),
            ),
            reasoning=self.reasoning or Reasoning(),
        )
        return {"as_json": msgspec.json.encode(given).decode()}


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, ResponsesRequest)
    request.check_stateless()
    use = request.tool_use()
    request.check_bound_once(use)
    generation = request.generation(
        request.turns(),
        "input",
        n_vocab,
        usual_tokens=None,
        tools=use,
        template_options=request.template_options(),
        reads=True,
    )
    return Parsed(generation, Style(tier=request.tier(), repeated=request.repeated()))


def _turns(items: list[Item]) -> Iterator[Turn]:
    """What the items say. A thought belongs to what the assistant says or calls next."""
    thought: str | None = None
    for i, item in enumerate(items):
        where = f"input[{i}]"
        if item.type == "reasoning":
            parts = item.content if isinstance(item.content, list) else []
            texts = [part.text for part in parts if part.type == "reasoning_text" and part.text]
            thought = "\n".join(texts) or None
            continue
        turn = _turn(item, where)
        if turn.role == "assistant" and thought is not None:
            turn = msgspec.structs.replace(turn, thought=thought)
        thought = None
        yield turn


def _turn(item: Item, where: str) -> Turn:
    match item.type:
        case "message":
            given = _given(item, where, "role", "content")
            role = "system" if given["role"] == "developer" else given["role"]
            return Turn(role, _text(given["content"], f"{where}.content"))
        case "function_call":
            given = _given(item, where, "call_id", "name", "arguments")
            made = arguments(given["arguments"], f"{where}.arguments", "input")
            return Turn("assistant", "", calls=(PastCall(given["call_id"], given["name"], made),))
        case "function_call_output":
            given = _given(item, where, "call_id", "output")
            text = _text(given["output"], f"{where}.output")
            return Turn("tool", text, answers=given["call_id"])
    raise InvalidRequestError(
        f"{where}.type: messages, function calls and their outputs are taken, "
        f"not {item.type[:40]!r}",
        param="input",
    )


def _given(item: Item, where: str, *names: str) -> dict[str, Any]:
    """Fields of an item. Raises InvalidRequestError: one is missing."""
    for name in names:
        if getattr(item, name) is None:
            raise InvalidRequestError(f"{where}.{name}: must be given", param="input")
    return {name: getattr(item, name) for name in names}


def _text(content: str | list[Part], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_of(part, f"{where}[{i}]") for i, part in enumerate(content))


def _text_of(part: Part, where: str) -> str:
    text = part.text if part.type in _TEXT_PARTS else None
    if part.type == "refusal":
        text = part.refusal
    if text is None:
        known = part.type in _TEXT_PARTS or part.type == "refusal"
        why = "has no text" if known else f"only text is supported, not {part.type[:40]!r}"
        raise InvalidRequestError(f"{where}: {why}", param="input")
    return text
