"""The OpenAPI document: complete, and true to what is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lbhost.gateway.api.dialects import DIALECTS, OPERATIONS
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.http import openapi
from running_gateway import HELLO, MODEL, running_gateway

pytestmark = pytest.mark.anyio

DOCUMENT = json.loads(json.dumps(openapi.document(OPERATIONS, MODEL)))
SCHEMAS = DOCUMENT["components"]["schemas"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
        named, more = schema.get("properties", {}), schema.get("additionalProperties", False)
        if not set(schema.get("required", ())) <= value.keys():
            return False
        return all(
            conforms(one, named[name]) if name in named else more and conforms(one, more)
            for name, one in value.items()
        )
    if kind == "array" and isinstance(value, list):
        return all(conforms(one, schema["items"]) for one in value)
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
    openais = (DIALECTS[Kind.CHAT], DIALECTS[Kind.COMPLETION])
    assert set(DOCUMENT["paths"]) == {dialect.paths[0] for dialect in openais}
    found = set(references(DOCUMENT))
    assert {ref.rpartition("/")[2] for ref in found} <= set(SCHEMAS)
    assert {ref.rpartition("/")[0] for ref in found} == {"#/components/schemas"}


def test_requests_are_described_field_by_field() -> None:
    for operation in OPERATIONS:
        properties = SCHEMAS[operation.request.__name__]["properties"]
        assert set(properties) == set(operation.request.__struct_fields__)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
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
    ],
    ids=str,
)
async def test_answers_are_what_it_says(operation: Any, fields: dict[str, Any]) -> None:
    described = DOCUMENT["paths"][operation.path]["post"]["responses"]
    body = {**HELLO, "prompt": "x", **fields}
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
        *events, done, end = streamed.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        for event in events:
            chunk = json.loads(event.removeprefix("data: "))
            assert conforms(chunk, content["text/event-stream"]["x-event-data"]), chunk


async def test_it_is_served_to_those_with_a_key() -> None:
    async with running_gateway(api_key="long-secret") as g:
        assert (await g.client.get("/openapi.json")).status_code == 401
        headers = {"authorization": "Bearer long-secret"}
        response = await g.client.get("/openapi.json", headers=headers)
        assert response.json() == DOCUMENT
        assert response.headers["content-type"] == "application/json"
