"""What is asked of the model, whichever dialect it was asked in. Pure.

A dialect (chat.py, completions.py) turns a body into a Generation; from there on nobody knows
how the client put it. Names of parameters are kept only to tell the client which one is wrong.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from lbhost import order, wire
from lbhost.grammar import Grammar


class Turn(msgspec.Struct, frozen=True):
    """What one speaker said in a conversation."""

    role: str
    """As chat templates know it: system, user, assistant."""
    text: str
    name: str | None = None


Plain: TypeAlias = str | list[int]
"""Text or tokens, as they are."""


class Several(msgspec.Struct, frozen=True):
    """Prompts that are answered each for itself."""

    prompts: tuple[Plain, ...]


class Infill(Several, frozen=True):
    """The same, and what comes after the answers."""

    after: str


Prompt: TypeAlias = tuple[Turn, ...] | Plain | Several
"""A conversation, for the model's chat template; or one plain prompt or several."""


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
    grammar: Grammar | None = None
    """What the answer must follow."""
    n: int = 1
    """Answers to each prompt."""
    best_of: int = 1
    """Answers to each prompt that are generated, of which the `n` most probable are given."""
    logprobs: int | None = None
    """As in wire.Submit."""
    echo: bool = False
    """The answer begins with the prompt, and log-probabilities with the prompt's."""
    next_speaker: bool = True
    """Whether a conversation's prompt ends where the assistant's turn begins."""
    continues: bool = False
    """The answer goes on with the conversation's last message."""


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is to be written. Only its writer looks at it."""

    include_usage: bool = False
    """Tell at a stream's end what it cost."""
    tier: str | None = None
    """The class that the answer names."""
    logprobs: bool = False


class Echo(msgspec.Struct, frozen=True):
    """A prompt that its answer begins with."""

    text: str
    first: int
    """Its first token, which has no probability."""


class Parsed(msgspec.Struct, frozen=True):
    """A body, understood."""

    generation: Generation
    style: Style
