"""`tools` and its kin, as OpenAI's clients send them. Pure."""

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
    """The one that must be used."""

    type: Literal["function"]
    function: NamedFunction


class FunctionCall(msgspec.Struct, frozen=True):
    name: FunctionName
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made earlier."""

    function: FunctionCall
    id: Annotated[str, Meta(max_length=256)] = ""
    type: Literal["function"] = "function"


ToolSpecs = Annotated[list[ToolSpec], Meta(max_length=MAX_TOOLS)]
ToolCalls = Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def tool_use(
    specs: Sequence[ToolSpec] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """What the model may or must call; None: nothing.

    Raises:
        InvalidRequestError: a choice without tools, or of one that does not exist; two of a name.
    """
    if not specs:
        if choice is not None and choice not in ("none", "auto"):
            raise InvalidRequestError("tool_choice: only together with tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    tools = tuple(_tool(spec.function) for spec in specs)
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequestError("tools: two functions have the same name", param="tools")
    only: tuple[str, ...] = ()
    if isinstance(choice, NamedTool):
        only = (choice.function.name,)
        if only[0] not in names:
            raise InvalidRequestError(
                f"tool_choice: {only[0][:64]!r} is none of the tools", param="tool_choice"
            )
    elif choice == "required":
        only = tuple(names)
    return ToolUse(tools=tools, forced=only, parallel=parallel is not False)


def past_calls(given: Sequence[ToolCall] | None, where: str) -> tuple[PastCall, ...]:
    """Calls in a conversation. Raises InvalidRequestError: arguments that are no JSON object."""
    return tuple(
        PastCall(call.id, call.function.name, _arguments(call, f"{where}.tool_calls[{i}]"))
        for i, call in enumerate(given or ())
    )


def _tool(function: Function) -> Tool:
    return Tool(function.name, function.description or "", function.parameters or {})


def _arguments(call: ToolCall, where: str) -> dict[str, Any]:
    given = call.function.arguments
    if isinstance(given, str):
        given = calls.parsed(given or "{}")
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"{where}.function.arguments: must be a JSON object in a string, nested at most "
            f"{json_depth.MAX_DEPTH} deep and without NaN or half a surrogate pair",
            param="messages",
        )
    return given
