"""OpenAI's chat completions: their bodies and their answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Parsed, Turn
from lbhost.gateway.api.parameters import Parameters, Tokens
from lbhost.gateway.api.replies import Reply

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message. Only text is supported."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: Name | None = None
    tool_calls: Any = None
    function_call: Any = None


class ChatRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: Tokens | None = None

    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    continue_final_message: Any = None
    add_generation_prompt: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None

    def unsupported(self) -> str | None:
        if self.tool_choice not in (None, "none", "auto"):
            return "tool_choice"
        if self.function_call not in (None, "none", "auto"):
            return "function_call"
        if self.modalities not in (None, [], ["text"]):
            return "modalities"
        if self.add_generation_prompt not in (None, True):
            return "add_generation_prompt"
        if self.continue_final_message not in (None, False):
            return "continue_final_message"
        for name in ("tools", "functions", "top_logprobs", "audio", "web_search_options"):
            if getattr(self, name) not in (None, [], 0, {}):
                return name
        return super().unsupported()

    def output_limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().output_limit()

    def turns(self) -> tuple[Turn, ...]:
        """Who said what, each as one text.

        `developer` becomes `system`, which is what templates know.

        Raises:
            InvalidRequestError: a part that is no text, a tool message, an absent content.
        """
        return tuple(_turn(i, message) for i, message in enumerate(self.messages))


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, ChatRequest)
    generation = request.generation(request.turns(), "messages", n_vocab, usual_tokens=None)
    return Parsed(generation, request.include_usage(), request.tier())


def _turn(index: int, message: Message) -> Turn:
    where = f"messages[{index}]"
    if message.role in ("tool", "function") or message.tool_calls or message.function_call:
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


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: str


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: str | None


class ChatReply(Reply):
    """The answer: a message, or chunks that add up to one."""

    id_prefix: ClassVar[str] = "chatcmpl"
    whole_kind: ClassVar[str] = "chat.completion"
    chunk_kind: ClassVar[str] = "chat.completion.chunk"

    def opening(self) -> bytes:
        return self._event(ChatDelta(role="assistant", content=""))

    def text(self, text: str) -> bytes:
        return self._event(ChatDelta(content=text))

    def whole_choice(self, text: str, finish: wire.Finish) -> Any:
        return ChatChoice(0, ChatMessage("assistant", text), None, str(finish.reason))

    def last_chunk(self, reason: str) -> bytes:
        return self._event(ChatDelta(), reason)

    def _event(self, delta: ChatDelta, reason: str | None = None) -> bytes:
        return self.chunk(ChatChunkChoice(0, delta, None, reason))
