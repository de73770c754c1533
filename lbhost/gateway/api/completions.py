"""OpenAI's plain completions: their bodies and their answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.generation import Parsed
from lbhost.gateway.api.parameters import Parameters
from lbhost.gateway.api.replies import Reply

USUAL_TOKENS = 16
"""Default max_tokens, as OpenAI has it."""


class CompletionRequest(Parameters, frozen=True, kw_only=True):
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


def parse(body: bytes, n_vocab: int) -> Parsed:
    """Raises InvalidRequestError."""
    request = parameters.parse(body, CompletionRequest)
    prompt = request.text_or_tokens(n_vocab)
    generation = request.generation(prompt, "prompt", n_vocab, usual_tokens=USUAL_TOKENS)
    return Parsed(generation, request.include_usage(), request.tier())


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class CompletionReply(Reply):
    """The answer: a text, or chunks that add up to one."""

    id_prefix: ClassVar[str] = "cmpl"
    whole_kind: ClassVar[str] = "text_completion"
    chunk_kind: ClassVar[str] = "text_completion"

    def opening(self) -> bytes:
        return b""

    def text(self, text: str) -> bytes:
        return self.chunk(TextChoice(0, text, None, None))

    def whole_choice(self, text: str, finish: wire.Finish) -> Any:
        return TextChoice(0, text, None, str(finish.reason))

    def last_chunk(self, reason: str) -> bytes:
        return self.chunk(TextChoice(0, "", None, reason))
