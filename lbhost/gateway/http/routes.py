"""The HTTP application: routes, and what every answer has in common.

Every answer carries x-request-id, every error the shape of its path. Owns no state of requests.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lbhost.config import Settings
from lbhost.errors import (
    InvalidRequestError,
    LbhostError,
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
)
from lbhost.gateway.account import Account
from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.endpoint import Completions
from lbhost.gateway.api.operations import OPERATIONS, PAGES
from lbhost.gateway.api.pages import Health, ModelCard, ModelList, ModelMeta
from lbhost.gateway.api.parameters import MAX_CHOICES
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.catalogue import Catalogue, suits
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.exposition import CONTENT_TYPE, Exposition, View
from lbhost.gateway.http import openapi
from lbhost.gateway.http.access import Access, error_response
from lbhost.gateway.http.door import Door
from lbhost.gateway.http.hosts import Hosts, Origins
from lbhost.gateway.http.native_pages import NativePages
from lbhost.gateway.keyring import Keyring
from lbhost.gateway.live import Live
from lbhost.gateway.prompt import inputs
from lbhost.gateway.prompt.questions import PATHS
from lbhost.gateway.scheduling.fairness import most_at_once
from lbhost.gateway.served_model import Variant
from lbhost.gateway.vector_cache import VectorCache

_json = msgspec.json.Encoder().encode

_DOCUMENTS = 8
"""Kept, of 0.1 MB each: for API keys that may use different models."""


def build(
    *,
    models: Catalogue,
    door: Door,
    exposition: Exposition,
    cache: VectorCache,
    live: Live,
    settings: Settings,
    keyring: Keyring,
    on_loopback: bool,
) -> ASGIApp:
    """The application, ready for uvicorn.

    Args:
        on_loopback: only this machine can reach it.
    """
    pages = _Pages(models, door, exposition, keyring)
    native = NativePages(models)
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
    places = settings.queue_size
    if settings.keys_file is not None:
        places = most_at_once(places)
    posts: dict[str, ASGIApp] = {}
    for kind, paths in _taking().items():
        endpoint = Completions(
            kind,
            models,
            cache,
            live,
            time_limit_s=settings.request_timeout_s,
            most_answers=min(MAX_CHOICES, places),
        )
        posts |= dict.fromkeys(paths, endpoint)
    app = Starlette(
        routes=[_Posts(posts), *(Route(path, page, methods=["GET"]) for path, page in get)],
        exception_handlers={
            LbhostError: _on_lbhost_error,
            HTTPException: _on_http_exception,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    return Access(
        app,
        door,
        keyring=keyring,
        share_prefixes=settings.share_prefixes,
        hosts=Hosts(settings, on_loopback=on_loopback),
        origins=Origins(settings),
    )


class _Posts(BaseRoute):
    """The paths that take bodies: one look, where a route for each would be asked in turn."""

    def __init__(self, endpoints: Mapping[str, ASGIApp]) -> None:
        self._endpoints = endpoints

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["path"] not in self._endpoints:
            return Match.NONE, {}
        return (Match.FULL if scope["method"] == "POST" else Match.PARTIAL), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        await self._endpoints[scope["path"]](scope, receive, send)


class _Pages:
    """The endpoints that only tell."""

    def __init__(
        self,
        models: Catalogue,
        door: Door,
        exposition: Exposition,
        keyring: Keyring,
    ) -> None:
        self._models = models
        self._door = door
        self._keyring = keyring
        self._exposition = exposition
        self._documents = {self._names(None): _document(models.allowed(None))}
        """The OpenAPI document by the models that it names: making one takes 0.1 s."""
        created = int(time.time())
        self._cards = {one.name: _card(one, created) for one in models.allowed(None)}

    async def models(self, request: Request) -> Response:
        allowed = self._models.allowed(_exchange(request).account)
        return _ok(ModelList([self._cards[one.name] for one in allowed]))

    async def one_model(self, request: Request) -> Response:
        found = self._models.named(request.path_params["model"], _exchange(request).account)
        return _ok(self._cards[found.name])

    async def livez(self, _: Request) -> Response:
        return _ok(Health())

    async def readyz(self, request: Request) -> Response:
        why = self._door.not_ready()
        if why is None:
            return _ok(Health())
        if self._keyring.needed:  # whoever asks has shown none, and is told of no model
            why = "the server is not ready"
        # An answer to what was asked, no refusal: probes are not counted.
        return error_response(NotReadyError(why, retry_after_s=1), _exchange(request))

    async def openapi(self, request: Request) -> Response:
        account = _exchange(request).account
        names = self._names(account)
        if names not in self._documents:
            if len(self._documents) >= _DOCUMENTS:
                self._documents.popitem()
            self._documents[names] = _document(self._models.allowed(account))
        return Response(self._documents[names], media_type="application/json")

    def _names(self, account: Account | None) -> tuple[str, ...]:
        return tuple(one.name for one in self._models.allowed(account))

    async def metrics(self, request: Request) -> Response:
        text = self._exposition.text(self._view(_exchange(request).account))
        return Response(text, headers={"content-type": CONTENT_TYPE})

    def _view(self, account: Account | None) -> View | None:
        """What an API key may see of /metrics; None: everything."""
        if account is None or account.key.metrics == "all":
            return None
        allowed = self._models.allowed(account)
        return View(
            frozenset(one.model.name for one in allowed),
            frozenset(one.name for one in allowed if one.adapter is not None),
            account.name,
        )


def _card(one: Variant, created: int) -> ModelCard:
    base = "" if one.adapter is None else one.model.name
    meta = ModelMeta(one.model.n_ctx, one.purpose.kind.value, one.aliases, base)
    return ModelCard(one.name, created, meta)


def _document(models: Sequence[Variant]) -> bytes:
    return _json(openapi.document(OPERATIONS, PAGES, served_at(models)))


def served_at(models: Sequence[Variant]) -> dict[str, list[str]]:
    """The names by which models may be asked for, by the paths that take bodies."""
    every = [name for one in models for name in one.names]
    found: dict[str, list[str]] = {}
    for kind, paths in _taking().items():
        suited = [name for one in models if suits(kind, one.purpose) for name in one.names]
        found |= dict.fromkeys(paths, suited or every)
    return found


def _taking() -> dict[Kind, tuple[str, ...]]:
    return {kind: one.paths for kind, one in DIALECTS.items()} | PATHS | inputs.PATHS


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
