"""The HTTP application: routes, and what every answer has in common.

Every answer carries x-request-id, every error the shape of its path. Owns no state of requests.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lbhost.config import Settings
from lbhost.errors import (
    InvalidRequestError,
    LbhostError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    NotReadyError,
)
from lbhost.gateway import metrics
from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.endpoint import Completions
from lbhost.gateway.api.operations import OPERATIONS, PAGES
from lbhost.gateway.api.pages import Health, ModelCard, ModelList, ModelMeta
from lbhost.gateway.api.parameters import MAX_CHOICES
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.http import openapi
from lbhost.gateway.http.access import Access, error_response
from lbhost.gateway.http.hosts import Hosts, Origins
from lbhost.gateway.http.native_pages import NativePages
from lbhost.gateway.keyring import Keyring
from lbhost.gateway.live import Live
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.prompt import inputs
from lbhost.gateway.prompt.intake import Intake
from lbhost.gateway.prompt.prompter import Vocabulary
from lbhost.gateway.prompt.questions import PATHS
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.fairness import most_at_once
from lbhost.gateway.scheduling.sessions import Sessions
from lbhost.gateway.vector_cache import VectorCache

_json = msgspec.json.Encoder().encode


def build(
    *,
    intake: Intake,
    dispatcher: Dispatcher,
    sessions: Sessions,
    vocab: Vocabulary,
    counters: Metrics,
    model: str,
    pieces: Callable[[int], bytes],
    cache: VectorCache,
    live: Live,
    n_ctx: int,
    settings: Settings,
    keyring: Keyring,
    on_loopback: bool,
) -> ASGIApp:
    """The application, ready for uvicorn.

    Args:
        pieces: what a token stands for, special ones written out.
        on_loopback: only this machine can reach it.
    """
    pages = _Pages(dispatcher, counters, model, n_ctx)
    native = NativePages(sessions, vocab, model, n_ctx)
    get: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
        ("/v1/models", pages.models),
        ("/models", pages.models),
        ("/v1/models/{model:path}", pages.one_model),
        ("/livez", pages.livez),
        ("/readyz", pages.readyz),
        ("/health", pages.readyz),
        ("/v1/health", pages.readyz),
        ("/props", native.props),
        ("/slots", native.slots),
        ("/metrics", pages.metrics),
        ("/openapi.json", pages.openapi),
    ]
    routes = [Route(path, page, methods=["GET"]) for path, page in get]
    places = settings.queue_size
    if settings.keys_file is not None:
        places = most_at_once(places)
    taking = {kind: dialect.paths for kind, dialect in DIALECTS.items()} | PATHS | inputs.PATHS
    for kind, paths in taking.items():
        endpoint = Completions(
            kind,
            intake,
            dispatcher,
            model,
            pieces,
            cache,
            live,
            time_limit_s=settings.request_timeout_s,
            most_answers=min(MAX_CHOICES, places),
        )
        routes += [Route(path, endpoint, methods=["POST"]) for path in paths]
    app = Starlette(
        routes=routes,
        exception_handlers={
            LbhostError: _on_lbhost_error,
            HTTPException: _on_http_exception,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    return Access(
        app,
        dispatcher,
        keyring=keyring,
        share_prefixes=settings.share_prefixes,
        hosts=Hosts(settings, on_loopback=on_loopback),
        origins=Origins(settings),
    )


class _Pages:
    """The endpoints that only tell."""

    def __init__(self, dispatcher: Dispatcher, counters: Metrics, model: str, n_ctx: int) -> None:
        self._dispatcher = dispatcher
        self._metrics = counters
        self._model = model
        self._openapi = _json(openapi.document(OPERATIONS, PAGES, model))
        self._card = ModelCard(model, int(time.time()), ModelMeta(n_ctx))

    async def models(self, request: Request) -> Response:
        account = _exchange(request).account
        may = account is None or account.may_use(self._model)
        return _ok(ModelList([self._card] if may else []))

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self._model:
            raise ModelNotFoundError(
                f"model {name[:100]!r} is not served here; {self._model!r} is", param="model"
            )
        account = _exchange(request).account
        if account is not None:
            account.check_model(name)
        return _ok(self._card)

    async def livez(self, _: Request) -> Response:
        return _ok(Health())

    async def readyz(self, request: Request) -> Response:
        if self._dispatcher.ready():
            return _ok(Health())
        why = "the server is shutting down" if self._dispatcher.stopping else "no worker is ready"
        # An answer to what was asked, no refusal: probes are not counted.
        return error_response(NotReadyError(why, retry_after_s=1), _exchange(request))

    async def openapi(self, _: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})


def _ok(value: Any) -> Response:
    return Response(_json(value), media_type="application/json")


async def _on_lbhost_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LbhostError)
    response = _refuse(request, error)
    worker = _exchange(request).details.get("worker")
    if worker is not None:
        response.headers["x-lbhost-worker"] = str(worker)
    return response


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        return _refuse(request, NotFoundError(f"{where}: no such path"))
    if error.status_code == 405:
        response = _refuse(request, MethodNotAllowedError(f"{where}: method not allowed"))
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response
    return _refuse(request, InvalidRequestError(f"{where}: {error.detail}"))


async def _on_bug(request: Request, error: Exception) -> Response:
    """Ours. Starlette raises it again after the answer, so that uvicorn logs it."""
    return _refuse(request, LbhostError("internal error"))


def _refuse(request: Request, error: LbhostError) -> Response:
    exchange = _exchange(request)
    exchange.fail(error)
    return error_response(error, exchange)


def _exchange(request: Request) -> Exchange:
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange
