"""The OpenAPI 3.1 document of the endpoints that generate, made from the types that read bodies and
write answers: what it says is what they do. Owns no endpoint.

A dialect adds itself by an Operation (api/dialects.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from lbhost import __version__
from lbhost.errors import (
    ClientTimeoutError,
    DeadlineError,
    EngineError,
    ForbiddenError,
    InvalidRequestError,
    LbhostError,
    ModelNotFoundError,
    PayloadTooLargeError,
    QueueFullError,
    UnauthorizedError,
    UnprocessableError,
    UnsupportedMediaTypeError,
)
from lbhost.gateway.api.dialects import Operation

Schema: TypeAlias = dict[str, Any]

_ERRORS: tuple[type[LbhostError], ...] = (
    InvalidRequestError,
    UnauthorizedError,
    ForbiddenError,
    ModelNotFoundError,
    ClientTimeoutError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    UnprocessableError,
    QueueFullError,
    EngineError,
    DeadlineError,
)
"""One for each status that a well-formed HTTP request may get."""

JSON = "application/json"
EVENTS = "text/event-stream"


class Problem(msgspec.Struct, frozen=True):
    """Part of ErrorBody."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Why a request was not answered, and what to do about it."""

    error: Problem


def document(operations: Sequence[Operation], model: str) -> dict[str, Any]:
    """The whole document, ready to be encoded as JSON; of a server of one model."""
    types = [kind for one in operations for kind in (one.request, one.answer, one.chunk)]
    references, schemas = msgspec.json.schema_components(
        [ErrorBody, *types], ref_template="#/components/schemas/{name}"
    )
    failure, *ours = references
    for one in operations:
        schemas[one.request.__name__]["properties"]["model"] = {"enum": [model, None]}
    each = zip(operations, ours[::3], ours[1::3], ours[2::3], strict=True)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lbhost",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            one.path: {"post": _operation(one, request, answer, chunk, failure)}
            for one, request, answer, chunk in each
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # a key is asked for where the server was given one
        "security": [{}, {"key": []}],
    }


def _operation(
    one: Operation, request: Schema, answer: Schema, chunk: Schema, failure: Schema
) -> dict[str, Any]:
    ok = {
        "description": "The answer; with `stream: true` events, each a chunk, ending in [DONE] or "
        "in an error.",
        "content": {
            JSON: {"schema": answer},
            EVENTS: {"schema": {"type": "string"}, "x-event-data": chunk},
        },
    }
    errors = {
        str(error.status): {
            "description": (error.__doc__ or error.__name__).strip(),
            "content": {JSON: {"schema": failure}},
        }
        for error in _ERRORS
    }
    return {
        "operationId": one.name,
        "summary": one.summary,
        "requestBody": {"required": True, "content": {JSON: {"schema": request}}},
        "responses": {"200": ok, **errors},
    }
