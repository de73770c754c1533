"""The grammar of an answer that must be calls of the client's functions. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from lbhost import grammar
from lbhost.gateway.api.tools.families import SYNTAX, Family
from lbhost.grammar import Grammar

MAX_CALLS = 8
"""In one answer that must be calls: small models would go on until max_tokens."""


class Tool(msgspec.Struct, frozen=True):
    """A function of the client's."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """A JSON schema of an object."""


def calls_only(
    tools: Sequence[Tool], family: Family, *, parallel: bool, thinking_until: str = ""
) -> Grammar:
    """One call of one of the tools, or several one after the other.

    Args:
        thinking_until: the tag that ends what the prompt makes the model think first.

    Raises:
        InvalidRequestError: the tools are too large.
    """
    key = SYNTAX[family].key
    several = parallel and family is not Family.LLAMA3
    more = f"{{0,{MAX_CALLS - 1}}}"
    lines = ["%llguidance {}"]
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    if family is Family.HERMES:
        one = r'"<tool_call>\n" call "\n</tool_call>"'
        answer = rf'{one} ("\n" {one}){more}' if several else one
    elif several:
        answer = f'"[" call (", " call){more} "]"'
    else:
        answer = "call"
    if thinking_until:
        lines.append(f"start: thought BLANK {answer}")
        end = re.escape(thinking_until).replace("/", r"\/")
        lines.append(f"thought[lazy]: /(.|\\n)*{end}/")
        lines.append(r"BLANK: /\n{0,2}/")
    else:
        lines.append(f"start: {answer}")
    lines.append(f"call: {calls}")
    for i, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
        schema = json.dumps({**_object(tool.parameters), "x-guidance": _COMPACT})
        lines.append(f'call_{i}: {head} args_{i} "}}"')
        lines.append(f"args_{i}: %json {schema}")
    return grammar.of_ours("\n".join(lines) + "\n", "tools")


_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """Parameters are an object, also where the client has left that out."""
    return {"properties": {}, **schema, "type": "object"} if schema else _NOTHING


_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
