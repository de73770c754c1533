"""The ways in which clients ask for an answer, and where each is understood. Pure.

A new one is a module with `parse` and a writer.Writer, a Kind, its Dialect here, and its Operation
in operations.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lbhost.gateway.api import (
    chat,
    chat_reply,
    completions,
    messages,
    messages_reply,
    native,
    responses,
    responses_reply,
)
from lbhost.gateway.api.generation import Parsed
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.api.writer import Writer


class Dialect(msgspec.Struct, frozen=True):
    """How one kind of request is read, and its answer written."""

    paths: tuple[str, ...]
    """The first is the one to be documented."""
    parse: Callable[[bytes, int], Parsed]
    reply: Callable[..., Writer]
    """Its arguments are Reply's."""


DIALECTS = {
    Kind.CHAT: Dialect(
        ("/v1/chat/completions", "/chat/completions"), chat.parse, chat_reply.ChatReply
    ),
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


def parse(body: bytes, kind: Kind, n_vocab: int) -> Parsed:
    """A checked request.

    Args:
        n_vocab: token ids in it must be below.

    Raises:
        InvalidRequestError: not JSON, not UTF-8, too deep, a wrong type, a number out of range,
            or something that this server does not support. `param` names the field.
    """
    return DIALECTS[kind].parse(body, n_vocab)
