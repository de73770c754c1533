"""How models write calls: a few families, known by the text of the chat template. Pure."""

from __future__ import annotations

import enum

import msgspec


class Family(enum.Enum):
    """Who taught the model to call functions."""

    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen and many others."""
    LLAMA3 = "llama3"
    """A bare `{"name": …, "parameters": …}`, or that behind `<|python_tag|>`."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS]` and an array of calls, or a name and its arguments."""
    GENERIC = "generic"
    """Nobody: the prompt says how, and it is `{"name": …, "arguments": …}`."""


class Syntax(msgspec.Struct, frozen=True):
    """What a family's calls look like in the text."""

    markers: tuple[str, ...]
    """A call comes after one of these, wherever it is."""
    bare: bool
    """An answer may also begin with a call."""
    closing: str
    """What may stand behind a call."""
    key: str = "arguments"


SYNTAX = {
    Family.HERMES: Syntax(("<tool_call>",), bare=False, closing="</tool_call>"),
    Family.LLAMA3: Syntax(("<|python_tag|>",), bare=True, closing=";", key="parameters"),
    Family.MISTRAL: Syntax(("[TOOL_CALLS]",), bare=False, closing=","),
    Family.GENERIC: Syntax(("```json", "<tool_call>"), bare=True, closing="```"),
}


def family_of(template: str) -> Family:
    """By what the template itself writes; GENERIC also for syntaxes that are not known here."""
    if "tools" not in template:
        return Family.GENERIC
    if "[TOOL_CALLS]" in template:
        return Family.MISTRAL
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return Family.HERMES
    if "<|python_tag|>" in template or "ipython" in template:
        return Family.LLAMA3
    return Family.GENERIC
