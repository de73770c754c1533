"""The ways in which clients ask for an answer, and where each is understood. Pure.

A new one is a module with `parse` and a Reply, a Kind, and a line here and in http/routes.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lbhost.gateway.api import chat, completions
from lbhost.gateway.api.generation import Parsed
from lbhost.gateway.api.replies import Kind, Reply


class Dialect(msgspec.Struct, frozen=True):
    """How one kind of request is read, and its answer written."""

    path: str
    parse: Callable[[bytes, int], Parsed]
    reply: type[Reply]


DIALECTS = {
    Kind.CHAT: Dialect("/v1/chat/completions", chat.parse, chat.ChatReply),
    Kind.COMPLETION: Dialect("/v1/completions", completions.parse, completions.CompletionReply),
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
