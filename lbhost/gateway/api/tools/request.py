"""`tools` and its kin: as OpenAI's chats have them, and what all dialects share. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import json_depth
from lbhost.gateway.api.generation import PastCall, ToolUse
from lbhost.gateway.api.tools import calls
from lbhost.gateway.api.tools.forced import Tool

FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)")]
"""`$` alone lets a line end follow."""
LongFunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$(?!\n)")]
"""Where the newer dialects allow more."""
CallId = Annotated[str, Meta(max_length=256)]
MAX_TOOLS = 128


class Function(msgspec.Struct, frozen=True):
    """A function of the client's."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Only the required and the named are enforced, with it or without."""


class ToolSpec(msgspec.Struct, frozen=True):
    """What a model may use. Only functions are supported."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """One of the tools."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True):
    """Some of the tools, and whether one of them must be used."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class ToolChoiceObject(msgspec.Struct, frozen=True):
    """The one that must be used, or a choice among some."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None

    def mode_and_names(self) -> tuple[Literal["auto", "required"], list[str]]:
        """Raises InvalidRequestError: what its type needs is missing."""
        if self.type == "function" and self.function is not None:
            return "required", [self.function.name]
        if self.type == "allowed_tools" and self.allowed_tools is not None:
            names = [tool.function.name for tool in self.allowed_tools.tools]
            return self.allowed_tools.mode, names
        raise InvalidRequestError(f"tool_choice.{self.type}: must be given", param="tool_choice")


class FunctionCall(msgspec.Struct, frozen=True):
    name: FunctionName
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made earlier."""

    function: FunctionCall
    id: CallId = ""
    type: Literal["function"] = "function"


ToolSpecs = Annotated[list[ToolSpec], Meta(max_length=MAX_TOOLS)]
ToolCalls = Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | ToolChoiceObject


def tool_use(
    specs: Sequence[ToolSpec] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """What the model may or must call; None: nothing. Raises what `chosen` does."""
    mode, names = (
        choice.mode_and_names() if isinstance(choice, ToolChoiceObject) else (choice, None)
    )
    return chosen(
        [_tool(spec.function) for spec in specs or ()],
        must=mode == "required",
        may=mode != "none",
        only=names,
        parallel=parallel is not False,
    )


def chosen(
    tools: Sequence[Tool],
    *,
    must: bool = False,
    may: bool = True,
    only: Sequence[str] | None = None,
    parallel: bool = True,
) -> ToolUse | None:
    """What the model may or must call, whichever way a dialect says it; None: nothing.

    Args:
        must: the answer is to be calls.
        may: false where there are to be none.
        only: the names of those that it may be; None: all.
        parallel: whether one answer may hold several calls.

    Raises:
        InvalidRequestError: a choice without tools, or of one that does not exist; two of a name.
    """
    if not tools:
        if must or only is not None:
            raise InvalidRequestError("tool_choice: only together with tools", param="tool_choice")
        return None
    names = [tool.name for tool in tools]
    for name in only or ():
        if name not in names:
            raise InvalidRequestError(
                f"tool_choice: {name[:64]!r} is none of the tools", param="tool_choice"
            )
    if not may:
        return None
    if len(set(names)) < len(names):
        raise InvalidRequestError("tools: two functions have the same name", param="tools")
    if must:
        forced = tuple(names if only is None else dict.fromkeys(only))
        return ToolUse(tools=tuple(tools), forced=forced, parallel=parallel)
    if only is not None:
        tools = [tool for tool in tools if tool.name in only]
    return ToolUse(tools=tuple(tools), parallel=parallel) if tools else None


def past_calls(given: Sequence[ToolCall] | None, where: str) -> tuple[PastCall, ...]:
    """Calls in a conversation. Raises InvalidRequestError: arguments that are no JSON object."""
    return tuple(
        PastCall(
            call.id,
            call.function.name,
            arguments(
                call.function.arguments, f"{where}.tool_calls[{i}].function.arguments", "messages"
            ),
        )
        for i, call in enumerate(given or ())
    )


def arguments(given: str | dict[str, Any], where: str, param: str) -> dict[str, Any]:
    """Those of a call that was made earlier. Raises InvalidRequestError: no JSON object."""
    if isinstance(given, str):
        given = calls.parsed(given or "{}")
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"{where}: must be a JSON object in a string, nested at most {json_depth.MAX_DEPTH} "
            "deep and without NaN or half a surrogate pair",
            param=param,
        )
    return given


def _tool(function: Function) -> Tool:
    return Tool(function.name, function.description or "", function.parameters or {})
