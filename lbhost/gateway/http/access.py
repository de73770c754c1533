"""Who may come in, and what every answer has in common: the request's id, and closing time."""

from __future__ import annotations

import hmac
import re
import secrets

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lbhost.errors import LbhostError, UnauthorizedError
from lbhost.gateway.api import replies
from lbhost.gateway.scheduling.dispatcher import Dispatcher

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Need no API key: whoever checks health should not have to know it."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Access:
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
