"""OpenAI's responses: their bodies and their answers. Pure.

Nothing is kept between requests: whatever would refer to an earlier one is refused.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError, LbhostError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Parsed, Style, Turn
from lbhost.gateway.api.parameters import Parameters, Tokens
from lbhost.gateway.api.turns import merged
from lbhost.gateway.api.writer import OneAnswer, named_event

MAX_ITEMS = 10_000

_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


class Part(msgspec.Struct, frozen=True):
    """A part of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, frozen=True):
    """One item of the input: a message, or what an earlier answer brought."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None


class TextFormat(msgspec.Struct, frozen=True):
    """Of which form the answer is to be."""

    type: str


class TextOptions(msgspec.Struct, frozen=True):
    """How the answer is to be written."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """A hint that models without reasoning cannot follow; nothing follows from it here."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Parameters, frozen=True, kw_only=True):
    """POST /v1/responses. OpenAI's other sampling parameters are understood as in chats."""

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: (
        dict[
            Annotated[str, Meta(max_length=64)],
            Annotated[str, Meta(max_length=512)],
        ]
        | None
    ) = None
    include: list[str] | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    # Looked at only to refuse them.
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    tools: Any = None
    tool_choice: Any = None
    top_logprobs: Any = None

    def unsupported(self) -> str | None:
        if self.tools not in (None, []):
            return "tools"
        if self.tool_choice not in (None, "none", "auto"):
            return "tool_choice"
        if self.truncation == "auto":
            return "truncation"
        if self.top_logprobs not in (None, 0):
            return "top_logprobs"
        if "message.output_text.logprobs" in (self.include or ()):
            return "include"
        return "n" if self.n not in (None, 1) else super().unsupported()

    def check_stateless(self) -> None:
        """Raises InvalidRequestError: it wants something kept, or refers to what was."""
        for name in ("store", "background"):
            if getattr(self, name):
                raise InvalidRequestError(
                    f"{name}: this server keeps no responses; leave it out, or false", param=name
                )
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name) is not None:
                raise InvalidRequestError(
                    f"{name}: this server keeps no responses, conversations or prompts; "
                    "send the whole conversation in input",
                    param=name,
                )
        if self.text is not None and self.text.format is not None:
            kind = self.text.format.type
            if kind != "text":
                raise InvalidRequestError(
                    f"text.format: this server only writes text, not {kind[:40]!r}", param="text"
                )

    def output_limit(self) -> tuple[str, int | None]:
        if self.max_output_tokens is not None:
            return "max_output_tokens", self.max_output_tokens
        return super().output_limit()

    def turns(self) -> tuple[Turn, ...]:
        """Who said what, the instructions first; `developer` is `system` to templates.

        Raises:
            InvalidRequestError: an item that is no message, a part that is no text.
        """
        said = [Turn("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            said.append(Turn("user", self.input))
        else:
            # What the model thought before is not repeated to it.
            items = [(i, item) for i, item in enumerate(self.input) if item.type != "reasoning"]
            said += [_turn(i, item) for i, item in items]
        if not said:
            raise InvalidRequestError("input: it holds no message", param="input")
        return merged(said)

    def repeated(self) -> dict[str, Any]:
        """What the answer names again."""
        return {
            "instructions": self.instructions,
            "metadata": self.metadata or {},
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "max_output_tokens": self.output_limit()[1],
            "parallel_tool_calls": self.parallel_tool_calls is not False,
        }


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, ResponsesRequest)
    request.check_stateless()
    generation = request.generation(request.turns(), "input", n_vocab, usual_tokens=None)
    return Parsed(generation, Style(tier=request.tier(), repeated=request.repeated()))


def _turn(index: int, item: Item) -> Turn:
    where = f"input[{index}]"
    if item.type != "message":
        raise InvalidRequestError(
            f"{where}.type: this server takes messages, not {item.type[:40]!r}", param="input"
        )
    if item.role is None or item.content is None:
        missing = "role" if item.role is None else "content"
        raise InvalidRequestError(f"{where}.{missing}: must be given", param="input")
    role = "system" if item.role == "developer" else item.role
    if isinstance(item.content, str):
        return Turn(role, item.content)
    texts = [_text(f"{where}.content[{i}]", part) for i, part in enumerate(item.content)]
    return Turn(role, "\n".join(texts))


def _text(where: str, part: Part) -> str:
    text = part.text if part.type in _TEXT_PARTS else None
    if part.type == "refusal":
        text = part.refusal
    if text is None:
        known = part.type in _TEXT_PARTS or part.type == "refusal"
        why = "has no text" if known else f"only text is supported, not {part.type[:40]!r}"
        raise InvalidRequestError(f"{where}: {why}", param="input")
    return text


class ResponsesReply(OneAnswer):
    """The answer: a response, or events that add up to one."""

    def __init__(self, name: str, model: str, style: Style | None = None, **more: Any) -> None:
        super().__init__(name, model, style, **more)
        self._item_id = f"msg_{name}"
        self._text: list[str] = []
        self._sequence = 0
        self._begun = False
        self._response: dict[str, Any] = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "truncation": "disabled",
            "usage": None,
            **self.style.repeated,
        }
        if self.style.tier is not None:
            self._response["service_tier"] = self.style.tier

    def complete(self, text: str, finish: wire.Finish) -> Any:
        return self._ended(text, finish)

    def begin(self) -> bytes:
        return (
            self._announce()
            + self._event("output_item.added", output_index=0, item=self._item("in_progress"))
            + self._of_part("content_part.added", part=_part(""))
        )

    def piece(self, text: str) -> bytes:
        self._text.append(text)
        return self._of_part("output_text.delta", delta=text, logprobs=[])

    def end(self, finish: wire.Finish) -> bytes:
        text = "".join(self._text)
        response = self._ended(text, finish)
        return (
            self._of_part("output_text.done", text=text, logprobs=[])
            + self._of_part("content_part.done", part=_part(text))
            + self._event("output_item.done", output_index=0, item=response["output"][0])
            + self._event(str(response["status"]), response=response)
        )

    def failing(self, error: LbhostError) -> bytes:
        begun = b"" if self._begun else self._announce()
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        output = [self._item("incomplete", "".join(self._text))] if self._text else []
        failed = {
            **self._response,
            "status": "failed",
            "output": output,
            "error": {"code": code, "message": error.message},
        }
        return begun + self._event("failed", response=failed)

    def _announce(self) -> bytes:
        self._begun = True
        return self._event("created", response=self._response) + self._event(
            "in_progress", response=self._response
        )

    def _ended(self, text: str, finish: wire.Finish) -> dict[str, Any]:
        cut = finish.reason is wire.FinishReason.LENGTH
        status = "incomplete" if cut else "completed"
        return {
            **self._response,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._item(status, text)],
            "usage": _usage(finish),
        }

    def _item(self, status: str, text: str | None = None) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [] if text is None else [_part(text)],
        }

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        name = f"response.{kind}"
        event = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return named_event(name, event)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(finish: wire.Finish) -> dict[str, Any]:
    return {
        "input_tokens": finish.prompt_tokens,
        "input_tokens_details": {"cached_tokens": finish.cached_tokens},
        "output_tokens": finish.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    }
