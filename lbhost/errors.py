"""Every error that lbhost raises on purpose.

Each class knows the HTTP status it becomes, the OpenAI `type` and `code`, and whether
trying again can help. Foreign exceptions are mapped to one of these at the boundary where
they enter. Owns no logic; imports nothing of lbhost.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class LbhostError(Exception):
    """Base of all. `message` is one line for a person and says what to do."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later. False makes us send `x-should-retry: false`."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """One of a few words, for metrics and logs: the code, or "invalid_request" and the like."""
        words = re.findall("[A-Z][a-z]+", type(self).__name__.removesuffix("Error"))
        return self.code or "_".join(words).lower()

    def body(self) -> dict[str, Any]:
        """The OpenAI error object: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


# --- the client's fault -----------------------------------------------------------------


class InvalidRequestError(LbhostError):
    """Malformed JSON or UTF-8, a wrong type, a number out of range."""

    status = 400
    type = "invalid_request_error"


class ContextLengthError(InvalidRequestError):
    """Prompt plus output does not fit a slot's context."""

    code = "context_length_exceeded"


class UnprocessableError(InvalidRequestError):
    """Well-formed but not something this server can do (a chat template that refuses, say)."""

    status = 422


class PromptError(UnprocessableError):
    """Preparing this prompt ended the process that did it, by its limits or by a fault."""

    code = "prompt_failed"


class RenderLimitError(UnprocessableError):
    """The chat template takes too long for these messages, or makes too long a text of them."""


class UnauthorizedError(LbhostError):
    """No API key, or the wrong one."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenError(LbhostError):
    """Known or not, this client may not come in this way."""

    status = 403
    type = "permission_error"


class HostNotAllowedError(ForbiddenError):
    """The request's Host is no name of this server: DNS rebinding looks like that."""

    code = "host_not_allowed"


class OriginNotAllowedError(ForbiddenError):
    """A web page of somewhere else sent the request."""

    code = "origin_not_allowed"


class ModelNotAllowedError(ForbiddenError):
    """The API key is good, but not for this model."""

    code = "model_not_allowed"


class TierNotAllowedError(ForbiddenError):
    """The API key is good, but not for this service tier."""

    code = "service_tier_not_allowed"


class NotFoundError(LbhostError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFoundError(NotFoundError):
    """The request names a model that is not served here."""

    code = "model_not_found"


class WorkerNotFoundError(NotFoundError):
    """An admin request names a worker id that does not exist."""

    code = "worker_not_found"


class MethodNotAllowedError(LbhostError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class ClientTimeoutError(LbhostError):
    """The client was too slow in sending its headers or body."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class ConflictError(LbhostError):
    """An admin request that the worker's present state does not allow."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class RequestNotFoundError(NotFoundError):
    """An admin request names a request that does not run or wait."""

    code = "request_not_found"


class CancelledError(LbhostError):
    """An operator has ended this request."""

    status = 410
    type = "invalid_request_error"
    code = "request_cancelled"


class PayloadTooLargeError(LbhostError):
    """The body is over `max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class UnsupportedMediaTypeError(LbhostError):
    """The body is not application/json."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadersTooLargeError(LbhostError):
    """Request line and headers are over `max_header_bytes`, or there are too many."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


# --- the server's state -----------------------------------------------------------------


class RateLimitError(LbhostError):
    """The API key has made its requests of this minute, or has as many at once as it may."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retryable = True


class TokenRateLimitError(RateLimitError):
    """The API key has had its tokens of this minute."""

    type = "tokens"


class OverLimitError(RateLimitError):
    """This request alone asks for more answers at once than its API key may have."""

    retryable = False


class OverTokenLimitError(TokenRateLimitError):
    """This request alone is over what its API key may have in a minute."""

    retryable = False


class QueueFullError(LbhostError):
    """The bounded queue is full: shed load now, instead of answering too late."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retryable = True


class TooLateError(QueueFullError):
    """By what is waiting already the request would not be done, or not even begun, in time."""

    code = "too_late"


class TooSlowError(LbhostError):
    """Even alone the request would not be done in time: a later attempt would not either."""

    status = 503
    type = "server_error"
    code = "deadline_unreachable"


class NotReadyError(LbhostError):
    """No worker can take requests, or the server is shutting down."""

    status = 503
    type = "server_error"
    code = "not_ready"
    retryable = True


class GatewaySilentError(LbhostError):
    """An admin request that only the gateway can answer, and it did not in time."""

    status = 503
    type = "server_error"
    code = "gateway_silent"
    retryable = True


class DeadlineError(LbhostError):
    """The request waited, or ran, longer than it may."""

    status = 503
    type = "server_error"
    code = "deadline_exceeded"
    retryable = True


class WorkerLostError(LbhostError):
    """The worker died under the request, and it could not be moved."""

    status = 503
    type = "server_error"
    code = "worker_lost"
    retryable = True


class QueryOfDeathError(LbhostError):
    """Workers end when they compute this request: it is not tried again."""

    status = 500
    type = "server_error"
    code = "query_of_death"


class EngineError(LbhostError):
    """The engine gave up on this request (no KV room, a failed batch)."""

    status = 500
    type = "server_error"
    code = "engine_error"


# --- start-up and inside ----------------------------------------------------------------


class UsageError(LbhostError):
    """A bad flag, environment variable or configuration key. The CLI exits with 2."""


class StartupError(LbhostError):
    """The server cannot start: port in use, bad model, runtime dir taken. Exits with 1."""


class ModelFileError(StartupError):
    """The model is missing, truncated, or not a GGUF that llama.cpp can load."""


class AdapterFileError(ModelFileError):
    """A LoRA adapter is missing, damaged, or for another model."""

    def __init__(self, message: str, place: int) -> None:
        """`place`: which of the model's adapters, from 0 on."""
        super().__init__(message)
        self.place = place


class ModelDamagedError(ModelFileError):
    """What is in the file cannot be: it is no GGUF, cut off, or broken. The CLI exits with 2."""


class ModelChangedError(ModelFileError):
    """The model's file is another one than when the server started."""


class TuningError(LbhostError):
    """A measurement of the box could not be made. `serve` goes on without; `tune` exits with 1."""


class ServerGoneError(LbhostError):
    """A client command found no running server on the runtime dir. Exits with 1."""


class OtherVersionError(LbhostError):
    """The running server is of another lbhost, and its answers cannot be read. Exits with 1."""


class TooLongInlineError(LbhostError):
    """The gateway itself must not work on this prompt; a helper process may. Never seen outside."""


class HelperGoneError(LbhostError):
    """A prompt helper ended, or is of no use any more: start another."""


class WireError(LbhostError):
    """A peer process broke the protocol: oversized or undecodable frame. Drop the link."""


class StateError(LbhostError):
    """A KV state that cannot be used: what it holds must be computed."""
