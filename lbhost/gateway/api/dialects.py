"""The ways in which clients ask for an answer, and where each is understood. Pure.

A new one is a module with `parse` and a writer.Writer, a Kind, and its Dialect and Operation here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from lbhost.gateway.api import (
    chat,
    completions,
    messages,
    messages_reply,
    native,
    responses,
    responses_reply,
)
from lbhost.gateway.api.generation import Parsed
from lbhost.gateway.api.replies import Completion, Kind
from lbhost.gateway.api.writer import Writer


class Dialect(msgspec.Struct, frozen=True):
    """How one kind of request is read, and its answer written."""

    paths: tuple[str, ...]
    """The first is the one to be documented."""
    parse: Callable[[bytes, int], Parsed]
    reply: Callable[..., Writer]
    """Its arguments are Reply's."""


class Operation(msgspec.Struct, frozen=True):
    """An endpoint as the OpenAPI document has it (http/openapi.py)."""

    name: str
    summary: str
    path: str
    request: Any
    """The type of its bodies; those of its answers, and of the events of streamed ones."""
    answer: Any
    chunk: Any


DIALECTS = {
    Kind.CHAT: Dialect(("/v1/chat/completions", "/chat/completions"), chat.parse, chat.ChatReply),
    Kind.COMPLETION: Dialect(
        ("/v1/completions", "/completions"), completions.parse, completions.CompletionReply
    ),
    Kind.RESPONSES: Dialect(
        ("/v1/responses", "/responses"), responses.parse, responses_reply.ResponsesReply
    ),
    Kind.MESSAGES: Dialect(("/v1/messages",), messages.parse, messages_reply.MessagesReply),
    Kind.NATIVE: Dialect(("/completion",), native.parse, native.NativeReply),
    Kind.INFILL: Dialect(("/infill",), native.parse_infill, native.NativeReply),
}

OPERATIONS = (
    Operation(
        "createChatCompletion",
        "Answers to a conversation",
        DIALECTS[Kind.CHAT].paths[0],
        chat.ChatRequest,
        Completion[chat.ChatChoice],
        Completion[chat.ChatChunkChoice],
    ),
    Operation(
        "createCompletion",
        "Continuations of texts",
        DIALECTS[Kind.COMPLETION].paths[0],
        completions.CompletionRequest,
        Completion[completions.TextChoice],
        Completion[completions.TextChoice],
    ),
)


def parse(body: bytes, kind: Kind, n_vocab: int) -> Parsed:
    """A checked request.

    Args:
        n_vocab: token ids in it must be below.

    Raises:
        InvalidRequestError: not JSON, not UTF-8, too deep, a wrong type, a number out of range,
            or something that this server does not support. `param` names the field.
    """
    return DIALECTS[kind].parse(body, n_vocab)
