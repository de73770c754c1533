"""Requests and answers of HTTP as bytes, for the tests of the server's limits."""

from __future__ import annotations

import json
from typing import Any

from running_gateway import CHAT


def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    lines = [
        f"POST {CHAT} HTTP/1.1".encode(),
        b"host: localhost",
        b"content-type: application/json",
        b"content-length: %d" % (len(body) if length is None else length),
        *headers,
        b"",
        body,
    ]
    return b"\r\n".join(lines)


def read(response: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of one response."""
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(body)


def check_refusal(response: bytes, status: int, code: str | None) -> None:
    got, headers, body = read(response)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
