"""The grammars that clients ask an answer to follow, before anybody has compiled them. Pure.

guidance.py compiles them: first in a prompt helper, where a bomb hurts nobody, then in the worker.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from lbhost.errors import InvalidRequestError

MAX_BYTES = 64 * 1024
"""Of a grammar's text."""

MAX_NESTING = 48
"""Of brackets in a grammar: compilers recurse."""

ANY_OBJECT = {"type": "object"}


class GrammarKind(enum.Enum):
    """The language that a grammar is written in."""

    JSON_SCHEMA = "json_schema"
    EBNF = "ebnf"
    """GBNF as llama.cpp has it, or Lark as llguidance has it."""


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must follow."""

    kind: GrammarKind
    text: str
    param: str
    """The request's field that it came in, for errors."""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for grammars that mean the same."""
        return self.kind.value, self.text


def of_schema(schema: dict[str, Any], param: str) -> Grammar:
    """JSON that follows a schema. Raises InvalidRequestError: too large."""
    # Options of llguidance's that a schema could bring along; one of them ignores keywords.
    schema = {key: value for key, value in schema.items() if key != "x-guidance"}
    text = msgspec.json.encode(schema).decode()
    _check_size(text, param)
    return Grammar(GrammarKind.JSON_SCHEMA, text, param)


def of_ours(text: str, param: str) -> Grammar:
    """Lark that this server has made, of schemas whose nesting is bounded.

    Raises InvalidRequestError: too large.
    """
    _check_size(text, param)
    return Grammar(GrammarKind.EBNF, text, param)


def of_text(text: str, param: str) -> Grammar:
    """A grammar as it was written. Raises InvalidRequestError: too large, or nested too deep."""
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise InvalidRequestError(
                    f"{param}: brackets may be nested {MAX_NESTING} deep", param=param
                )
        elif character in ")]}":
            depth = max(0, depth - 1)
    return of_ours(text, param)


def _check_size(text: str, param: str) -> None:
    size = len(text.encode())
    if size > MAX_BYTES:
        raise InvalidRequestError(f"{param}: at most {MAX_BYTES} bytes, not {size}", param=param)
