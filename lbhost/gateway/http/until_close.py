"""Answers to HTTP/1.0, which knows no chunks (RFC 9112, 6.1): what has no length ends with the
connection."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def unframed(cycle: RequestResponseCycle) -> None:
    """Have a request's answer sent as it is, and the connection closed after it."""
    cycle.keep_alive = False
    cycle.chunked_encoding = False  # uvicorn adds no transfer-encoding then
    send = cycle.send

    async def send_as_it_is(message: Any) -> None:
        if message["type"] == "http.response.body":
            # Else it would miss the length that it has not been told beforehand.
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = send_as_it_is  # type: ignore[method-assign]
