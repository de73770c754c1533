"""OpenAI's plain completions: their bodies and their answers. Pure."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Echo, Infill, Parsed, Plain, Prompt, Several
from lbhost.gateway.api.parameters import MAX_CHOICES, Parameters
from lbhost.gateway.api.replies import Reply
from lbhost.gateway.scheduling.deltas import TextDelta

USUAL_TOKENS = 16
"""Default max_tokens, as OpenAI has it."""


class CompletionRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str | list[int]]
    """A text, token ids, or a list of such."""
    max_tokens: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    """0 only with `echo`: the prompt and, with `logprobs`, how probable it is."""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    """Alternatives at each token."""
    echo: bool | None = None
    suffix: Annotated[str, Meta(max_length=1 << 20)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None

    def check_combinations(self) -> None:
        """Raises InvalidRequestError: fields that are good alone and mean nothing together."""
        n, best_of = self.n or 1, self.best_of
        if best_of is not None and best_of < n:
            raise InvalidRequestError(f"best_of: must be at least n, {n}", param="best_of")
        if best_of is not None and best_of > n and self.stream:
            raise InvalidRequestError(
                "best_of: more than n cannot be streamed: the best is known at the end",
                param="best_of",
            )
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens: 0 only with echo: true", param="max_tokens")
        if self.suffix and self.echo:
            raise InvalidRequestError("suffix: not together with echo: true", param="suffix")

    def prompts(self, n_vocab: int) -> list[Plain]:
        """Texts, and token ids below n_vocab. Raises InvalidRequestError."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
            prompt = [prompt]
        elif len(prompt) > MAX_CHOICES:
            raise InvalidRequestError(
                f"prompt: at most {MAX_CHOICES} in one request, not {len(prompt)}", param="prompt"
            )
        return [_text_or_tokens(one, n_vocab) for one in prompt]


def _text_or_tokens(prompt: Any, n_vocab: int) -> Plain:
    if isinstance(prompt, str):
        return prompt
    given = prompt if isinstance(prompt, list) else [None]
    tokens = [token for token in given if isinstance(token, int) and 0 <= token < n_vocab]
    if len(tokens) != len(given):
        raise InvalidRequestError(
            f"prompt: token ids are whole numbers from 0 to {n_vocab - 1}", param="prompt"
        )
    return tokens


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, CompletionRequest)
    request.check_combinations()
    given = request.prompts(n_vocab)
    prompt: Prompt = given[0] if len(given) == 1 else Several(tuple(given))
    if request.suffix:
        prompt = Infill(tuple(given), request.suffix)
    generation = request.generation(
        prompt,
        "prompt",
        n_vocab,
        usual_tokens=USUAL_TOKENS,
        best_of=request.best_of or request.n or 1,
        logprobs=request.logprobs,
        echo=bool(request.echo),
    )
    return Parsed(generation, request.style(logprobs=request.logprobs is not None))


class TextLogprobs(msgspec.Struct, frozen=True):
    """One entry a token in each list. A token that is no whole UTF-8 is `bytes:` and hex."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where in the answer's text the token begins, in characters."""


class TextChoice(msgspec.Struct, frozen=True):
    """One of the answers, or a piece of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class CompletionReply(Reply):
    """The answer: texts, or chunks that add up to them."""

    id_prefix: ClassVar[str] = "cmpl"
    whole_kind: ClassVar[str] = "text_completion"
    chunk_kind: ClassVar[str] = "text_completion"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places: dict[int, _Place] = {}

    def opening(self, index: int) -> bytes:
        echo = self.echo(index)
        if echo is None:
            return b""
        return self.chunk(TextChoice(index, echo.text, self._first(index, echo), None))

    def text(self, index: int, delta: TextDelta) -> bytes:
        return self.chunk(TextChoice(index, delta.text, self._logprobs(index, delta), None))

    def whole_choice(self, index: int, delta: TextDelta, finish: wire.Finish) -> TextChoice:
        echo, text = self.echo(index), delta.text
        first = None if echo is None else self._first(index, echo)
        logprobs = self._logprobs(index, delta)
        if echo is not None:
            text = echo.text + text
        if first is not None and logprobs is not None:
            logprobs = TextLogprobs(
                first.tokens + logprobs.tokens,
                first.token_logprobs + logprobs.token_logprobs,
                first.top_logprobs + logprobs.top_logprobs,
                first.text_offset + logprobs.text_offset,
            )
        return TextChoice(index, text, logprobs, str(finish.reason))

    def last_choice(self, index: int, finish: wire.Finish) -> TextChoice:
        return TextChoice(index, "", None, str(finish.reason))

    def _first(self, index: int, echo: Echo) -> TextLogprobs | None:
        """The entry of the prompt's first token, which nothing comes before."""
        if not self.style.logprobs:
            return None
        piece = self.pieces(echo.first)
        said = echo.text.startswith(piece.decode(errors="replace"))
        at = self._place(index).pass_over(piece if said else b"")  # a BOS that nobody wrote
        return TextLogprobs([_shown(piece)], [None], [None], [at])

    def _logprobs(self, index: int, delta: TextDelta) -> TextLogprobs | None:
        if not self.style.logprobs:
            return None
        scores = delta.prompt_logprobs + delta.logprobs
        pieces = [self.pieces(score.token) for score in scores]
        place = self._place(index)
        return TextLogprobs(
            [_shown(piece) for piece in pieces],
            [score.logprob for score in scores],
            [self._alternatives(score) for score in scores],
            [place.pass_over(piece) for piece in pieces],
        )

    def _alternatives(self, score: wire.TokenLogprob) -> dict[str, float]:
        """The most probable tokens, and the one that came whether it is among them or not."""
        both = [*score.top, (score.token, score.logprob)]
        return {_shown(self.pieces(token)): logprob for token, logprob in both}

    def _place(self, index: int) -> _Place:
        return self._places.setdefault(index, _Place())


class _Place:
    """How far into a text its tokens have come."""

    def __init__(self) -> None:
        self._characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def pass_over(self, piece: bytes) -> int:
        """Where this one begins."""
        at = self._characters
        self._characters += len(self._decoder.decode(piece))
        return at


def _shown(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
