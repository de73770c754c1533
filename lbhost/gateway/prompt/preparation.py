"""From a request's body to work for a worker: parse, check, render, tokenise, fit.

Computes and never waits. The gateway runs it for short bodies, a helper process for the others.
"""

from __future__ import annotations

import msgspec

from lbhost import wire
from lbhost.errors import ContextLengthError, ModelNotFoundError
from lbhost.gateway.api import dialects
from lbhost.gateway.api.generation import Generation, Prompt, Turn
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.prompter import Limits, Prompter, Vocabulary
from lbhost.gateway.scheduling.job import Work


class Taken(msgspec.Struct, frozen=True):
    """A request that can be answered, as far as its body goes."""

    work: Work
    include_usage: bool
    tier: str | None = None
    """As in Parsed."""


class Preparation:
    """Turns bodies into work, for one model."""

    def __init__(self, vocab: Vocabulary, n_ctx: int, alias: str, limits: Limits) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._alias = alias
        self._prompter = Prompter(vocab, n_ctx, limits)

    def prepare(self, body: bytes, kind: Kind) -> Taken:
        """Raises InvalidRequestError and its kin, ModelNotFoundError, TooLongInlineError."""
        parsed = dialects.parse(body, kind, self._vocab.n_tokens)
        generation = parsed.generation
        if generation.model is not None and generation.model != self._alias:
            raise ModelNotFoundError(
                f"model {generation.model[:100]!r} is not served here; {self._alias!r} is",
                param="model",
            )
        work = self._fit(generation, self._tokens(generation.prompt))
        return Taken(work, parsed.include_usage, parsed.tier)

    def _tokens(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, tuple):
            return self._prompter.chat([_for_template(turn) for turn in prompt])
        if isinstance(prompt, str):
            return self._prompter.text(prompt)
        return prompt or self._prompter.empty()

    def _fit(self, generation: Generation, tokens: list[int]) -> Work:
        room = self._n_ctx - len(tokens)
        if room < 1:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, prompt and output together; "
                f"this prompt is {len(tokens)} tokens",
                param=generation.prompt_param,
            )
        if len(tokens) > wire.MAX_PROMPT_TOKENS:
            raise ContextLengthError(
                f"a prompt has at most {wire.MAX_PROMPT_TOKENS} tokens, not {len(tokens)}",
                param=generation.prompt_param,
            )
        wanted = generation.max_tokens
        if wanted is not None and wanted > room:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, prompt and output together; "
                f"this prompt is {len(tokens)} tokens, and {wanted} more are asked for",
                param=generation.max_tokens_param,
            )
        room = min(room, wire.MAX_PROMPT_TOKENS)
        usual = room if generation.usual_tokens is None else min(generation.usual_tokens, room)
        return Work(
            prompt=wire.pack_tokens(tokens),
            prompt_tokens=len(tokens),
            max_tokens=usual if wanted is None else min(wanted, room),
            sampling=generation.sampling,
            stop=generation.stop,
            ignore_eos=generation.ignore_eos,
            stream=generation.stream,
            rank=generation.rank,
        )


def _for_template(turn: Turn) -> dict[str, str]:
    """As chat templates take it."""
    message = {"role": turn.role, "content": turn.text}
    return message if turn.name is None else {**message, "name": turn.name}
