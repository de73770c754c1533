"""From messages or text to prompt tokens.

Owns the chat template and the vocabulary's use. Everything here computes and nothing waits;
long texts take a second and belong into a thread (see intake.py).

Whoever writes "<|im_end|>" into a message must not be able to end it and to speak as somebody
else. Special texts inside messages are therefore swapped for marks before the template is
rendered, and tokenised as plain text afterwards; special texts of the template itself become
their tokens. The raw prompt of a plain completion is the client's own template: there all
special texts count.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from lbhost import log
from lbhost.errors import (
    ContextLengthError,
    InvalidRequestError,
    ModelFileError,
    UnprocessableError,
)
from lbhost.gateway.prompt.chat_template import ChatTemplate

RENDER_TIME_S = 2.0
"""Wall clock that a chat template may take."""

RENDER_CHARACTERS = 16 * 1024 * 1024
"""Longest text that a chat template may make."""

_CHECKED_FROM = 65536
"""Characters from which it is worth knowing that a text cannot fit before tokenising it."""


class Vocabulary(Protocol):
    """What is used of lbhost.llama.Vocab."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def bos_text(self) -> str | None: ...
    @property
    def eos_text(self) -> str | None: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def special_texts(self) -> tuple[str, ...]: ...

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...


class Prompter:
    """Makes prompts for one model."""

    def __init__(self, vocab: Vocabulary, n_ctx: int) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._bos_text = vocab.bos_text or ""
        self._template: ChatTemplate | None = None
        self._why_no_chat = "this model has no chat template; use /v1/completions"
        if vocab.chat_template is not None:
            try:
                self._template = ChatTemplate(
                    vocab.chat_template, bos_text=self._bos_text, eos_text=vocab.eos_text or ""
                )
            except ModelFileError as error:
                log.get().error("no chat completions", reason=error.message)
                self._why_no_chat = error.message
        texts = [re.escape(text) for text in vocab.special_texts]
        self._special = re.compile("|".join(texts)) if texts else None
        nonce = secrets.token_hex(8)
        self._mark = f"\ue000{nonce}.%d\ue001"
        self._marks = re.compile(f"\ue000{nonce}\\.(\\d+)\ue001")
        self._longest_piece: int | None = None
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation, ending where the answer begins.

        Raises:
            UnprocessableError: no chat template, or it refuses these messages.
            ContextLengthError: longer than any context.
        """
        if self._template is None:
            raise UnprocessableError(self._why_no_chat, param="messages")
        swapped: list[str] = []
        if self._special is not None:
            messages = [self._swap(message, swapped) for message in messages]
        text = self._template.render(messages, time_s=RENDER_TIME_S, characters=RENDER_CHARACTERS)
        self._check_length(text, "messages")
        with_bos = not (self._bos_text and text.startswith(self._bos_text))
        if not swapped:
            return self._vocab.tokenize(text, add_bos=with_bos, parse_special=True)
        tokens: list[int] = []
        for i, piece in enumerate(self._marks.split(text)):
            literal = i % 2 == 1
            tokens += self._vocab.tokenize(
                swapped[int(piece)] if literal else piece,
                add_bos=with_bos and i == 0,
                parse_special=not literal,
            )
        return tokens

    def text(self, text: str) -> list[int]:
        """Tokens of a plain completion's prompt; a lone BOS for an empty one.

        Raises:
            InvalidRequestError: empty, and the model has no BOS.
            ContextLengthError: longer than any context.
        """
        self._check_length(text, "prompt")
        tokens = self._vocab.tokenize(text, add_bos=True, parse_special=True)
        return tokens or self.empty()

    def empty(self) -> list[int]:
        """The prompt that says nothing. Raises InvalidRequestError: this model needs one."""
        if self._vocab.bos is None:
            raise InvalidRequestError("prompt: must not be empty", param="prompt")
        return [self._vocab.bos]

    def _swap(self, message: Mapping[str, str], swapped: list[str]) -> Mapping[str, str]:
        assert self._special is not None
        content = message["content"]
        if self._special.search(content) is None:
            return message

        def mark(found: re.Match[str]) -> str:
            swapped.append(found[0])
            return self._mark % (len(swapped) - 1)

        return {**message, "content": self._special.sub(mark, content)}

    def _check_length(self, text: str, param: str) -> None:
        """Refuse what cannot fit whatever its tokens are: tokenising 4 MB takes 2 s."""
        if len(text) < _CHECKED_FROM:
            return
        with self._lock:
            if self._longest_piece is None:
                self._longest_piece = max(
                    max(len(self._vocab.piece(token)) for token in range(self._vocab.n_tokens)),
                    max((len(text) for text in self._vocab.special_texts), default=1),
                )
        least = len(text) // self._longest_piece
        if least > self._n_ctx:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, this prompt is over {least}", param=param
            )
