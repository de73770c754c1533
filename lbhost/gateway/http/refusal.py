"""A refusal as bytes: the answer to a request that the application never sees. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from lbhost.errors import LbhostError
from lbhost.gateway.api import error_shapes, replies
from lbhost.gateway.http.access import identifying_headers


def refusal(
    error: LbhostError, path: str, request_id: str, headers: Sequence[tuple[bytes, bytes]]
) -> bytes:
    """Head and body, in the shape of the path's errors; the connection is said to end with it.

    Args:
        path: of the request, as far as it came.
        headers: more of them: the server's own, and what a web page needs to read the answer.
    """
    body = error_shapes.body(error, path, request_id)
    every = [
        *headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *identifying_headers(path, request_id),
        *replies.error_headers(error),
    ]
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in every)
    return STATUS_LINE[error.status] + lines + b"\r\n" + body
