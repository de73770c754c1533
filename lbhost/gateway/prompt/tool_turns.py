"""Conversations with calls in them, as chat templates take them. Pure.

Templates that know tools get them as Hugging Face's do. For the others the system turn says what
there is and how to call it, calls are the assistant's text, and results the user's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from lbhost.gateway.api.generation import PastCall, Turn
from lbhost.gateway.api.tools.families import Family
from lbhost.gateway.api.tools.forced import Tool

Messages = list[dict[str, Any]]

_MISTRAL_ID = 9
"""Characters that Mistral's templates insist on."""

_HOW = """You can call these functions:
{tools}
To call one, answer with nothing but {{"name": FUNCTION, "arguments": {{...}}}}. To call several, \
answer with a JSON array of such objects."""


_HOW_DEEPSEEK = """You can call these functions:
{tools}
To call one, write
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION
```json
{{...}}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"""


def specs(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The `tools` of a template."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def native(turns: Sequence[Turn], family: Family) -> Messages:
    """For a template that knows tools, or a conversation without any."""
    names: dict[str, str] = {}
    messages: Messages = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.name is not None:
            message["name"] = turn.name
        if turn.thought is not None:
            message["reasoning_content"] = turn.thought
        if turn.calls:
            names.update((call.id, call.name) for call in turn.calls)
            message["tool_calls"] = [_call(call, family) for call in turn.calls]
            if family is Family.DEEPSEEK and not turn.text:
                message["content"] = None  # else some of its templates leave out the calls
            if family is Family.HARMONY and turn.thought is not None:
                message["thinking"] = turn.thought
        if turn.answers is not None:
            message["tool_call_id"] = _id(turn.answers, family)
            message.setdefault("name", names.get(turn.answers, ""))
        messages.append(message)
    return messages


def generic(turns: Sequence[Turn], tools: Sequence[Tool]) -> Messages:
    """For a template that knows none: three roles are enough."""
    messages: Messages = []
    began = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    told = [turn.text for turn in turns[:began]]
    if tools:
        told.append(_HOW.format(tools="\n".join(_line(tool) for tool in tools)))
    if told:
        messages.append({"role": "system", "content": "\n\n".join(told)})
    answered = False
    for turn in turns[began:]:
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.name is not None:
            message["name"] = turn.name
        if turn.calls:
            calls = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
            text = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
            message["content"] = f"{turn.text}\n{text}".strip()
        last = messages[-1] if messages else None
        if turn.role == "tool":
            result = f"Result: {turn.text}"
            if answered and last is not None:
                last["content"] += "\n" + result
                continue
            message = {"role": "user", "content": result}
        if turn.role == "system" and last is not None and last["role"] == "system":
            last["content"] += f"\n\n{turn.text}"
            continue
        answered = turn.role == "tool"
        messages.append(message)
    return messages


def told(messages: Messages, tools: Sequence[Tool]) -> Messages:
    """For DeepSeek's templates, which know calls and do not say what can be called."""
    how = _HOW_DEEPSEEK.format(tools="\n".join(_line(tool) for tool in tools))
    if messages and messages[0]["role"] == "system":
        first, *rest = messages
        return [{**first, "content": f"{first['content']}\n\n{how}"}, *rest]
    return [{"role": "system", "content": how}, *messages]


def without_system(messages: Messages) -> Messages:
    """For a template that refuses system turns: what they say stands before the user's words."""
    said = [message["content"] for message in messages if message["role"] == "system"]
    rest = [dict(message) for message in messages if message["role"] != "system"]
    if said and not (rest and rest[0]["role"] == "user"):
        rest.insert(0, {"role": "user", "content": ""})
    if said:
        rest[0]["content"] = "\n\n".join([*said, rest[0]["content"]]).rstrip()
    return rest


def _line(tool: Tool) -> str:
    function = specs([tool])[0]["function"]
    return json.dumps(function, ensure_ascii=False)


def _call(call: PastCall, family: Family) -> dict[str, Any]:
    arguments: Any = call.arguments
    if family is Family.DEEPSEEK:  # whose templates put a text together
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": _id(call.id, family),
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _id(given: str, family: Family) -> str:
    if family is not Family.MISTRAL or (len(given) == _MISTRAL_ID and given.isalnum()):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:_MISTRAL_ID]
