"""How deep a stranger's JSON is nested, found out before anything that recurses reads it. Pure."""

from __future__ import annotations

from lbhost.errors import InvalidRequestError

MAX_DEPTH = 32
"""No request needs more than six."""

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_depth(body: bytes) -> None:
    """Refuse nesting beyond MAX_DEPTH, in time linear in the body's size.

    Strings are cut out, then each pass takes away the innermost pairs of brackets.

    Raises:
        InvalidRequestError: too deep, or so unbalanced that it cannot be JSON.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    outside = b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    brackets = outside.translate(None, delete=_NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    if brackets:
        raise InvalidRequestError(
            f"the body is nested more than {MAX_DEPTH} deep, or its brackets do not match"
        )
