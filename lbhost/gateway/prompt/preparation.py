"""From a request's body to work for a worker: parse, check, render, tokenise, fit.

Computes and never waits. The gateway runs it for short bodies, a helper process for the others.
"""

from __future__ import annotations

import msgspec

from lbhost import wire
from lbhost.errors import ContextLengthError, ModelNotFoundError
from lbhost.gateway.api import dialects
from lbhost.gateway.api.generation import (
    Echo,
    Generation,
    Infill,
    Plain,
    Prompt,
    Several,
    Style,
    Turn,
)
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.grammars import Grammars
from lbhost.gateway.prompt.prompter import Limits, Prompter, Vocabulary
from lbhost.gateway.scheduling.job import Work
from lbhost.grammar import Grammar


class Taken(msgspec.Struct, frozen=True):
    """A request that can be answered, as far as its body goes."""

    works: tuple[Work, ...]
    """One for each prompt."""
    style: Style = Style()
    echoes: tuple[Echo, ...] = ()
    """One for each prompt, where answers begin with it."""
    n: int = 1
    best_of: int = 1
    """As in Generation."""
    grammar: Grammar | None = None
    """What the works' grammar was made from."""


class Preparation:
    """Turns bodies into work, for one model."""

    def __init__(
        self,
        vocab: Vocabulary,
        n_ctx: int,
        alias: str,
        limits: Limits,
        grammars: Grammars,
    ) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._alias = alias
        self._prompter = Prompter(vocab, n_ctx, limits)
        self._grammars = grammars

    def prepare(self, body: bytes, kind: Kind) -> Taken:
        """Raises InvalidRequestError and its kin, ModelNotFoundError, TooLongInlineError."""
        parsed = dialects.parse(body, kind, self._vocab.n_tokens)
        generation = parsed.generation
        if generation.model is not None and generation.model != self._alias:
            raise ModelNotFoundError(
                f"model {generation.model[:100]!r} is not served here; {self._alias!r} is",
                param="model",
            )
        bound = "" if generation.grammar is None else self._grammars.written(generation.grammar)
        tokens = self._tokens(generation)
        return Taken(
            tuple(self._fit(generation, one, bound) for one in tokens),
            parsed.style,
            self._echoes(generation.prompt, tokens) if generation.echo else (),
            generation.n,
            generation.best_of,
            generation.grammar,
        )

    def _tokens(self, generation: Generation) -> list[list[int]]:
        """Those of each prompt."""
        prompt = generation.prompt
        if isinstance(prompt, tuple):
            messages = [_for_template(turn) for turn in prompt]
            chat = self._prompter.chat(
                messages, next_speaker=generation.next_speaker, continues=generation.continues
            )
            return [chat]
        if isinstance(prompt, Infill):
            return self._prompter.infill(prompt.prompts, prompt.after)
        return [
            self._prompter.text(one) if isinstance(one, str) else one or self._prompter.empty()
            for one in _plain(prompt)
        ]

    def _echoes(self, prompt: Prompt, tokens: list[list[int]]) -> tuple[Echo, ...]:
        assert not isinstance(prompt, tuple)
        return tuple(
            Echo(given if isinstance(given, str) else self._prompter.said(made), made[0])
            for given, made in zip(_plain(prompt), tokens, strict=True)
        )

    def _fit(self, generation: Generation, tokens: list[int], grammar: str) -> Work:
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
        usual = room if generation.usual_tokens is None else min(generation.usual_tokens, room)
        return Work(
            prompt=wire.pack_tokens(tokens),
            prompt_tokens=len(tokens),
            max_tokens=usual if wanted is None else wanted,
            sampling=generation.sampling,
            stop=generation.stop,
            ignore_eos=generation.ignore_eos,
            stream=generation.stream,
            rank=generation.rank,
            logprobs=self._scores(generation),
            prompt_logprobs=generation.echo and generation.logprobs is not None,
            grammar=grammar,
        )

    @staticmethod
    def _scores(generation: Generation) -> int | None:
        """The most probable of several answers is known by its log-probabilities."""
        judged = generation.best_of > generation.n
        return 0 if generation.logprobs is None and judged else generation.logprobs


def _plain(prompt: Plain | Several) -> tuple[Plain, ...]:
    return prompt.prompts if isinstance(prompt, Several) else (prompt,)


def _for_template(turn: Turn) -> dict[str, str]:
    """As chat templates take it."""
    message = {"role": turn.role, "content": turn.text}
    return message if turn.name is None else {**message, "name": turn.name}
