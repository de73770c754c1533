"""The OpenAPI 3.1 document of the endpoints, made from the types that read bodies and write
answers: what it says is what they do. Owns no endpoint.

An endpoint adds itself by an Operation (api/operations.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    NotReadyError,
    PayloadTooLargeError,
    QueueFullError,
    UnauthorizedError,
    UnprocessableError,
    UnsupportedMediaTypeError,
)
from lbhost.gateway.api import error_shapes
from lbhost.gateway.api.error_shapes import AnthropicError
from lbhost.gateway.api.operations import Operation, Page

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

_ERRORS_OF_PAGES: tuple[type[LbhostError], ...] = (
    UnauthorizedError,
    ForbiddenError,
    EngineError,
    NotReadyError,
)

JSON = "application/json"
EVENTS = "text/event-stream"
DONE = "[DONE]"
"""What some streams end with is no JSON."""


class Problem(msgspec.Struct, frozen=True):
    """Part of ErrorBody."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Why a request was not answered, and what to do about it."""

    error: Problem


def document(
    operations: Sequence[Operation], pages: Sequence[Page], models: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The whole document, ready to be encoded as JSON.

    Args:
        models: the names that a body may have in `model`, by the path that it is sent to.
    """
    types = [kind for one in operations for kind in (one.request, one.answer, *one.chunks)]
    types += [page.answer for page in pages]
    references, schemas = msgspec.json.schema_components(
        [ErrorBody, AnthropicError, *types], ref_template="#/components/schemas/{name}"
    )
    openais, anthropics, *ours = references
    rest = iter(ours)
    paths: dict[str, Any] = {}
    for one in operations:
        request, answer = next(rest), next(rest)
        chunks = [next(rest) for _ in one.chunks]
        failure = anthropics if error_shapes.is_anthropics(one.path) else openais
        paths[one.path] = {"post": _operation(one, request, answer, chunks, failure)}
        properties = schemas[request["$ref"].rpartition("/")[2]]["properties"]
        if "model" in properties:
            properties["model"] = {"enum": [*models[one.path], None]}
    for page in pages:
        paths[page.path] = {"get": _page(page, next(rest), openais)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lbhost",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # a key is asked for where the server was given one
        "security": [{}, {"key": []}],
    }


def _operation(
    one: Operation, request: Schema, answer: Schema, chunks: list[Schema], failure: Schema
) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": answer}}
    description = "The answer."
    if chunks:
        failing = [] if one.fails_as_event else [failure]
        content[EVENTS] = {"schema": _event([*chunks, *failing], one.last)}
        description = (
            f"The answer; with `stream: true` events, ending in {one.last}, or in an error."
        )
    ok = {"description": description, "content": content}
    errors = _errors(_ERRORS, failure)
    return {
        "operationId": one.name,
        "summary": one.summary,
        "requestBody": {"required": True, "content": {JSON: {"schema": request}}},
        "responses": {"200": ok, **errors},
    }


def _event(chunks: list[Schema], last: str) -> Schema:
    """One event of a stream, as makers of clients and tests read documents before OpenAPI 3.2."""
    chunk = {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": chunks}}
    data = {"anyOf": [chunk, {"const": last}]} if last == DONE else chunk
    properties = {"event": {"type": "string"}, "data": data}
    return {"type": "object", "properties": properties, "required": ["data"]}


def _page(page: Page, answer: Schema, failure: Schema) -> dict[str, Any]:
    ok = {"description": "The answer.", "content": {JSON: {"schema": answer}}}
    described: dict[str, Any] = {
        "operationId": page.name,
        "summary": page.summary,
        "responses": {"200": ok, **_errors(_ERRORS_OF_PAGES, failure)},
    }
    if page.by_model:
        named = {"name": "model", "in": "query", "schema": {"type": "string"}}
        described["parameters"] = [named]
        described["responses"] |= _errors((ModelNotFoundError,), failure)
    return described


def _errors(errors: Sequence[type[LbhostError]], failure: Schema) -> dict[str, Any]:
    return {
        str(error.status): {
            "description": (error.__doc__ or error.__name__).strip(),
            "content": {JSON: {"schema": failure}},
        }
        for error in errors
    }
