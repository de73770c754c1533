"""Objects that have no other keys than those that their schema names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lbhost import guidance
from lbhost.gateway.api import formats
from lbhost.gateway.api.closed_objects import closed
from lbhost.gateway.api.formats import JsonSchema, ResponseFormat
from lbhost.gateway.api.tools.families import Family
from lbhost.gateway.api.tools.forced import Tool, calls_only
from tool_requests import accepts

Schema = dict[str, Any]


def of(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, **more}


def shut(properties: Schema, **more: Any) -> Schema:
    return of(properties, **more, additionalProperties=False)


CITY = {"city": {"type": "string", "maxLength": 9}}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (of(CITY), shut(CITY)),
        (of({}), shut({})),
        (of({"at": of(CITY)}), shut({"at": shut(CITY)})),
        ({"type": "array", "items": of(CITY)}, {"type": "array", "items": shut(CITY)}),
        ({"anyOf": [of(CITY), {"type": "null"}]}, {"anyOf": [shut(CITY), {"type": "null"}]}),
        ({"allOf": [of(CITY)]}, {"allOf": [shut(CITY)]}),
        (
            of({"at": {"$ref": "#/$defs/At"}}, **{"$defs": {"At": of(CITY)}}),
            shut({"at": {"$ref": "#/$defs/At"}}, **{"$defs": {"At": shut(CITY)}}),
        ),
        (  # the names of properties are no keywords
            of({"properties": of(CITY), "not": of(CITY)}),
            shut({"properties": shut(CITY), "not": shut(CITY)}),
        ),
        (
            of({"a": {}, "b": {}}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
            shut({"a": {}, "b": {}}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
        ),
        (of({"at": of(CITY)}, additionalProperties=of(CITY)),
         of({"at": shut(CITY)}, additionalProperties=shut(CITY))),
    ],
)  # fmt: skip
def test_objects_that_name_their_keys_have_no_others(given: Schema, made: Schema) -> None:
    before = json.dumps(given)
    assert closed(given) == made
    assert closed(made) == made
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        of(CITY, additionalProperties=True),
        of(CITY, required=["city", "country"]),
        of(CITY, minProperties=2),
        {"const": of(CITY)},
        of(CITY, enum=[{"city": "Rome", "country": "Italy"}]),
        {"anyOf": [of(CITY), {}], "const": {"city": "Rome", "country": "Italy"}},
        {"allOf": [of(CITY), of({"country": {}})]},
        of(CITY, anyOf=[of({"country": {}}), of({"county": {}})]),
        of(CITY, anyOf=[{"allOf": [of({"country": {}})]}]),
        of(CITY, **{"$ref": "#/$defs/Base", "$defs": {"Base": of({"id": {}})}}),
        {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/A"}, of(CITY)]},
         "$defs": {"A": of({"id": {}})}},
        {"$ref": "#/$defs/A", "required": ["id"], "$defs": {"A": of(CITY)}},
        of(CITY, allOf=[{"required": ["id"]}]),
        of(CITY, allOf=[{"patternProperties": {"^i": {}}, "required": ["id"]}]),
        {"anyOf": [of(CITY), of({"country": {}})], "required": ["id"]},
        of({"at": of(CITY)}, enum=[{"at": {"id": 1}}]),
        {"properties": 5},
        of(CITY, required="city"),
    ],
)  # fmt: skip
def test_what_says_otherwise_or_is_put_together_stays_open(given: Schema) -> None:
    assert closed(given) == given


@pytest.mark.parametrize("family", [Family.GENERIC, Family.LLAMA3, Family.QWEN_CODER])
def test_forced_calls_have_no_arguments_that_nobody_named(family: Family) -> None:
    def takes(parameters: Schema, arguments: Schema) -> bool:
        # `$defs` is nothing that tags can carry: QWEN_CODER's arguments are JSON here, too.
        parameters = {**parameters, "$defs": {}}
        written = guidance.check(calls_only([Tool("f", "", parameters)], family, parallel=False))
        key = "parameters" if family is Family.LLAMA3 else "arguments"
        call = json.dumps({"name": "f", key: arguments})
        if family is Family.QWEN_CODER:
            call = f"<tool_call>\n{call}\n</tool_call>"
        return accepts(written, call)

    nested = of({"at": of(CITY)})
    assert takes(nested, {"at": {"city": "Rome"}})
    assert not takes(nested, {"at": {"city": "Rome"}, "more": 1})
    assert not takes(nested, {"at": {"city": "Rome", "more": 1}})
    assert takes(of(CITY, additionalProperties=True), {"city": "Rome", "more": 1})
    assert takes({"type": "object", "description": "Anything"}, {"more": 1})
    assert not takes(of({}), {"more": 1})


@pytest.mark.parametrize("strict", [None, False, True])
def test_an_answer_in_json_has_other_keys_unless_it_is_strict(strict: bool | None) -> None:
    form = ResponseFormat("json_schema", JsonSchema(of(CITY), "answer", strict=strict))
    (found,) = formats.grammars(form, None, None)
    written = guidance.check(found)
    assert accepts(written, '{"city": "Rome"}')
    assert accepts(written, '{"city": "Rome", "more": 1}') == (strict is not True)
