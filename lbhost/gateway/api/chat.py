"""OpenAI's chat completions: their bodies. Pure; the answers are in chat_reply.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Parsed, ToolUse, Turn
from lbhost.gateway.api.parameters import Parameters, Tokens, only
from lbhost.gateway.api.tools.request import (
    ToolCalls,
    ToolChoice,
    ToolSpecs,
    past_calls,
    tool_use,
)

Name = Annotated[str, Meta(pattern=r"^[^\s<|\\/>]{1,128}$(?!\n)")]
"""As OpenAI has it; as long as the functions' names that results of calls come under."""


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

    type: Annotated[str, only("text", "refusal")]
    text: str | None = None
    refusal: str | None = None
    """The assistant's, which is text to the model."""


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: Name | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None
    reasoning_content: str | None = None
    """Extension, as other servers have it: what the assistant thought before it answered."""
    refusal: str | None = None
    """What an assistant said that has no content."""
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
        parts = [_text_of(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        content = "\n".join(parts)
    if content is None and message.role == "assistant":
        content = message.refusal or ("" if message.tool_calls else None)
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


def _text_of(part: ContentPart, where: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None:
        known = part.type in ("text", "refusal")
        why = f"{part.type} must be given" if known else f"only text, not {part.type[:40]!r}"
        raise InvalidRequestError(f"{where}: {why}", param="messages")
    return text
