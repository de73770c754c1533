"""What a chat template tells of its model: how it calls functions, and how it thinks. Pure."""

from __future__ import annotations

import re

import msgspec

from lbhost.gateway.api.reading import Thinking
from lbhost.gateway.api.tools.families import SYNTAX, Family, family_of

_NO_SYSTEM = "System role not supported"
"""How Gemma's templates refuse."""

_ANALYSIS = ("<|channel|>analysis<|message|>", "<|end|>")
"""A thought of gpt-oss; HarmonyReader reads it."""

_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))


class Habits(msgspec.Struct, frozen=True):
    """Of one model."""

    family: Family
    thinking: Thinking | None
    system: bool
    """Whether there are system turns."""
    lists_tools: bool
    """Whether the template tells the model which functions there are."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are part of an answer even where they are special tokens."""
        tags = () if self.thinking is None else (self.thinking.opening, self.thinking.closing)
        syntax = SYNTAX[self.family]
        return (*tags, *syntax.markers, *syntax.closing, *syntax.marks)

    def opening(self, *, calls: bool) -> str:
        """What the prompt of a bound answer ends with: one that must be calls, or a text."""
        if calls:
            return SYNTAX[self.family].opening
        return "<|channel|>final<|message|>" if self.family is Family.HARMONY else ""


def of(template: str | None) -> Habits:
    """By the template's text; models without one have no habits that matter here."""
    text = template or ""
    family = family_of(text)
    tags = next((tags for tags in _TAGS if tags[1] in text), None)
    if family is Family.HARMONY:
        tags = _ANALYSIS
    return Habits(
        family,
        None if tags is None else Thinking(*tags),
        _NO_SYSTEM not in text,
        re.search(r"\btools\b", text) is not None,
    )
