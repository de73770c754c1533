"""OpenAI's chat completions: their bodies and their answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Parsed, Turn
from lbhost.gateway.api.parameters import Parameters, Tokens, only
from lbhost.gateway.api.replies import Reply
from lbhost.gateway.scheduling.deltas import TextDelta

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message. Only text is supported."""

    type: Annotated[str, only("text")]
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: Name | None = None
    tool_calls: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only()] = None


class ChatRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """Alternatives at each token; needs `logprobs`."""
    continue_final_message: bool | None = None
    """Extension, as in vLLM: go on with the last message, which is the assistant's."""
    add_generation_prompt: bool | None = None
    """Extension: false leaves out what the template puts before an answer."""

    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    modalities: Annotated[Any, only([], ["text"])] = None
    audio: Annotated[Any, only({})] = None
    web_search_options: Annotated[Any, only()] = None

    def unsupported(self) -> str | None:
        if self.tool_choice not in (None, "none", "auto"):
            return "tool_choice"
        if self.function_call not in (None, "none", "auto"):
            return "function_call"
        if self.modalities not in (None, [], ["text"]):
            return "modalities"
        for name in ("tools", "functions", "audio", "web_search_options"):
            if getattr(self, name) not in (None, [], 0, {}):
                return name
        return super().unsupported()

    def output_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().output_limit()

    def check_combinations(self) -> None:
        """Raises InvalidRequestError: fields that are good alone and mean nothing together."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs: only together with logprobs: true", param="top_logprobs"
            )
        if not self.continue_final_message:
            return
        if self.add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message: not together with add_generation_prompt: true",
                param="continue_final_message",
            )
        if self.messages[-1].role != "assistant":
            raise InvalidRequestError(
                "continue_final_message: the last message must be the assistant's",
                param="continue_final_message",
            )

    def turns(self) -> tuple[Turn, ...]:
        """Who said what, each as one text.

        `developer` becomes `system`, which is what templates know.

        Raises:
            InvalidRequestError: a part that is no text, a tool call, an absent content.
        """
        return tuple(_turn(i, message) for i, message in enumerate(self.messages))


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, ChatRequest)
    request.check_combinations()
    generation = request.generation(
        request.turns(),
        "messages",
        n_vocab,
        usual_tokens=None,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        continues=bool(request.continue_final_message),
        next_speaker=request.add_generation_prompt is not False,
    )
    return Parsed(generation, request.style(logprobs=bool(request.logprobs)))


def _turn(index: int, message: Message) -> Turn:
    where = f"messages[{index}]"
    if message.tool_calls or message.function_call:
        raise InvalidRequestError(f"{where}: this server does not support tools", param="messages")
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise InvalidRequestError(
                    f"{where}.content: only text parts are supported, not {part.type[:40]!r}",
                    param="messages",
                )
        content = "\n".join(part.text or "" for part in content)
    if content is None:
        raise InvalidRequestError(f"{where}.content: must be given", param="messages")
    role = "system" if message.role == "developer" else message.role
    return Turn(role, content, message.name)


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


class ChatMessage(msgspec.Struct, frozen=True):
    """An answer."""

    role: str
    content: str
    refusal: None = None


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

    def opening(self, index: int) -> bytes:
        return self.chunk(
            ChatChunkChoice(index, ChatDelta(role="assistant", content=""), None, None)
        )

    def text(self, index: int, delta: TextDelta) -> bytes:
        logprobs = self._logprobs(delta)
        return self.chunk(ChatChunkChoice(index, ChatDelta(content=delta.text), logprobs, None))

    def whole_choice(self, index: int, delta: TextDelta, finish: wire.Finish) -> ChatChoice:
        message = ChatMessage("assistant", delta.text)
        return ChatChoice(index, message, self._logprobs(delta), str(finish.reason))

    def last_choice(self, index: int, finish: wire.Finish) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(), None, str(finish.reason))

    def _logprobs(self, delta: TextDelta) -> ChatLogprobs | None:
        if not self.style.logprobs:
            return None
        return ChatLogprobs([self._scored(score) for score in delta.logprobs])

    def _scored(self, score: wire.TokenLogprob) -> TokenLogprob:
        one = self._named(score.token, score.logprob)
        top = [self._named(token, logprob) for token, logprob in score.top]
        return TokenLogprob(one.token, one.logprob, one.bytes, top)

    def _named(self, token: int, logprob: float) -> TopLogprob:
        piece = self.pieces(token)
        return TopLogprob(piece.decode(errors="replace"), logprob, list(piece))
