"""The grammar of an answer that must be calls of the client's functions. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from lbhost import grammar
from lbhost.gateway.api.closed_objects import closed
from lbhost.gateway.api.tools import forced_tags
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
    """One call of one of the tools, or several one after the other. Arguments have no other keys
    than those that the schema names, unless it says that they may.

    Args:
        thinking_until: the tag that ends what the prompt makes the model think first.

    Raises:
        InvalidRequestError: the tools are too large, or numbers in their schemas are.
    """
    key = SYNTAX[family].key
    several = parallel and family not in (Family.LLAMA3, Family.DEEPSEEK)
    more = f"{{0,{MAX_CALLS - 1}}}"
    lines = ["%llguidance {}"]
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    if family in _BETWEEN_TAGS:
        one = _BETWEEN_TAGS[family]
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
        grammar.check_numbers(tool.parameters, "tools")
        parameters = closed(tool.parameters)
        if SYNTAX[family].tags is not None:
            tagged = forced_tags.rules(f"call_{i}", tool.name, parameters, family)
            if tagged is not None:
                lines += tagged
                continue
        schema = json.dumps({**_object(parameters), "x-guidance": _COMPACT})
        lines.append(f"args_{i}: %json {schema}")
        if family is Family.DEEPSEEK:
            head = json.dumps(f"{tool.name}\n```json\n")
            lines.append(rf'call_{i}: {head} args_{i} "\n```"')
            continue
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
        lines.append(f'call_{i}: {head} args_{i} "}}"')
    return grammar.of_ours("\n".join(lines) + "\n", "tools")


_BETWEEN_TAGS = {
    Family.HERMES: r'"<tool_call>\n" call "\n</tool_call>"',
    Family.QWEN_CODER: r'"<tool_call>\n" call "\n</tool_call>"',
    Family.GLM: '"<tool_call>" call "</tool_call>"',
}

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """Parameters are an object, also where the client has left that out."""
    return {"properties": {}, **schema, "type": "object"} if schema else _NOTHING


_NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
