"""Requests that are answered without the model's computing anything: their bodies. Pure.

llama-server's /tokenize, /detokenize and /apply-template; Anthropic's count_tokens is in
messages.py. The answers are made in gateway/prompt/questions.py, which knows the vocabulary.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import chat, parameters
from lbhost.gateway.api.generation import Generation

MAX_TOKENS = 1_000_000
"""In one question: as many as the longest prompt may have, roughly."""

MAX_TEXT = 256 * 1024
"""Characters to tokenise in one question: 4 MB kept a helper busy for 27 s."""


class TokenizeRequest(msgspec.Struct, frozen=True):
    """POST /tokenize."""

    content: Annotated[str, Meta(max_length=MAX_TEXT)]
    add_special: bool | None = None
    """Put the BOS before it, if the model wants one."""
    parse_special: bool | None = None
    """Read "<|im_end|>" as that token. Default: yes."""
    with_pieces: bool | None = None
    """Tell each token's text too."""


class DetokenizeRequest(msgspec.Struct, frozen=True):
    """POST /detokenize."""

    tokens: Annotated[list[int], Meta(max_length=MAX_TOKENS)]


class TokenPiece(msgspec.Struct, frozen=True):
    """A token and what it stands for."""

    id: int
    piece: str | list[int]
    """Text; bytes where they are only a part of a character."""


class Tokens(msgspec.Struct, frozen=True):
    """The answer to TokenizeRequest; with pieces where they were asked for."""

    tokens: list[int | TokenPiece]


class Content(msgspec.Struct, frozen=True):
    """The answer to DetokenizeRequest."""

    content: str


class Rendered(msgspec.Struct, frozen=True):
    """A conversation as the model reads it."""

    prompt: str


class Counted(msgspec.Struct, frozen=True):
    """What a message would cost."""

    input_tokens: int


def tokenize(body: bytes) -> TokenizeRequest:
    """Raises InvalidRequestError."""
    return parameters.decode(body, TokenizeRequest)


def detokenize(body: bytes, n_vocab: int) -> list[int]:
    """Token ids below n_vocab. Raises InvalidRequestError."""
    tokens = parameters.decode(body, DetokenizeRequest).tokens
    if any(not 0 <= token < n_vocab for token in tokens):
        raise InvalidRequestError(
            f"tokens: token ids are whole numbers from 0 to {n_vocab - 1}", param="tokens"
        )
    return tokens


def apply_template(body: bytes, n_vocab: int) -> Generation:
    """A chat request, its tools and template options included. Raises InvalidRequestError."""
    return chat.parse(body, n_vocab).generation
