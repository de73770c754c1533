"""What is asked of the model, whichever dialect it was asked in. Pure.

A dialect (chat.py, completions.py) turns a body into a Generation; from there on nobody knows
how the client put it. Names of parameters are kept only to tell the client which one is wrong.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from lbhost import order, wire
from lbhost.gateway.api.reading import Reading
from lbhost.gateway.api.tools.forced import Tool
from lbhost.grammar import Grammar


class PastCall(msgspec.Struct, frozen=True):
    """A function that the assistant called earlier in the conversation."""

    id: str
    name: str
    arguments: dict[str, Any]


class ToolUse(msgspec.Struct, frozen=True):
    """The client's functions, and which of them the answer may or must call."""

    tools: tuple[Tool, ...]
    forced: tuple[str, ...] = ()
    """The answer is calls of these and nothing else; empty: it may be anything."""
    parallel: bool = True
    """Whether one answer may hold several calls."""


class Turn(msgspec.Struct, frozen=True):
    """What one speaker said in a conversation."""

    role: str
    """As chat templates know it: system, user, assistant."""
    text: str
    name: str | None = None
    calls: tuple[PastCall, ...] = ()
    answers: str | None = None
    """The id of the call that this is the result of."""
    thought: str | None = None
    """What the assistant wrote for itself before it."""


Plain: TypeAlias = str | list[int]
"""Text or tokens, as they are."""


class Several(msgspec.Struct, frozen=True):
    """Prompts that are answered each for itself."""

    prompts: tuple[Plain, ...]


class Infill(Several, frozen=True):
    """The same, and what comes after the answers."""

    after: str
    after_param: str = "suffix"
    """What the client calls that."""


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
    tier: str | None = None
    """The service tier that was named; None: it is left to the server."""
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
    tools: ToolUse | None = None
    template_options: dict[str, Any] = {}
    """What the chat template is told beside the conversation."""
    reads: bool = False
    """The answer's thoughts and calls are to be told from its text."""


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is to be written. Only its writer looks at it."""

    include_usage: bool = False
    """Tell at a stream's end what it cost."""
    tier: str | None = None
    """The class that the answer names."""
    logprobs: bool = False
    repeated: dict[str, Any] = {}
    """Parameters that the answer names again."""
    prompt_tokens: int = 0
    """Of the first prompt; known once it is tokenised."""
    reading: Reading | None = None
    """What there is to find in the answers' text; None: nothing but text."""


class Echo(msgspec.Struct, frozen=True):
    """A prompt that its answer begins with."""

    text: str
    first: int
    """Its first token, which has no probability."""


class Parsed(msgspec.Struct, frozen=True):
    """A body, understood."""

    generation: Generation
    style: Style
