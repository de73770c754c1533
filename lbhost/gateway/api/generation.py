"""What is asked of the model, whichever dialect it was asked in. Pure.

A dialect (chat.py, completions.py) turns a body into a Generation; from there on nobody knows
how the client put it. Names of parameters are kept only to tell the client which one is wrong.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from lbhost import order, wire


class Turn(msgspec.Struct, frozen=True):
    """What one speaker said in a conversation."""

    role: str
    """As chat templates know it: system, user, assistant."""
    text: str
    name: str | None = None


Prompt: TypeAlias = tuple[Turn, ...] | str | list[int]
"""A conversation, for the model's chat template; or text or tokens as they are."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that is wanted; everything is checked that can be without tokenising."""

    model: str | None
    """The name that the client asked for; None: whichever is served."""
    prompt: Prompt
    prompt_param: str
    """What the client calls the prompt."""
    max_tokens: int | None
    """Output tokens that were asked for; None: usual_tokens."""
    max_tokens_param: str
    usual_tokens: int | None
    """None: as many as the context holds."""
    sampling: wire.Sampling
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    rank: int = order.DEFAULT
    """Its class; see lbhost/order.py."""


class Parsed(msgspec.Struct, frozen=True):
    """A body, understood."""

    generation: Generation
    include_usage: bool
    """For the answer's writer: tell at a stream's end what it cost."""
    tier: str | None = None
    """For the answer's writer: the class that the answer names."""
