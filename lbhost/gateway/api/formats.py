"""`response_format` and its kin: what the text of an answer must look like. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from lbhost import grammar
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api.closed_objects import closed
from lbhost.grammar import Grammar


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema as OpenAI's clients send it. `strict` or not, the answer follows it; `strict`, its
    objects have no other keys than those that are named."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """OpenAI's response_format."""

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None
    """llama-server's way to send a schema."""


def grammars(
    response_format: ResponseFormat | None, ebnf: str | None, json_schema: dict[str, Any] | None
) -> list[Grammar]:
    """All that an answer is asked to follow. Raises InvalidRequestError: not understood."""
    given: list[Grammar] = []
    if response_format is not None:
        schema, strict = response_format.schema, False
        if response_format.json_schema is not None:
            schema = response_format.json_schema.schema
            strict = bool(response_format.json_schema.strict)
        form = of_kind(
            response_format.type,
            schema,
            where="response_format",
            schema_at="response_format.json_schema.schema",
            strict=strict,
        )
        given += [] if form is None else [form]
    if ebnf:
        given.append(grammar.of_text(ebnf, "grammar"))
    if json_schema is not None:
        given.append(grammar.of_schema(json_schema, "json_schema"))
    return given


def of_kind(
    kind: str, schema: dict[str, Any] | None, *, where: str, schema_at: str, strict: bool = False
) -> Grammar | None:
    """What an answer of text, json_object or json_schema must follow; None: nothing.

    Args:
        where, schema_at: what the client calls the format and its schema, from the field on.
        strict: as OpenAI has it: see closed_objects.py.

    Raises:
        InvalidRequestError: another kind, no schema, too large.
    """
    param = where.partition(".")[0]
    match kind:
        case "text":
            return None
        case "json_object":
            return grammar.of_schema(grammar.ANY_OBJECT if schema is None else schema, param)
        case "json_schema":
            if schema is None:
                raise InvalidRequestError(f"{schema_at}: must be given", param=param)
            return grammar.of_schema(closed(schema) if strict else schema, param)
    raise InvalidRequestError(
        f"{where}.type: text, json_object or json_schema, not {kind[:40]!r}", param=param
    )
