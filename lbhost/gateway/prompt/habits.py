"""What a chat template tells of its model: how it calls functions, and how it thinks. Pure."""

from __future__ import annotations

import msgspec

from lbhost.gateway.api.reading import Thinking
from lbhost.gateway.api.tools.families import SYNTAX, Family, family_of

_NO_SYSTEM = "System role not supported"
"""How Gemma's templates refuse."""

_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))


class Habits(msgspec.Struct, frozen=True):
    """Of one model."""

    family: Family
    thinking: Thinking | None
    system: bool
    """Whether there are system turns."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that are part of an answer even where they are special tokens."""
        tags = () if self.thinking is None else (self.thinking.opening, self.thinking.closing)
        more = ("[ARGS]", "[CALL_ID]") if self.family is Family.MISTRAL else ()
        syntax = SYNTAX[self.family]
        return (*tags, *syntax.markers, syntax.closing, *more)

    @property
    def opening(self) -> str:
        """What the prompt of an answer that must be calls ends with."""
        return "[TOOL_CALLS]" if self.family is Family.MISTRAL else ""


def of(template: str | None) -> Habits:
    """By the template's text; models without one have no habits that matter here."""
    text = template or ""
    tags = next((tags for tags in _TAGS if tags[1] in text), None)
    return Habits(
        family_of(text), None if tags is None else Thinking(*tags), _NO_SYSTEM not in text
    )
