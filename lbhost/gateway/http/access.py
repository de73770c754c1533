"""Who may come in, and what every answer has in common: the request's id, and closing time."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable
from typing import TypeAlias

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lbhost.config import Settings
from lbhost.errors import (
    ForbiddenError,
    LbhostError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
)
from lbhost.gateway.api import replies
from lbhost.gateway.scheduling.dispatcher import Dispatcher

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Need no API key: whoever checks health should not have to know it."""

Refused: TypeAlias = Callable[[int, str, str], None]
"""Gets the status, path and request id of what was refused outside of the endpoints that count."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """What the settings say of who may come in. Pure."""

    def __init__(self, settings: Settings) -> None:
        key = settings.api_key
        self._key = key.encode() if key is not None else None
        self._hosts = _listed(settings.allowed_hosts)
        self._origins = _listed(settings.allowed_origins)
        self._checks_hosts = bool(self._hosts) or _is_loopback(settings.host)
        self._hosts |= {"localhost", settings.host.lower()}

    def check(self, scope: Scope) -> None:
        """Raises ForbiddenError or UnauthorizedError. Health checks are open to everybody."""
        if scope["path"] in OPEN_PATHS:
            return
        host = _header(scope, b"host")
        origin = _header(scope, b"origin")
        if self._checks_hosts and host is not None and not self._knows(host):
            # A page whose name was made to resolve to us (DNS rebinding) sends its own name.
            raise ForbiddenError(
                f"this server is not called {host[:100]!r}: --allowed-hosts lets more names in"
            )
        if origin is not None and not self.allows(origin, host):
            raise ForbiddenError(
                f"web pages of {origin[:100]!r} may not use this server: "
                "--allowed-origins lets them"
            )
        if not is_preflight(scope) and not self._has_key(scope):
            raise UnauthorizedError("wrong or missing API key: send Authorization: Bearer KEY")

    def allows(self, origin: str, host: str | None) -> bool:
        """Whether a page of this origin may use a server that it knows as `host`."""
        if "*" in self._origins or origin.lower() in self._origins:
            return True
        return host is not None and origin.partition("://")[2].lower() == host.lower()

    def _knows(self, host: str) -> bool:
        name = _without_port(host).lower()
        if "*" in self._hosts or name in self._hosts or name.endswith(".localhost"):
            return True
        return _is_address(name)

    def _has_key(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        given = _header(scope, b"authorization") or ""
        scheme, _, key = given.partition(" ")
        matches = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
        return matches and scheme.lower() == "bearer"


class Access:
    """Around everything: who may come in, the request's id, refusals told, and closing time."""

    def __init__(
        self, app: ASGIApp, dispatcher: Dispatcher, settings: Settings, refused: Refused
    ) -> None:
        self._app = app
        self._dispatcher = dispatcher
        self._gate = Gate(settings)
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = request_id_of(scope["headers"])
        scope["state"]["request_id"] = request_id
        own = [(b"x-request-id", request_id.encode())]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own]
                if self._dispatcher.stopping:
                    message["headers"].append((b"connection", b"close"))
                if message["status"] >= 400 and not scope["state"].get("recorded"):
                    self._refused(message["status"], scope["path"], request_id)
            await send(message)

        try:
            self._gate.check(scope)
        except LbhostError as error:
            await error_response(error)(scope, receive, send_with_id)
            return
        origin = _header(scope, b"origin")
        if origin is not None:
            own += _cross_origin(origin)
        if origin is not None and is_preflight(scope):
            await _preflight(scope)(scope, receive, send_with_id)
        else:
            await self._app(scope, receive, send_with_id)


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what a page may send. It never carries a key."""
    asks = _header(scope, b"access-control-request-method") is not None
    return bool(scope["method"] == "OPTIONS" and asks)


def _preflight(scope: Scope) -> Response:
    wanted = _header(scope, b"access-control-request-headers") or ""
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": wanted[:1000],
            "access-control-max-age": "600",
        },
    )


def _cross_origin(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"x-request-id, x-lbhost-worker, retry-after"),
        (b"vary", b"origin"),
    ]


def check_media_type(scope: Scope) -> None:
    """Raises UnsupportedMediaTypeError unless the body is JSON in UTF-8, uncompressed.

    A missing content-type is refused too: pages may send such requests anywhere, unasked.
    """
    media, _, parameters = (_header(scope, b"content-type") or "").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "')
    if media.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        given = repr(media[:80]) if media else "nothing"
        raise UnsupportedMediaTypeError(
            f"the body must be sent with content-type: application/json, not {given}"
        )
    if (_header(scope, b"content-encoding") or "").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaTypeError("compressed bodies are not supported")


def _header(scope: Scope, name: bytes) -> str | None:
    return next((v.decode("latin-1") for n, v in scope["headers"] if n == name), None)


def _listed(text: str) -> set[str]:
    return {part.strip().lower().rstrip("/") for part in text.split(",") if part.strip()}


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return name.lower() == "localhost" or (
        _is_address(name) and ipaddress.ip_address(name).is_loopback
    )


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
