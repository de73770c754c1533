"""What is read from an answer's text, and the calls that a piece of JSON stands for. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, TypeAlias

import msgspec

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api.json_depth import check_depth


class Said(msgspec.Struct, frozen=True):
    """Text for the user."""

    text: str


class Thought(msgspec.Struct, frozen=True):
    """Text that the model wrote for itself."""

    text: str


class CallBegun(msgspec.Struct, frozen=True):
    """A call of one of the client's functions; its arguments follow."""

    name: str


class Arguments(msgspec.Struct, frozen=True):
    """A piece of the JSON of the newest call's arguments."""

    text: str


Event: TypeAlias = Said | Thought | CallBegun | Arguments

_ARGUMENTS = ("arguments", "parameters", "args")


def from_json(text: str, names: Collection[str]) -> list[Event] | None:
    """The calls in an object or array; None if it is none, or calls something unknown."""
    value = parsed(text)
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    events: list[Event] = []
    for one in value if isinstance(value, list) else [value]:
        call = _call(one, names)
        if call is None:
            return None
        events += call
    return events or None


def parsed(text: str) -> Any:
    """JSON's value; None for what is none: NaN, half a surrogate pair and deep nesting, which
    Python's own parser takes, can neither be sent nor tokenised."""
    try:
        check_depth(text.encode())
        return msgspec.json.decode(text)
    except (InvalidRequestError, msgspec.DecodeError, UnicodeEncodeError):
        return None


def of(name: str, arguments: str) -> list[Event]:
    """One call."""
    return [CallBegun(name), Arguments(arguments)]


def _call(value: Any, names: Collection[str]) -> list[Event] | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):  # as the API itself writes it
        value = value["function"]
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    given: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(given, str):
        given = parsed(given)
    if not isinstance(given, dict):
        return None
    return of(name, json.dumps(given, ensure_ascii=False))
