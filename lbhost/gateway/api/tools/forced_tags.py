"""Lark rules for calls whose arguments stand in tags (tagged_span.py). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lbhost.gateway.api.tools.families import Family

_TELLING = frozenset({"description", "title", "default", "examples"})
"""Keywords of a schema that bind nothing."""

_KEY = re.compile(r"[^\s<>](?:[^\n<>]{0,254}[^\s<>])?")


def text_arguments(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The properties of an object that can only be texts: nothing says so where they stand."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return ()
    return tuple(key for key, one in properties.items() if _is_text(one))


def rules(call: str, name: str, schema: Mapping[str, Any], family: Family) -> list[str] | None:
    """The rule `call`, and those that it needs.

    Args:
        name: the function's.
        schema: of its arguments.

    Returns:
        None where tags cannot carry all that the schema asks for, or not exactly.
    """
    if not schema.keys() <= {"type", "properties", "required", "additionalProperties", *_TELLING}:
        return None
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return None  # no schema: whoever compiles it says so
    if not all(isinstance(key, str) and key in properties for key in required):
        return None
    begin, end = _around(name, family)
    parts: list[str] = []
    made: list[str] = []
    for i, (key, one) in enumerate(properties.items()):
        value = f"{call}_{i}"
        written = _value(value, one, family)
        if written is None or not _KEY.fullmatch(key):
            return None
        parts.append(f"{value}_set" if key in required else f"{value}_set?")
        made += [f"{value}_set: {_quoted(_before(key, family))} {value}", *written]
    return [f"{call}: {' '.join([_quoted(begin), *parts, _quoted(end)])}", *made]


def _around(name: str, family: Family) -> tuple[str, str]:
    if family is Family.GLM:
        return f"{name}\n", ""
    return f"<function={name}>\n", "</function>"


def _before(key: str, family: Family) -> str:
    if family is Family.GLM:
        return f"<arg_key>{key}</arg_key>\n<arg_value>"
    return f"<parameter={key}>\n"


def _value(rule: str, schema: Any, family: Family) -> list[str] | None:
    """The rule of an argument's value and what ends it."""
    tag = "</arg_value>" if family is Family.GLM else "</parameter>"
    end = f"{tag}\n" if family is Family.GLM else f"\n{tag}\n"
    if not isinstance(schema, dict) or "$ref" in json.dumps(schema):
        return None
    if not _is_text(schema):
        compact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        text = json.dumps({**schema, "x-guidance": compact})
        return [f"{rule}: {rule}_json {_quoted(end)}", f"{rule}_json: %json {text}"]
    if not schema.keys() <= {"type", "enum", *_TELLING}:
        return None
    if "enum" not in schema:
        escaped = re.escape(tag).replace("/", r"\/")
        # Up to the first tag, wherever in a line: that is where it is read to.
        return [f'{rule}: {rule}_text "\\n"', f"{rule}_text[lazy]: /(.|\\n)*{escaped}/"]
    choices = schema["enum"]
    if not isinstance(choices, list) or not choices:
        return None
    if any("<" in one or one != one.strip("\n") for one in choices):
        return None
    return [f"{rule}: ({' | '.join(_quoted(one + end) for one in choices)})"]


def _is_text(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    choices = schema.get("enum")
    if isinstance(choices, list):
        return all(isinstance(one, str) for one in choices)
    return schema.get("type") == "string"


def _quoted(text: str) -> str:
    """A literal of Lark."""
    return json.dumps(text)
