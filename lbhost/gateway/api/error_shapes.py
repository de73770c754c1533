"""How an error looks to a client, by the path that it asked. Pure.

OpenAI's shape everywhere but on Anthropic's paths, whoever refuses: the application, or the
protocol and the access checks before it.
"""

from __future__ import annotations

import msgspec

from lbhost.errors import DeadlineError, LbhostError, NotReadyError
from lbhost.gateway.api.replies import error_body


class AnthropicProblem(msgspec.Struct, frozen=True):
    """Part of AnthropicError."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, frozen=True, tag="error"):
    """Why a request was not answered, as Anthropic's clients read it."""

    error: AnthropicProblem
    request_id: str


_encode = msgspec.json.Encoder().encode

ANTHROPIC_PATH = "/v1/messages"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def is_anthropics(path: str) -> bool:
    """Whether clients of Anthropic's API ask there."""
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def body(error: LbhostError, path: str, request_id: str) -> bytes:
    """The error as JSON, for a request to a path."""
    if is_anthropics(path):
        return _encode(of_anthropic(error, request_id))
    return error_body(error)


def of_anthropic(error: LbhostError, request_id: str) -> AnthropicError:
    """The error under Anthropic's names."""
    if isinstance(error, DeadlineError):
        kind = "timeout_error"
    elif isinstance(error, NotReadyError):
        kind = "overloaded_error"
    else:
        usual = "api_error" if error.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(error.status, usual)
    return AnthropicError(AnthropicProblem(kind, error.message), request_id)
