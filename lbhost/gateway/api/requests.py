"""The requests that clients send, as OpenAI defines them, checked field by field.

Pure: bytes in, a frozen struct out, or an InvalidRequestError that names the parameter. Every
number has bounds. Unknown fields are ignored, as OpenAI does; known ones that we do not
support are refused where ignoring them would change what the answer means.
"""

from __future__ import annotations

import random
import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError

MAX_DEPTH = 32
"""Nesting of a body: msgspec recurses, and no request needs more than six."""

MAX_STOPS = 16

_SEED_BITS = 32
"""Seeds are taken modulo 2 to the power of this."""

Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Tokens = Annotated[int, Meta(ge=1, le=1 << 30)]
Stop = Annotated[str, Meta(min_length=1, max_length=512)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
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


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of request have in common. null means "the default" everywhere."""

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
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1024)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool | None = None
    """Extension, for benchmarks: go on until max_tokens."""
    n: Annotated[int, Meta(ge=1, le=128)] | None = None

    # Looked at only to refuse them.
    logprobs: Any = None
    response_format: Any = None
    grammar: Any = None
    json_schema: Any = None

    def unsupported(self) -> str | None:
        """A parameter that would change the answer's meaning and that we cannot honour."""
        if self.n not in (None, 1):
            return "n"
        if self.logprobs is not None and self.logprobs is not False:
            return "logprobs"
        plain = isinstance(self.response_format, dict) and self.response_format == {"type": "text"}
        if self.response_format is not None and not plain:
            return "response_format"
        return "grammar" if self.grammar else "json_schema" if self.json_schema else None

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


class ChatRequest(Request, frozen=True, kw_only=True):
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

    def texts(self) -> list[dict[str, str]]:
        """The messages as a chat template takes them: role, content as one text, maybe name.

        `developer` becomes `system`, which is what templates know.

        Raises:
            InvalidRequestError: a part that is no text, a tool message, an absent content.
        """
        return [_as_text(i, message) for i, message in enumerate(self.messages)]


class CompletionRequest(Request, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str | list[int]]
    echo: Any = None
    suffix: Any = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None

    def unsupported(self) -> str | None:
        if self.echo not in (None, False):
            return "echo"
        if self.suffix not in (None, ""):
            return "suffix"
        if self.best_of not in (None, 1):
            return "best_of"
        return super().unsupported()

    def text_or_tokens(self, n_vocab: int) -> str | list[int]:
        """The one prompt: text, or token ids below n_vocab. Raises InvalidRequestError."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise InvalidRequestError(
                    "prompt: one prompt a request; send several requests", param="prompt"
                )
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt
        tokens = [token for token in prompt if isinstance(token, int) and 0 <= token < n_vocab]
        if len(tokens) != len(prompt):
            raise InvalidRequestError(
                f"prompt: token ids are whole numbers from 0 to {n_vocab - 1}", param="prompt"
            )
        return tokens


AnyRequest: TypeAlias = ChatRequest | CompletionRequest
R = TypeVar("R", ChatRequest, CompletionRequest)

_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatRequest, CompletionRequest)
}


def parse(body: bytes, kind: type[R]) -> R:
    """A checked request.

    Raises:
        InvalidRequestError: not JSON, not UTF-8, too deep, a wrong type, a number out of range,
            or something that this server does not support. `param` names the field.
    """
    check_depth(body)
    try:
        request: R = _decoders[kind].decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the body is not valid UTF-8") from error
    unsupported = request.unsupported()
    if unsupported is not None:
        raise InvalidRequestError(
            f"{unsupported}: this server does not support it", param=unsupported
        )
    return request


_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_depth(body: bytes) -> None:
    """Refuse nesting beyond MAX_DEPTH, in time linear in the body's size.

    Strings are cut out, then each pass takes away the innermost pairs of brackets.

    Raises:
        InvalidRequestError: too deep, or so unbalanced that it cannot be JSON.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    outside = b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    brackets = outside.translate(None, delete=_NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    if brackets:
        raise InvalidRequestError(
            f"the body is nested more than {MAX_DEPTH} deep, or its brackets do not match"
        )


def _as_text(index: int, message: Message) -> dict[str, str]:
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
    text = {"role": role, "content": content}
    if message.name is not None:
        text["name"] = message.name
    return text


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
