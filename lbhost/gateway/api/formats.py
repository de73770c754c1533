"""`response_format` and its kin: what the text of an answer must look like. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from lbhost import grammar
from lbhost.errors import InvalidRequestError
from lbhost.grammar import Grammar


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema as OpenAI's clients send it. `strict` or not, the answer follows it."""

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
        schema = _schema(response_format)
        if schema is not None:
            given.append(grammar.of_schema(schema, "response_format"))
    if ebnf:
        given.append(grammar.of_text(ebnf, "grammar"))
    if json_schema is not None:
        given.append(grammar.of_schema(json_schema, "json_schema"))
    return given


def _schema(form: ResponseFormat) -> dict[str, Any] | None:
    """What the JSON must be like; None: any text."""
    match form.type:
        case "text":
            return None
        case "json_object":
            return grammar.ANY_OBJECT if form.schema is None else form.schema
        case "json_schema":
            schema = form.schema if form.json_schema is None else form.json_schema.schema
            if schema is None:
                raise InvalidRequestError(
                    "response_format.json_schema.schema: must be given", param="response_format"
                )
            return schema
    raise InvalidRequestError(
        f"response_format.type: text, json_object or json_schema, not {form.type[:40]!r}",
        param="response_format",
    )
