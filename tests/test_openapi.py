"""The OpenAPI document: complete, and true to what is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.operations import OPERATIONS, PAGES
from lbhost.gateway.http import openapi
from lbhost.gateway.prompt import inputs
from lbhost.gateway.prompt.questions import PATHS
from running_gateway import HELLO, MODEL, running_gateway

pytestmark = pytest.mark.anyio

NAMES = {one.path: [MODEL] for one in OPERATIONS}
DOCUMENT = json.loads(json.dumps(openapi.document(OPERATIONS, PAGES, NAMES)))
SCHEMAS = DOCUMENT["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def conforms(value: Any, schema: dict[str, Any]) -> bool:
    """As much of JSON schema as the document uses; no property that it does not name."""
    if "$ref" in schema:
        return conforms(value, SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return any(conforms(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema.get("type")
    if kind == "object" and isinstance(value, dict):
        if schema.keys() <= {"type", "default", "description"}:
            return True  # anybody's
        named, more = schema.get("properties", {}), schema.get("additionalProperties", False)
        if not set(schema.get("required", ())) <= value.keys():
            return False
        return all(
            conforms(one, named[name]) if name in named else more and conforms(one, more)
            for name, one in value.items()
        )
    if kind == "array" and isinstance(value, list):
        return all(conforms(one, schema.get("items", {})) for one in value)
    kinds: dict[Any, Any] = {
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
        None: object,
    }
    return isinstance(value, kinds[kind]) if kind in kinds else False


def test_every_endpoint_that_generates_is_in_it_and_every_reference_leads_somewhere() -> None:
    generating = {dialect.paths[0] for dialect in DIALECTS.values()}
    telling = {paths[0] for paths in PATHS.values()}
    computing = {paths[0] for paths in inputs.PATHS.values()}
    paths = set(DOCUMENT["paths"])
    assert paths == generating | telling | computing | {page.path for page in PAGES}
    found = set(references(DOCUMENT))
    assert {ref.rpartition("/")[2] for ref in found} <= set(SCHEMAS)
    assert {ref.rpartition("/")[0] for ref in found} == {"#/components/schemas"}


def test_requests_are_described_field_by_field() -> None:
    for operation in OPERATIONS:
        properties = SCHEMAS[operation.request.__name__]["properties"]
        assert set(properties) == set(operation.request.__struct_fields__)


GENERATING = [one for one in OPERATIONS if one.chunks and one.name != "infill"]
"""Without infill: the toy model cannot."""

TOOL: dict[str, Any] = {"name": "f", "parameters": {}}
TOOLS: dict[str, Any] = {
    "createChatCompletion": [{"type": "function", "function": TOOL}],
    "createResponse": [{"type": "function", **TOOL}],
    "createMessage": [{"name": "f", "input_schema": {}}],
}
"""The same one, as each dialect has it."""


@pytest.mark.parametrize("operation", GENERATING, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"logprobs": 1},
        {"service_tier": "flex"},
        {"temperature": 9},
        {"model": "gone"},
        {"max_tokens": 1 << 20},
        {"tools": True},
    ],
    ids=str,
)
async def test_answers_are_what_it_says(operation: Any, fields: dict[str, Any]) -> None:
    described = DOCUMENT["paths"][operation.path]["post"]["responses"]
    body = {**HELLO, "prompt": "x", "input": "x", "max_tokens": 9, **fields}
    if operation.name == "createResponse":
        body.pop("prompt")
    if "tools" in fields:
        body["tools"] = TOOLS.get(operation.name)
    if "logprobs" in fields and "chat" in operation.path:
        body |= {"logprobs": True, "top_logprobs": 2}
    async with running_gateway() as g:
        response = await g.client.post(operation.path, json=body)
        content = described[str(response.status_code)]["content"]
        assert conforms(response.json(), content["application/json"]["schema"]), response.text
        if response.status_code != 200:
            return
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        streamed = await g.client.post(operation.path, json=asked)
        *events, end = streamed.text.split("\n\n")
        assert end == ""
        if operation.last == "[DONE]":
            assert events.pop() == "data: [DONE]"
        for event in events:
            chunk = json.loads(event.rpartition("data: ")[2])
            data = content["text/event-stream"]["schema"]["properties"]["data"]
            described_as = data if "contentSchema" in data else data["anyOf"][0]
            assert conforms(chunk, described_as["contentSchema"]), chunk


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages/count_tokens", HELLO),
    ("/v1/messages/count_tokens", {}),
    ("/tokenize", {"content": "a b", "with_pieces": True}),
    ("/tokenize", {"content": "a b"}),
    ("/detokenize", {"tokens": [65, 66]}),
    ("/detokenize", {"tokens": [-1]}),
    ("/apply-template", HELLO),
    ("/infill", {"input_prefix": "a", "input_suffix": "b"}),
]


@pytest.mark.parametrize(("path", "body"), QUESTIONS, ids=str)
async def test_what_needs_no_worker_is_answered_as_it_says(path: str, body: dict[str, Any]) -> None:
    described = DOCUMENT["paths"][path]["post"]["responses"]
    async with running_gateway() as g:
        response = await g.client.post(path, json=body)
        content = described[str(response.status_code)]["content"]
        assert conforms(response.json(), content["application/json"]["schema"]), response.text


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_pages_are_what_it_says(page: Any, workers: int) -> None:
    described = DOCUMENT["paths"][page.path]["get"]["responses"]
    async with running_gateway(workers=workers) as g:
        response = await g.client.get(page.path)
        content = described[str(response.status_code)]["content"]
        assert conforms(response.json(), content["application/json"]["schema"]), response.text


async def test_it_is_served_to_those_with_a_key() -> None:
    async with running_gateway(api_key="long-secret") as g:
        assert (await g.client.get("/openapi.json")).status_code == 401
        headers = {"authorization": "Bearer long-secret"}
        response = await g.client.get("/openapi.json", headers=headers)
        assert response.json() == DOCUMENT
        assert response.headers["content-type"] == "application/json"
