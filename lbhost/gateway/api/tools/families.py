"""How models write calls: a few families, known by the text of the chat template. Pure."""

from __future__ import annotations

import enum
import re

import msgspec

from lbhost.gateway.api.tools.tagged_span import Tags


class Family(enum.Enum):
    """Who taught the model to call functions."""

    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen and many others."""
    LLAMA3 = "llama3"
    """A bare `{"name": …, "parameters": …}`, or that behind `<|python_tag|>`."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS]` and an array of calls, or a name and its arguments."""
    QWEN_CODER = "qwen_coder"
    """`<function=NAME>`, then each argument in `<parameter=KEY>` tags: Qwen3-Coder, Seed-OSS."""
    GLM = "glm"
    """A name, then `<arg_key>` and `<arg_value>` tags: GLM-4.5 and newer."""
    DEEPSEEK = "deepseek"
    """Special tokens before and behind a name and a block of JSON: DeepSeek V3, R1, V3.1."""
    HARMONY = "harmony"
    """A channel for each thought, text and call: gpt-oss. Read by harmony.py."""
    GENERIC = "generic"
    """Nobody: the prompt says how, and it is `{"name": …, "arguments": …}`."""


_NAME = r"[A-Za-z0-9_.-]{1,128}"
_NAMED = re.compile(rf"({_NAME})(?:\[CALL_ID\][A-Za-z0-9]{{0,64}})?(?:\[ARGS\])?\s*(?=\{{)")
_MAYBE_NAMED = re.compile(r"[A-Za-z0-9_.-]{0,128}(?:\[[A-Z_]{0,8}(?:\][A-Za-z0-9]{0,64})?){0,2}\s*")
"""One way to match at the most: with two, eight brackets took a minute."""


class Syntax(msgspec.Struct, frozen=True):
    """What a family's calls look like in the text."""

    markers: tuple[str, ...]
    """A call comes after one of these, wherever it is."""
    bare: bool
    """An answer may also begin with a call."""
    closing: tuple[str, ...]
    """What may stand behind a call."""
    key: str = "arguments"
    head: re.Pattern[str] = _NAMED
    """What may stand before the JSON of a call's arguments, the name as its first group."""
    maybe: re.Pattern[str] = _MAYBE_NAMED
    """What may become one with more text."""
    tags: Tags | None = None
    """For calls whose arguments are in tags, not in JSON."""
    marks: tuple[str, ...] = ()
    """More texts that are part of a call even where they are special tokens."""
    opening: str = ""
    """What the prompt of an answer that must be calls ends with."""


_CALL, _CALL_ENDS = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_SEP = "<｜tool▁sep｜>"

SYNTAX = {
    Family.HERMES: Syntax(("<tool_call>",), bare=False, closing=("</tool_call>",)),
    Family.LLAMA3: Syntax(("<|python_tag|>",), bare=True, closing=(";",), key="parameters"),
    Family.MISTRAL: Syntax(
        ("[TOOL_CALLS]",),
        bare=False,
        closing=(",",),
        marks=("[ARGS]", "[CALL_ID]"),
        opening="[TOOL_CALLS]",
    ),
    Family.QWEN_CODER: Syntax(
        ("<tool_call>", "<seed:tool_call>", "<function="),  # the first is often forgotten
        bare=False,
        closing=("</tool_call>", "</seed:tool_call>"),
        tags=Tags(
            name=re.compile(rf"\s*<function=({_NAME})>"),
            name_begins="<function=",
            key=re.compile(r"\s*<parameter=([^>\n]{1,256})>"),
            key_begins="<parameter=",
            value="</parameter>",
            end="</function>",
            lines=True,
        ),
    ),
    Family.GLM: Syntax(
        ("<tool_call>",),
        bare=False,
        closing=("</tool_call>",),
        tags=Tags(
            name=re.compile(rf"\s*({_NAME})(?=\s*<)"),
            name_begins="",
            key=re.compile(r"\s*<arg_key>([^<]{1,256})</arg_key>\s*<arg_value>"),
            key_begins="<arg_key>",
            value="</arg_value>",
            end="</tool_call>",
        ),
        marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    Family.DEEPSEEK: Syntax(
        (_CALLS, _CALL),
        bare=False,
        closing=("```", _CALL_ENDS, _CALLS_END),
        head=re.compile(
            rf"(?:{_CALL}\s*)?(?:function{_SEP})?({_NAME})(?:{_SEP})?\s*(?:```json\s*)?(?=\{{)"
        ),
        maybe=re.compile(r"[^{]{0,300}"),
        marks=(_SEP,),
        opening=f"{_CALLS}{_CALL}function{_SEP}",
    ),
    Family.HARMONY: Syntax(
        ("<|start|>", "<|channel|>", "<|message|>"),
        bare=False,
        closing=("<|end|>",),
        marks=("<|constrain|>",),
        opening="<|channel|>commentary<|message|>",
    ),
    Family.GENERIC: Syntax(("```json", "<tool_call>"), bare=True, closing=("```",)),
}


def family_of(template: str) -> Family:
    """By what the template itself writes; GENERIC also for syntaxes that are not known here."""
    if "<|channel|>" in template and "<|message|>" in template:
        return Family.HARMONY
    if _CALL in template:  # which list no functions, most of them
        return Family.DEEPSEEK
    if "tools" not in template:
        return Family.GENERIC
    if "[TOOL_CALLS]" in template:
        return Family.MISTRAL
    if "<arg_key>" in template:
        return Family.GLM
    if "<function=" in template:
        return Family.QWEN_CODER if "<parameter=" in template else Family.GENERIC
    if "<tool_call>" in template:
        return Family.HERMES
    if "<|python_tag|>" in template or "ipython" in template:
        return Family.LLAMA3
    return Family.GENERIC
