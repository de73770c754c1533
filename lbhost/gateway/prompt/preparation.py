"""From a request's body to work for a worker: parse, check, render, tokenise, fit.

Computes and never waits. The gateway runs it for short bodies, a helper process for the others.
"""

from __future__ import annotations

import msgspec

from lbhost import wire
from lbhost.errors import ContextLengthError, ModelNotFoundError
from lbhost.gateway.api import requests
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.prompter import Limits, Prompter, Vocabulary
from lbhost.gateway.scheduling.job import Work

COMPLETION_TOKENS = 16
"""Default max_tokens of a plain completion, as OpenAI has it."""


class Taken(msgspec.Struct, frozen=True):
    """A request that can be answered, as far as its body goes."""

    work: Work
    include_usage: bool


class Preparation:
    """Turns bodies into work, for one model."""

    def __init__(self, vocab: Vocabulary, n_ctx: int, alias: str, limits: Limits) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._alias = alias
        self._prompter = Prompter(vocab, n_ctx, limits)

    def prepare(self, body: bytes, kind: Kind) -> Taken:
        """Raises InvalidRequestError and its kin, ModelNotFoundError, TooLongInlineError."""
        if kind is Kind.CHAT:
            chat = requests.parse(body, requests.ChatRequest)
            self._check_model(chat)
            tokens = self._prompter.chat(chat.texts())
            return self._fit(chat, tokens, "messages", self._n_ctx)
        plain = requests.parse(body, requests.CompletionRequest)
        self._check_model(plain)
        prompt = plain.text_or_tokens(self._vocab.n_tokens)
        if isinstance(prompt, str):
            tokens = self._prompter.text(prompt)
        else:
            tokens = prompt or self._prompter.empty()
        return self._fit(plain, tokens, "prompt", COMPLETION_TOKENS)

    def _check_model(self, request: requests.AnyRequest) -> None:
        if request.model is not None and request.model != self._alias:
            raise ModelNotFoundError(
                f"model {request.model[:100]!r} is not served here; {self._alias!r} is",
                param="model",
            )

    def _fit(
        self, request: requests.AnyRequest, tokens: list[int], source: str, usual: int
    ) -> Taken:
        room = self._n_ctx - len(tokens)
        if room < 1:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, prompt and output together; "
                f"this prompt is {len(tokens)} tokens",
                param=source,
            )
        param, wanted = request.output_limit()
        if wanted is not None and wanted > room:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, prompt and output together; "
                f"this prompt is {len(tokens)} tokens, and {wanted} more are asked for",
                param=param,
            )
        work = Work(
            prompt=wire.pack_tokens(tokens),
            prompt_tokens=len(tokens),
            max_tokens=min(usual, room) if wanted is None else wanted,
            sampling=request.sampling(self._vocab.n_tokens),
            stop=request.stops(),
            ignore_eos=bool(request.ignore_eos),
            stream=bool(request.stream),
        )
        options = request.stream_options
        return Taken(work, options is not None and options.include_usage)
