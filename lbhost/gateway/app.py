"""The HTTP application: routes, and what every answer has in common.

Every answer carries x-request-id, every error OpenAI's shape. Owns no state of requests.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lbhost.errors import (
    InvalidRequestError,
    LbhostError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    NotReadyError,
    UnauthorizedError,
)
from lbhost.gateway import metrics, replies
from lbhost.gateway.completions import Completions
from lbhost.gateway.dispatch import Dispatcher
from lbhost.gateway.intake import Intake
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.replies import Kind
from lbhost.gateway.traffic import Traffic

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Need no API key: whoever checks health should not have to know it."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

_json = msgspec.json.Encoder().encode


def build(
    *,
    intake: Intake,
    dispatcher: Dispatcher,
    traffic: Traffic,
    counters: Metrics,
    model: str,
    n_ctx: int,
    api_key: str | None,
) -> ASGIApp:
    """The application, ready for uvicorn."""
    pages = _Pages(dispatcher, counters, model, n_ctx)
    get: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
        ("/v1/models", pages.models),
        ("/v1/models/{model:path}", pages.one_model),
        ("/livez", pages.livez),
        ("/readyz", pages.readyz),
        ("/health", pages.readyz),
        ("/metrics", pages.metrics),
    ]
    routes = [Route(path, page, methods=["GET"]) for path, page in get]
    for path, kind in (
        ("/v1/chat/completions", Kind.CHAT),
        ("/v1/completions", Kind.COMPLETION),
    ):
        endpoint = Completions(kind, intake, dispatcher, traffic, model)
        routes.append(Route(path, endpoint, methods=["POST"]))
    app = Starlette(
        routes=routes,
        exception_handlers={
            LbhostError: _on_lbhost_error,
            HTTPException: _on_http_exception,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    return Edge(app, dispatcher, api_key)


class Edge:
    """Around everything: the request's id, the API key, and closing time."""

    def __init__(self, app: ASGIApp, dispatcher: Dispatcher, api_key: str | None) -> None:
        self._app = app
        self._dispatcher = dispatcher
        self._expected = f"Bearer {api_key}".encode() if api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = request_id_of(scope["headers"])
        scope["state"]["request_id"] = request_id
        own: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id.encode())]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own]
                if self._dispatcher.stopping:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        if self._authorised(scope):
            await self._app(scope, receive, send_with_id)
        else:
            error = UnauthorizedError("wrong or missing API key: send Authorization: Bearer KEY")
            await error_response(error)(scope, receive, send_with_id)

    def _authorised(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN_PATHS:
            return True
        given = next((v for name, v in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's own x-request-id if it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return new_request_id()


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)


def error_response(error: LbhostError) -> Response:
    """An error as the response to a request."""
    response = Response(replies.error_body(error), error.status, media_type="application/json")
    response.raw_headers += replies.error_headers(error)
    return response


class _Pages:
    """The endpoints that only tell."""

    def __init__(self, dispatcher: Dispatcher, counters: Metrics, model: str, n_ctx: int) -> None:
        self._dispatcher = dispatcher
        self._metrics = counters
        self._model = model
        self._card = {
            "id": model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "lbhost",
            "meta": {"n_ctx": n_ctx},
        }

    async def models(self, _: Request) -> Response:
        return _ok({"object": "list", "data": [self._card]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self._model:
            raise ModelNotFoundError(
                f"model {name[:100]!r} is not served here; {self._model!r} is", param="model"
            )
        return _ok(self._card)

    async def livez(self, _: Request) -> Response:
        return _ok({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        if self._dispatcher.ready():
            return _ok({"status": "ok"})
        why = "the server is shutting down" if self._dispatcher.stopping else "no worker is ready"
        raise NotReadyError(why, retry_after_s=1)

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})


def _ok(value: Any) -> Response:
    return Response(_json(value), media_type="application/json")


async def _on_lbhost_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LbhostError)
    response = error_response(error)
    worker = request.scope["state"].get("worker")
    if worker is not None:
        response.headers["x-lbhost-worker"] = str(worker)
    return response


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return error_response(NotFoundError(f"{where}: no such path"))
    if error.status_code == 405:
        response = error_response(MethodNotAllowedError(f"{where}: method not allowed"))
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response
    return error_response(InvalidRequestError(f"{where}: {error.detail}"))


async def _on_bug(_: Request, error: Exception) -> Response:
    """Ours. Starlette raises it again after the answer, so that uvicorn logs it."""
    return error_response(LbhostError("internal error"))
