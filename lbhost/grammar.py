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

MAX_NUMBER = 2**53
"""Of a schema's numbers: llguidance keeps them as double-precision ones, and -2**63 ends it."""

_CLAMPED = 2**63 - 1
"""The highest integer that it writes: upper limits beyond it are kept all the same."""

_UPPER = ("maximum", "exclusiveMaximum")
_TELLING = ("default", "examples")
"""Keywords that bind no answer, whatever is in them."""

_BELOW = {
    **dict.fromkeys(
        ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"), "names"
    ),
    **dict.fromkeys(("enum", "const"), "value"),
}
"""Keywords below which keys are none: names of the schema's own, or parts of an answer."""

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
    """JSON that follows a schema. Raises InvalidRequestError: too large, or its numbers are."""
    # Options of llguidance's that a schema could bring along; one of them ignores keywords.
    schema = {key: value for key, value in schema.items() if key != "x-guidance"}
    text = msgspec.json.encode(schema).decode()
    _check_size(text, param)
    check_numbers(schema, param)
    return Grammar(GrammarKind.JSON_SCHEMA, text, param)


def check_numbers(schema: Any, param: str, key: str = "", *, kind: str = "schema") -> None:
    """Raises InvalidRequestError: a number has more digits than answers could be held to.

    Args:
        key: what it is the value of. kind: a "schema", "names" of schemas, or a "value".
    """
    if isinstance(schema, dict):
        for name, value in schema.items():
            below = "schema" if kind == "names" else kind
            if kind == "schema":
                if name in _TELLING:
                    continue
                below = _BELOW.get(name, kind)
            check_numbers(value, param, name, kind=below)
    elif isinstance(schema, list):
        for value in schema:
            check_numbers(value, param, key, kind=kind)
    elif isinstance(schema, int | float) and abs(schema) > MAX_NUMBER:
        if key in _UPPER and schema >= _CLAMPED:
            return
        raise InvalidRequestError(
            f"{param}: {str(schema)[:40]} (of {key!r}) has too many digits: numbers of a schema "
            f"may be {MAX_NUMBER} at most",
            param=param,
        )


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
