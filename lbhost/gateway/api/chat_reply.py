"""The answers to OpenAI's chat completions: their types and their events. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from lbhost import wire
from lbhost.gateway.api.reading import AnswerReader
from lbhost.gateway.api.replies import Reply
from lbhost.gateway.api.thought_tokens import ThoughtTokens
from lbhost.gateway.api.tools.calls import Arguments, CallBegun, Event, Said, Thought
from lbhost.gateway.scheduling.deltas import TextDelta


class TopLogprob(msgspec.Struct, frozen=True):
    """A token and how probable the model held it."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """The same of one that was generated, with its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """One entry a token; in a stream those of the tokens since the last chunk."""

    content: list[TokenLogprob]
    refusal: None = None


class Called(msgspec.Struct, frozen=True):
    """A call of one of the client's functions."""

    id: str
    type: str
    function: dict[str, str]


class CalledDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of one: the first has everything but the arguments."""

    index: int
    function: dict[str, str]
    id: str | None = None
    type: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """An answer."""

    role: str
    content: str | None
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    """Extension: what the model wrote for itself."""
    tool_calls: list[Called] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of an answer."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledDelta] | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A piece of one of the answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatReply(Reply):
    """The answer: messages, or chunks that add up to them."""

    id_prefix: ClassVar[str] = "chatcmpl"
    whole_kind: ClassVar[str] = "chat.completion"
    chunk_kind: ClassVar[str] = "chat.completion.chunk"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See Reply."""
        super().__init__(*args, **kwargs)
        self._readers: dict[int, AnswerReader] = {}
        self._begun: dict[int, int] = {}
        """The newest call of each answer."""
        self._thought: dict[int, ThoughtTokens] = {}
        self._shown: dict[int, tuple[str, list[int]]] = {}
        """Text and bytes of tokens, once shown: log-probabilities name the same ones all over."""

    def opening(self, index: int) -> bytes:
        return self._event(index, ChatDelta(role="assistant", content=""))

    def text(self, index: int, delta: TextDelta) -> bytes:
        logprobs = self._logprobs(delta)
        if self.style.reading is None:
            return self._event(index, ChatDelta(content=delta.text), logprobs)
        self._count(index, delta)
        written = b""
        for event in self._reader(index).feed(delta.text):
            written += self._event(index, self._delta(index, event), logprobs)
            logprobs = None if logprobs is None else ChatLogprobs([])
        if not written and delta.logprobs:
            written = self._event(index, ChatDelta(content=""), logprobs)
        return written

    def whole_choice(self, index: int, delta: TextDelta, finish: wire.Finish) -> ChatChoice:
        logprobs = self._logprobs(delta)
        if self.style.reading is None:
            message = ChatMessage("assistant", delta.text)
            return ChatChoice(index, message, logprobs, str(finish.reason))
        self._count(index, delta)
        reader = self._reader(index)
        message = self._message(index, [*reader.feed(delta.text), *reader.finish()])
        return ChatChoice(index, message, logprobs, self._reason(index, finish))

    def last_chunk(self, index: int, finish: wire.Finish) -> bytes:
        held = b""
        if self.style.reading is not None:
            none = ChatLogprobs([]) if self.style.logprobs else None
            for event in self._reader(index).finish():
                held += self._event(index, self._delta(index, event), none)
        return held + super().last_chunk(index, finish)

    def last_choice(self, index: int, finish: wire.Finish) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(), None, self._reason(index, finish))

    def _event(self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None) -> bytes:
        return self.chunk(ChatChunkChoice(index, delta, logprobs, None))

    def thought_tokens(self, costs: Sequence[wire.Finish]) -> int:
        return sum(counter.of(costs[index]) for index, counter in self._thought.items())

    # --- thoughts and calls -----------------------------------------------------------

    def _count(self, index: int, delta: TextDelta) -> None:
        counter = self._thought.get(index)
        if counter is None:
            assert self.style.reading is not None
            thinking = self.style.reading.thinking
            counter = self._thought[index] = ThoughtTokens(thinking, self.pieces)
        counter.feed(delta.tokens)

    def _reader(self, index: int) -> AnswerReader:
        reader = self._readers.get(index)
        if reader is None:
            assert self.style.reading is not None
            reader = self._readers[index] = AnswerReader(self.style.reading)
        return reader

    def _delta(self, index: int, event: Event) -> ChatDelta:
        match event:
            case Said(text):
                return ChatDelta(content=text)
            case Thought(text):
                return ChatDelta(reasoning_content=text)
            case CallBegun(name):
                at = self._begun[index] = self._begun.get(index, -1) + 1
                head = {"name": name, "arguments": ""}
                return ChatDelta(
                    tool_calls=[CalledDelta(at, head, self._call_id(index, at), "function")]
                )
            case Arguments(text):
                return ChatDelta(tool_calls=[CalledDelta(self._begun[index], {"arguments": text})])

    def _message(self, index: int, events: list[Event]) -> ChatMessage:
        said = thought = ""
        calls: list[tuple[str, list[str]]] = []
        for event in events:
            match event:
                case Said(text):
                    said += text
                case Thought(text):
                    thought += text
                case CallBegun(name):
                    calls.append((name, []))
                case Arguments(text):
                    calls[-1][1].append(text)
        made = [
            Called(
                self._call_id(index, at),
                "function",
                {"name": name, "arguments": "".join(arguments)},
            )
            for at, (name, arguments) in enumerate(calls)
        ]
        return ChatMessage(
            "assistant",
            said if said or not calls else None,
            reasoning_content=thought or msgspec.UNSET,
            tool_calls=made or msgspec.UNSET,
        )

    def _call_id(self, index: int, at: int) -> str:
        """Unique, and as Mistral's templates want it: nine letters and digits."""
        name = f"{self.name}.{index}.{at}"
        return hashlib.sha256(name.encode()).hexdigest()[:9]

    def _reason(self, index: int, finish: wire.Finish) -> str:
        called = self.style.reading is not None and self._reader(index).calls
        stopped = finish.reason is wire.FinishReason.STOP
        return "tool_calls" if called and stopped else str(finish.reason)

    def _logprobs(self, delta: TextDelta) -> ChatLogprobs | None:
        if not self.style.logprobs:
            return None
        return ChatLogprobs([self._scored(score) for score in delta.logprobs])

    def _scored(self, score: wire.TokenLogprob) -> TokenLogprob:
        one = self._named(score.token, score.logprob)
        top = [self._named(token, logprob) for token, logprob in score.top]
        return TokenLogprob(one.token, one.logprob, one.bytes, top)

    def _named(self, token: int, logprob: float) -> TopLogprob:
        shown = self._shown.get(token)
        if shown is None:
            piece = self.pieces(token)
            shown = self._shown[token] = piece.decode(errors="replace"), list(piece)
        return TopLogprob(shown[0], logprob, shown[1])
