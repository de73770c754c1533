"""The parameters that OpenAI's endpoints share, and how bodies are read field by field.

Pure: bytes in, a frozen struct out, or an InvalidRequestError that names the parameter. Every
number has bounds. Unknown fields are ignored, as OpenAI does; known ones that we do not
support are refused where ignoring them would change what the answer means.
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from lbhost import order, wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import formats
from lbhost.gateway.api.formats import ResponseFormat
from lbhost.gateway.api.generation import Generation, Prompt, Style, ToolUse
from lbhost.gateway.api.json_depth import check_depth
from lbhost.grammar import Grammar

MAX_STOPS = 16

MAX_CHOICES = 128
"""Answers that one request may generate, to all its prompts."""

_SEED_BITS = 32
"""Seeds are taken modulo 2 to the power of this."""

_OF_OTHER_SERVERS: dict[str, tuple[Any, ...]] = {
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "prompt_logprobs": (False,),
    "typical_p": (1,),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
}
"""What vLLM or llama-server have and we have not, with the values that ask for nothing."""

RANKS = {
    None: order.DEFAULT,
    "auto": order.DEFAULT,
    "default": order.DEFAULT,
    "priority": order.PRIORITY,
    "flex": order.FLEX,
}

Tier = Literal["auto", "default", "priority", "flex"]

_KEYS = {"propertyNames": {"pattern": "^[0-9]{1,9}$"}}

Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Tokens = Annotated[int, Meta(ge=1, le=1 << 30)]
Stop = Annotated[str, Meta(min_length=1, max_length=512)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Meta(max_length=1024, extra_json_schema=_KEYS)]


def only(*values: Any) -> Meta:
    """Says in the OpenAPI document what a field that is only looked at may be, beside null."""
    return Meta(extra_json_schema={"enum": [*values, None]})


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What OpenAI's requests for an answer share. null means "the default" everywhere."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    """0 and -1 mean all."""
    min_p: Fraction | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    """-1 means a random one, as in llama.cpp."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    logit_bias: Biases | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool | None = None
    """Extension, for benchmarks: go on until max_tokens."""
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    service_tier: Tier | None = None

    response_format: ResponseFormat | None = None
    grammar: str | None = None
    """Extension, as llama-server has it: GBNF; or Lark."""
    json_schema: dict[str, Any] | None = None
    """Extension, as llama-server has it."""

    # Looked at only to refuse them.
    min_tokens: Annotated[Any, only(0)] = None
    stop_token_ids: Annotated[Any, only([])] = None
    bad_words: Annotated[Any, only([])] = None
    use_beam_search: Annotated[Any, only(False)] = None
    prompt_logprobs: Annotated[Any, only(False)] = None
    typical_p: Annotated[Any, only(1)] = None
    mirostat: Annotated[Any, only(0)] = None
    dynatemp_range: Annotated[Any, only(0)] = None
    dry_multiplier: Annotated[Any, only(0)] = None
    xtc_probability: Annotated[Any, only(0)] = None

    def unsupported(self) -> str | None:
        """A parameter that would change the answer's meaning and that we cannot honour."""
        for name, neutral in _OF_OTHER_SERVERS.items():
            if getattr(self, name) not in (None, *neutral):
                return name
        return None

    def output_limit(self) -> tuple[str, int | None]:
        """The parameter that limits the output, and its value."""
        return "max_tokens", self.max_tokens

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(dict.fromkeys(self.stop))

    def sampling(self, n_vocab: int) -> wire.Sampling:
        """For the worker. Raises InvalidRequestError for a bias on no token of ours."""
        return wire.Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=self._settled_seed(),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repeat_penalty=1.0 if self.repeat_penalty is None else self.repeat_penalty,
            logit_bias=_biases(self.logit_bias or {}, n_vocab),
        )

    def _settled_seed(self) -> int:
        if self.seed is None or self.seed == -1:
            return random.getrandbits(_SEED_BITS)
        return self.seed % (1 << _SEED_BITS)

    def grammars(self) -> list[Grammar]:
        """All that the answer is asked to follow. Raises InvalidRequestError: not understood."""
        return formats.grammars(self.response_format, self.grammar, self.json_schema)

    def bound_by(self) -> Grammar | None:
        """What the answer must follow. Raises InvalidRequestError: not understood, or two."""
        given = self.grammars()
        if len(given) > 1:
            raise InvalidRequestError(
                f"{given[1].param}: cannot be combined with {given[0].param}", param=given[1].param
            )
        if given and self.ignore_eos:
            raise InvalidRequestError(
                f"ignore_eos: an answer that follows {given[0].param} has an end",
                param="ignore_eos",
            )
        return given[0] if given else None

    def check_bound_once(self, use: ToolUse | None) -> None:
        """Raises InvalidRequestError: tools together with what excludes them."""
        if use is None:
            return
        bound = self.bound_by()
        if bound is not None:
            raise InvalidRequestError(
                f"{bound.param}: cannot be combined with tools", param=bound.param
            )
        if self.ignore_eos and use.forced:
            raise InvalidRequestError(
                "ignore_eos: an answer that must be a call has an end", param="ignore_eos"
            )

    def tier(self) -> str | None:
        """The class that the answer names, if the request did: `auto` means the usual one."""
        return "default" if self.service_tier == "auto" else self.service_tier

    def named_tier(self) -> str | None:
        """The class that the request insists on; None: whichever its key has."""
        return None if self.service_tier == "auto" else self.service_tier

    def include_usage(self) -> bool:
        """Whether a stream is to end with what it cost."""
        return self.stream_options is not None and self.stream_options.include_usage

    def rank(self) -> int:
        """The request's class; see lbhost/order.py."""
        return RANKS[self.service_tier]

    def style(self, *, logprobs: bool) -> Style:
        """For the answer's writer."""
        return Style(include_usage=self.include_usage(), tier=self.tier(), logprobs=logprobs)

    def generation(
        self,
        prompt: Prompt,
        prompt_param: str,
        n_vocab: int,
        usual_tokens: int | None,
        **more: Any,
    ) -> Generation:
        """The same in nobody's dialect; `more` are fields of Generation that a dialect has.

        Raises InvalidRequestError.
        """
        max_tokens_param, max_tokens = self.output_limit()
        return Generation(
            model=self.model,
            prompt=prompt,
            prompt_param=prompt_param,
            max_tokens=max_tokens,
            max_tokens_param=max_tokens_param,
            usual_tokens=usual_tokens,
            sampling=self.sampling(n_vocab),
            stop=self.stops(),
            ignore_eos=bool(self.ignore_eos),
            stream=bool(self.stream),
            rank=self.rank(),
            tier=self.named_tier(),
            grammar=self.bound_by(),
            n=self.n or 1,
            **{"best_of": self.n or 1, **more},
        )


S = TypeVar("S", bound=msgspec.Struct)
R = TypeVar("R", bound=Parameters)


@cache
def _decoder(kind: type[S]) -> msgspec.json.Decoder[S]:
    return msgspec.json.Decoder(kind)


def parse(body: bytes, kind: type[R]) -> R:
    """A checked request.

    Raises:
        InvalidRequestError: not JSON, not UTF-8, too deep, a wrong type, a number out of range,
            or something that this server does not support. `param` names the field.
    """
    request = decode(body, kind)
    unsupported = request.unsupported()
    if unsupported is not None:
        raise InvalidRequestError(
            f"{unsupported}: this server does not support it", param=unsupported
        )
    return request


def decode(body: bytes, kind: type[S]) -> S:
    """A body of one type.

    Raises:
        InvalidRequestError: not JSON, not UTF-8, too deep, a wrong type, a number out of range.
            `param` names the field.
    """
    check_depth(body)
    try:
        decoded: S = _decoder(kind).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise unreadable(error) from error
    return decoded


def unreadable(error: Exception) -> InvalidRequestError:
    """What to tell of a body that msgspec cannot decode."""
    if isinstance(error, msgspec.ValidationError):
        return _invalid(str(error))
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequestError("the body is not valid UTF-8")
    return InvalidRequestError(f"the body is not valid JSON: {error}")


def _biases(given: dict[str, float], n_vocab: int) -> tuple[tuple[int, float], ...]:
    biases: list[tuple[int, float]] = []
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < n_vocab):
            raise InvalidRequestError(
                f"logit_bias: keys are token ids from 0 to {n_vocab - 1}, not {key[:40]!r}",
                param="logit_bias",
            )
        biases.append((int(key), bias))
    return tuple(biases)


_AT = re.compile(r"(.*) - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)


def _invalid(message: str) -> InvalidRequestError:
    """msgspec's "Expected `int`, got `str` - at `$.seed`" as "seed: expected int, got str"."""
    found = _AT.match(message)
    what, path = (found[1], found[2]) if found else (message, "")
    missing = re.match(r"Object missing required field `(\w+)`", what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        what = "must be given"
    what = what.replace("`", "").replace("| null", "or null").replace(" | ", " or ")
    param = re.match(r"\w+", path)
    lead = f"{path}: " if path else "the body: "
    return InvalidRequestError(
        lead + what[:1].lower() + what[1:], param=param[0] if param else None
    )
