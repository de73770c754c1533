"""llama-server's own /completion and /infill: their bodies and their answers. Pure.

Their sampling defaults are llama-server's, not OpenAI's. Parameters that would change what an
answer means and that lbhost cannot honour are refused; those about caches, slots and the order of
samplers are left to the server.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError, LbhostError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Infill, Parsed, Prompt, Style
from lbhost.gateway.api.parameters import Bias, Parameters, only
from lbhost.gateway.api.replies import Timings, timings_of
from lbhost.gateway.api.writer import OneAnswer, event

TEMPERATURE, TOP_P, TOP_K, MIN_P = 0.8, 0.95, 40, 0.05
"""llama-server's defaults."""

Biases: TypeAlias = (
    Annotated[dict[str, Bias], Meta(max_length=1024)]
    | Annotated[list[tuple[int, Bias | bool]], Meta(max_length=1024)]
)
"""As OpenAI's, or llama-server's pairs, of which false forbids the token."""

_NEUTRAL: dict[str, Any] = {
    "n_probs": 0,
    "t_max_predict_ms": 0,
    "return_tokens": False,
    "image_data": [],
    "lora": [],
}
"""Parameters that cannot be honoured, and the one value at which they change nothing."""


class NativeParameters(Parameters, frozen=True, kw_only=True):
    """What /completion and /infill share."""

    n_predict: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    """-1: until the model ends or the context is full."""
    logit_bias: Biases | None = None  # type: ignore[assignment]

    # Looked at only to refuse them.
    n_probs: Annotated[Any, only(0)] = None
    t_max_predict_ms: Annotated[Any, only(0)] = None
    return_tokens: Annotated[Any, only(False)] = None
    image_data: Annotated[Any, only([])] = None
    lora: Annotated[Any, only([])] = None

    def unsupported(self) -> str | None:
        for name, neutral in _NEUTRAL.items():
            if getattr(self, name) not in (None, neutral):
                return name
        return "n" if self.n not in (None, 1) else super().unsupported()

    def most_tokens(self) -> int | None:
        """Raises InvalidRequestError: none at all."""
        if self.n_predict == 0:
            raise InvalidRequestError(
                "n_predict: at least 1, or -1 for as many as fit", param="n_predict"
            )
        if self.n_predict is None:
            return self.max_tokens
        return None if self.n_predict < 0 else self.n_predict

    def settled(self) -> NativeParameters:
        """With llama-server's defaults, and biases in OpenAI's form."""
        return msgspec.structs.replace(
            self,
            temperature=TEMPERATURE if self.temperature is None else self.temperature,
            top_p=TOP_P if self.top_p is None else self.top_p,
            top_k=TOP_K if self.top_k is None else self.top_k,
            min_p=MIN_P if self.min_p is None else self.min_p,
            logit_bias=_biases(self.logit_bias),
        )


class NativeRequest(NativeParameters, frozen=True, kw_only=True):
    """POST /completion."""

    prompt: str | list[int | str]

    def text_or_tokens(self, n_vocab: int) -> str | list[int]:
        """The one prompt: text, or token ids below n_vocab. Raises InvalidRequestError."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1 and isinstance(self.prompt[0], str):
            return self.prompt[0]
        tokens = [t for t in self.prompt if isinstance(t, int) and 0 <= t < n_vocab]
        if len(tokens) != len(self.prompt):
            raise InvalidRequestError(
                f"prompt: one text, or a list of token ids from 0 to {n_vocab - 1}", param="prompt"
            )
        return tokens


class InfillRequest(NativeParameters, frozen=True, kw_only=True):
    """POST /infill: what is missing between two texts."""

    input_prefix: str
    input_suffix: str

    # Looked at only to refuse them.
    prompt: Annotated[Any, only("")] = None
    input_extra: Annotated[Any, only([])] = None

    def unsupported(self) -> str | None:
        if self.prompt not in (None, ""):
            return "prompt"
        return "input_extra" if self.input_extra not in (None, []) else super().unsupported()


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, NativeRequest)
    return _parsed(request, request.text_or_tokens(n_vocab), "prompt", n_vocab)


def parse_infill(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, InfillRequest)
    gap = Infill((request.input_prefix,), request.input_suffix, "input_suffix")
    return _parsed(request, gap, "input_prefix", n_vocab)


def _parsed(request: NativeParameters, prompt: Prompt, param: str, n_vocab: int) -> Parsed:
    wanted = request.most_tokens()
    generation = request.settled().generation(prompt, param, n_vocab, usual_tokens=wanted)
    sampling = generation.sampling
    settings = {
        "n_predict": -1 if wanted is None else wanted,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": generation.stop,
        "ignore_eos": generation.ignore_eos,
        "stream": generation.stream,
    }
    # As a usual number it is cut to the room that there is, as llama-server does.
    cut = msgspec.structs.replace(generation, max_tokens=None)
    return Parsed(cut, Style(repeated=settings))


def _biases(given: Any) -> dict[str, float] | None:
    if given is None or isinstance(given, dict):
        return given
    biases: dict[str, float] = {}
    for token, bias in given:
        if bias is True:
            raise InvalidRequestError(
                "logit_bias: a bias is a number, or false to forbid the token", param="logit_bias"
            )
        biases[str(token)] = -100.0 if bias is False else bias
    return biases


class NativePart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer that is streamed."""

    index: int = 0
    content: str
    tokens: list[int] = []
    """Always empty, as where llama-server is not asked for them."""
    stop: Literal[False] = False
    id_slot: int = -1
    tokens_evaluated: int


class NativeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, or the end of one that was streamed."""

    index: int = 0
    content: str
    tokens: list[int] = []
    id_slot: int = -1
    stop: Literal[True] = True
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    generation_settings: dict[str, Any]
    truncated: bool = False
    stop_type: Literal["word", "limit", "eos"]
    stopping_word: str
    timings: Timings


class NativeReply(OneAnswer):
    """The answer: one object, or events that each hold a part."""

    def complete(self, text: str, finish: wire.Finish) -> NativeAnswer:
        return self._last(text, finish)

    def begin(self) -> bytes:
        return b""

    def piece(self, text: str) -> bytes:
        return event(NativePart(content=text, tokens_evaluated=self.style.prompt_tokens))

    def end(self, finish: wire.Finish) -> bytes:
        return event(self._last("", finish))

    def failing(self, error: LbhostError) -> bytes:
        return event(error.body())

    def _last(self, text: str, finish: wire.Finish) -> NativeAnswer:
        limit = finish.reason is wire.FinishReason.LENGTH
        return NativeAnswer(
            content=text,
            model=self.model,
            tokens_predicted=finish.completion_tokens,
            tokens_evaluated=finish.prompt_tokens,
            tokens_cached=finish.cached_tokens,
            generation_settings=self.style.repeated,
            stop_type="word" if finish.stop is not None else "limit" if limit else "eos",
            stopping_word=finish.stop or "",
            timings=timings_of([finish]),
        )
