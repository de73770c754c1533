"""The answers that clients get, as OpenAI defines them: what all its dialects share.

Pure. One Reply per request knows its id and its model; it turns text and a Finish into JSON
bytes, ready to be sent. Errors have one shape wherever they are made.
"""

from __future__ import annotations

import abc
import enum
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from lbhost import __version__, wire
from lbhost.errors import LbhostError
from lbhost.gateway.api.generation import Echo, Style
from lbhost.gateway.scheduling.deltas import TextDelta

FINGERPRINT = f"lbhost-{__version__}"

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_encode = msgspec.json.Encoder().encode


class Kind(enum.Enum):
    """Which endpoint was asked."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSES = "responses"
    MESSAGES = "messages"
    NATIVE = "native"
    INFILL = "infill"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    APPLY_TEMPLATE = "apply_template"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"


class CachedTokens(msgspec.Struct, frozen=True):
    """Part of Usage."""

    cached_tokens: int


class ReasoningTokens(msgspec.Struct, frozen=True):
    """Part of Usage."""

    reasoning_tokens: int
    """Output tokens of thoughts, their tags included."""


class Usage(msgspec.Struct, frozen=True):
    """What the request cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class Timings(msgspec.Struct, frozen=True):
    """Extension, as llama-server has it: what was computed, and how fast. Milliseconds.

    Of several answers the sum, be they computed side by side or not.
    """

    cache_n: int
    """Prompt tokens that were not computed."""
    prompt_n: int
    """Prompt tokens that were."""
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    """Output tokens."""
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


C = TypeVar("C")


class Completion(msgspec.Struct, Generic[C], frozen=True):
    """A whole answer, or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[C]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    timings: Timings | msgspec.UnsetType = msgspec.UNSET


class Given(msgspec.Struct, frozen=True):
    """One answer, complete."""

    delta: TextDelta
    """All of it."""
    finish: wire.Finish


class Reply(abc.ABC):
    """Shapes everything that is sent in answer to one request; each dialect has its own.

    Server-sent events of OpenAI's kind are made here; a dialect says what is in them. Answers are
    told apart by their index: each prompt's come after those of the prompt before.
    """

    id_prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(
        self,
        name: str,
        model: str,
        style: Style | None = None,
        *,
        pieces: Callable[[int], bytes] = lambda _: b"",
        echoes: Sequence[Echo] = (),
        n: int = 1,
        **_: Any,
    ) -> None:
        """For one request. Takes what other dialects' writers need, too.

        Args:
            name: unique among requests, whatever their clients call them.
            pieces: what a token stands for, special ones written out.
            echoes: the prompts that answers are to begin with; none: they are not.
            n: answers to each prompt.
        """
        self.name = name
        self.style = style or Style()
        self.pieces = pieces
        self._echoes = echoes
        self._n = n
        self._id = f"{self.id_prefix}-{name}"
        self._model = model
        self._created = int(time.time())
        tier = self.style.tier
        self._tier: str | msgspec.UnsetType = msgspec.UNSET if tier is None else tier
        self._between: msgspec.UnsetType | None = (
            None if self.style.include_usage else msgspec.UNSET
        )

    def echo(self, index: int) -> Echo | None:
        """What this answer begins with."""
        return self._echoes[index // self._n] if self._echoes else None

    # --- what a dialect says ---------------------------------------------------------

    @abc.abstractmethod
    def opening(self, index: int) -> bytes:
        """The first event of an answer, before any text; nothing where there is none."""

    @abc.abstractmethod
    def text(self, index: int, delta: TextDelta) -> bytes:
        """An event with some text, or with what is told of tokens that have none yet."""

    @abc.abstractmethod
    def whole_choice(self, index: int, delta: TextDelta, finish: wire.Finish) -> Any:
        """An answer that is not streamed."""

    @abc.abstractmethod
    def last_choice(self, index: int, finish: wire.Finish) -> Any:
        """What says why an answer ended."""

    def thought_tokens(self, costs: Sequence[wire.Finish]) -> int:
        """How many of the answers' tokens are thoughts. `costs`: of all answers, in order."""
        return 0

    # --- what they share -------------------------------------------------------------

    def whole(self, answers: Sequence[Given], costs: Sequence[wire.Finish]) -> bytes:
        """The body of answers that are not streamed.

        Args:
            costs: of all that was generated, `len(costs)` / `len(answers)` times as much as is
                given.
        """
        choices = [
            self.whole_choice(index, one.delta, one.finish) for index, one in enumerate(answers)
        ]
        each = len(costs) // len(answers) * self._n
        return _encode(
            self._completion(self.whole_kind, choices, self._usage(costs, each), timings_of(costs))
        )

    def last_chunk(self, index: int, finish: wire.Finish) -> bytes:
        """The event that says why an answer ended."""
        choice = self.last_choice(index, finish)
        timings = timings_of([finish])
        return _sse(self._completion(self.chunk_kind, [choice], self._between, timings))

    def closing(self, costs: Sequence[wire.Finish]) -> bytes:
        """The last events: what all answers cost if that was asked for, and [DONE]."""
        if not self.style.include_usage:
            return DONE
        return _sse(self._completion(self.chunk_kind, [], self._usage(costs, self._n))) + DONE

    def failing(self, error: LbhostError) -> bytes:
        """How a stream that cannot go on ends: clients raise it. Never end one silently."""
        return b"data: " + error_body(error) + b"\n\n"

    def ping(self) -> bytes:
        """Something that says nothing: proxies cut streams that are silent."""
        return PING

    def chunk(self, choice: Any) -> bytes:
        """An event with one choice."""
        return _sse(self._completion(self.chunk_kind, [choice], self._between))

    def _usage(self, costs: Sequence[wire.Finish], each: int) -> Usage:
        """Every prompt counts once, by the first of the `each` answers that were made to it."""
        first = costs[::each]
        prompt = sum(finish.prompt_tokens for finish in first)
        output = sum(finish.completion_tokens for finish in costs)
        cached = CachedTokens(sum(finish.cached_tokens for finish in first))
        thought = ReasoningTokens(self.thought_tokens(costs))
        return Usage(prompt, output, prompt + output, cached, thought)

    def _completion(
        self,
        kind: str,
        choices: list[Any],
        usage: Usage | msgspec.UnsetType | None,
        timings: Timings | msgspec.UnsetType = msgspec.UNSET,
    ) -> Completion[Any]:
        return Completion(
            self._id,
            kind,
            self._created,
            self._model,
            FINGERPRINT,
            choices,
            usage,
            self._tier,
            timings,
        )


def error_body(error: LbhostError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return _encode(error.body())


def error_headers(error: LbhostError) -> list[tuple[bytes, bytes]]:
    """What tells clients whether and when to try again."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retryable:
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    else:
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def _sse(completion: Completion[Any]) -> bytes:
    return b"data: " + _encode(completion) + b"\n\n"


def timings_of(costs: Sequence[wire.Finish]) -> Timings:
    """What answers took."""
    cached = sum(finish.cached_tokens for finish in costs)
    prompt = sum(finish.prompt_tokens for finish in costs) - cached
    prompt_ms = 1000 * sum(finish.prefill_s for finish in costs)
    output = sum(finish.completion_tokens for finish in costs)
    output_ms = 1000 * sum(finish.decode_s for finish in costs)
    return Timings(cached, *_rates(prompt, prompt_ms), *_rates(output, output_ms))


def _rates(tokens: int, ms: float) -> tuple[int, float, float, float]:
    """Tokens, their time, that of one, and how many a second; 0 where there is nothing to divide
    by."""
    per_token = ms / tokens if tokens else 0.0
    per_second = 1000 * tokens / ms if ms else 0.0
    return tokens, round(ms, 3), round(per_token, 3), round(per_second, 3)
