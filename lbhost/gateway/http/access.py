"""Who may come in, and what every answer has in common: the request's id, and closing time.

In this order: the Host header (a web page that has its name point to this machine, "DNS
rebinding", still says its own name there), the Origin header (a web page of somewhere else),
the API key. Answers a browser's question beforehand (CORS preflight) itself. Pure decisions are
in hosts.py; whatever is refused ends up in the request's Exchange.
"""

from __future__ import annotations

import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lbhost.errors import (
    HostNotAllowedError,
    InvalidRequestError,
    LbhostError,
    OriginNotAllowedError,
    UnauthorizedError,
)
from lbhost.gateway.account import Account
from lbhost.gateway.api import error_shapes, replies
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.http.door import Door
from lbhost.gateway.http.hosts import Hosts, Origins
from lbhost.gateway.keyring import Keyring

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/v1/health"})
"""Need no API key: whoever checks health should not have to know it."""

_SAFE_HEADER_NAMES = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_, "
)


class Access:
    """Around everything that the application answers."""

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        *,
        keyring: Keyring,
        share_prefixes: bool = False,
        hosts: Hosts,
        origins: Origins,
    ) -> None:
        self._app = app
        self._door = door
        self._keyring = keyring
        self._share_prefixes = share_prefixes
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange: Exchange = scope["state"]["exchange"]
        own = [
            *identifying_headers(exchange.path, exchange.request_id),
            *self._origins.headers_for(scope["headers"]),
        ]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own]
                if exchange.account is not None:
                    message["headers"] += exchange.account.headers(time.monotonic())
                leaving = self._door.closing
                # What follows an answer that did not wait for its body is not read as a request.
                if leaving or exchange.complete is None:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            answer = self._answer_beforehand(scope, exchange, own) or self._app
            await answer(scope, receive, send_with_id)
        finally:
            exchange.end()

    def _answer_beforehand(
        self, scope: Scope, exchange: Exchange, own: list[tuple[bytes, bytes]]
    ) -> ASGIApp | None:
        """The answer of a request that the application does not get to see.

        Args:
            own: headers that every answer gets; those of a preflight are added.
        """
        try:
            host = self._check_host(scope)
            origin = self._check_origin(scope, host)
            asked = _values(scope, b"access-control-request-method")
            if origin is not None and asked and scope["method"] == "OPTIONS":
                own += _preflight_headers(scope)
                return Response(status_code=204)
            account = self._check_key(scope)
            if account is not None:
                exchange.enter(account)
                if not self._share_prefixes:
                    exchange.scope = account.scope
        except LbhostError as error:
            exchange.fail(error)
            return error_response(error, exchange)
        return None

    def _check_host(self, scope: Scope) -> bytes:
        """The Host that was given. Raises InvalidRequestError, HostNotAllowedError."""
        given = _values(scope, b"host")
        if len(given) > 1 or (not given and scope["http_version"] == "1.1"):
            raise InvalidRequestError("a request must have one Host header")
        host = given[0] if given else b""
        if given and not self._hosts.allow(host):
            raise HostNotAllowedError(
                f"{host[:100].decode('latin-1')!r} is not a name of this server; "
                "the setting allowed_hosts can make it one"
            )
        return host

    def _check_origin(self, scope: Scope, host: bytes) -> bytes | None:
        """The web page's origin, if one sent the request. Raises OriginNotAllowedError."""
        given = _values(scope, b"origin")
        if not given:
            return None
        if len(given) > 1 or not self._origins.allow(given[0], host):
            raise OriginNotAllowedError(
                f"pages of {given[0][:100].decode('latin-1')!r} may not use this server; "
                "the setting allowed_origins can allow them"
            )
        return given[0]

    def _check_key(self, scope: Scope) -> Account | None:
        """Whose key was given, where one is needed. Raises UnauthorizedError."""
        if not self._keyring.needed or scope["path"] in OPEN_PATHS:
            return None
        bearers = _values(scope, b"authorization")
        scheme, _, key = bearers[0].partition(b" ") if len(bearers) == 1 else (b"", b"", b"")
        account = self._keyring.find(key.strip()) if scheme.lower() == b"bearer" else None
        named = _values(scope, b"x-api-key")
        if account is None and len(named) == 1:
            account = self._keyring.find(named[0].strip())
        if account is None:
            raise UnauthorizedError(
                "wrong or missing API key: send Authorization: Bearer KEY, or x-api-key: KEY"
            )
        return account


def identifying_headers(path: str, request_id: str) -> list[tuple[bytes, bytes]]:
    """The request's id, under the names by which clients of that path look for it."""
    value = request_id.encode()
    headers = [(b"x-request-id", value)]
    if error_shapes.is_anthropics(path):
        headers.append((b"request-id", value))
    return headers


def error_response(error: LbhostError, exchange: Exchange) -> Response:
    """An error as the response to a request, in the shape of the path that was asked."""
    body = error_shapes.body(error, exchange.path, exchange.request_id)
    response = Response(body, error.status, media_type="application/json")
    response.raw_headers += replies.error_headers(error)
    return response


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _preflight_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """What a page may send: whatever it asks for, since its origin is allowed."""
    wanted = b", ".join(_values(scope, b"access-control-request-headers"))
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-max-age", b"600"),
    ]
    if wanted and _SAFE_HEADER_NAMES.issuperset(wanted):
        headers.append((b"access-control-allow-headers", wanted))
    if _values(scope, b"access-control-request-private-network"):
        headers.append((b"access-control-allow-private-network", b"true"))
    return headers
