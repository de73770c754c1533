"""OpenAI's chat completions: their bodies and their answers. Pure."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Parsed, ToolUse, Turn
from lbhost.gateway.api.parameters import Parameters, Tokens, only
from lbhost.gateway.api.reading import AnswerReader
from lbhost.gateway.api.replies import Reply
from lbhost.gateway.api.tools.calls import Arguments, CallBegun, Event, Said, Thought
from lbhost.gateway.api.tools.request import (
    ToolCalls,
    ToolChoice,
    ToolSpecs,
    past_calls,
    tool_use,
)
from lbhost.gateway.scheduling.deltas import TextDelta

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)")]


class TemplateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may tell the model's chat template; never anything else."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: Annotated[str, Meta(pattern=r"^[a-z]{1,16}$(?!\n)")] | None = None

    def given(self) -> dict[str, Any]:
        """Those that were set."""
        return {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        }


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message. Only text is supported."""

    type: Annotated[str, only("text")]
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: Name | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    reasoning_content: str | None = None
    """Extension, as other servers have it: what the assistant thought before it answered."""
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

    tools: ToolSpecs | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """Told to the chat template; few ask for it."""
    chat_template_kwargs: TemplateOptions | None = None
    """Extension, as other servers have it."""
    chat_template: Annotated[Any, only()] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    modalities: Annotated[Any, only([], ["text"])] = None
    audio: Annotated[Any, only({})] = None
    web_search_options: Annotated[Any, only()] = None

    def unsupported(self) -> str | None:
        if self.function_call not in (None, "none", "auto"):
            return "function_call"
        if self.modalities not in (None, [], ["text"]):
            return "modalities"
        for name in ("functions", "audio", "web_search_options", "chat_template"):
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
        self.check_bound_once(self.tool_use())
        if not self.continue_final_message:
            return
        if self.tool_use() is not None:
            raise InvalidRequestError(
                "continue_final_message: not together with tools", param="continue_final_message"
            )
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

    def tool_use(self) -> ToolUse | None:
        """Raises InvalidRequestError: see tools/request.py."""
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    def template_options(self) -> dict[str, Any]:
        """What the chat template is told beside the conversation."""
        effort, given = self.reasoning_effort, self.chat_template_kwargs
        options: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
        return options if given is None else {**options, **given.given()}

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
        tools=request.tool_use(),
        template_options=request.template_options(),
        reads=not request.continue_final_message,
    )
    return Parsed(generation, request.style(logprobs=bool(request.logprobs)))


def _turn(index: int, message: Message) -> Turn:
    where = f"messages[{index}]"
    if message.function_call or message.role == "function":
        raise InvalidRequestError(
            f"{where}: functions are called tools by now: use tool_calls and role tool",
            param="messages",
        )
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequestError(f"{where}.tool_calls: only the assistant calls", param="messages")
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise InvalidRequestError(
                    f"{where}.content: only text parts are supported, not {part.type[:40]!r}",
                    param="messages",
                )
        content = "\n".join(part.text or "" for part in content)
    if content is None and message.tool_calls:
        content = ""
    if content is None:
        raise InvalidRequestError(f"{where}.content: must be given", param="messages")
    role = "system" if message.role == "developer" else message.role
    return Turn(
        role,
        content,
        message.name,
        past_calls(message.tool_calls, where),
        message.tool_call_id if role == "tool" else None,
        message.reasoning_content if role == "assistant" else None,
    )


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
        self._shown: dict[int, tuple[str, list[int]]] = {}
        """Text and bytes of tokens, once shown: log-probabilities name the same ones all over."""

    def opening(self, index: int) -> bytes:
        return self._event(index, ChatDelta(role="assistant", content=""))

    def text(self, index: int, delta: TextDelta) -> bytes:
        logprobs = self._logprobs(delta)
        if self.style.reading is None:
            return self._event(index, ChatDelta(content=delta.text), logprobs)
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

    # --- thoughts and calls -----------------------------------------------------------

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
