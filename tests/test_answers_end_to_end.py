"""What an answer must look like, asked of the real server by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

import schemas
from serving import Server

pytestmark = pytest.mark.e2e

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASKED: Any = [{"role": "user", "content": "Make up a person."}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tests that leave it as they found it."""
    at = tmp_path_factory.mktemp("shared") / "run"
    with Server(at, "--ctx-size", "1024", "--workers", "2") as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[OpenAI]:
    base = f"{shared.endpoint}/v1"
    with OpenAI(base_url=base, api_key="none", max_retries=0) as made:
        yield made


def form(schema: dict[str, Any]) -> Any:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def test_an_answer_follows_its_schema_streamed_or_not(client: OpenAI) -> None:
    said: list[str] = []
    how: dict[str, Any] = {
        "model": client.models.list().data[0].id,
        "messages": ASKED,
        "response_format": form(PERSON),
        "max_tokens": 80,
        "seed": 4,
    }
    whole = client.chat.completions.create(**how)
    assert whole.choices[0].finish_reason == "stop"
    said.append(whole.choices[0].message.content or "")
    chunks = client.chat.completions.create(**how, stream=True)
    said.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert said[0] == said[1]
    assert schemas.follows(said[0], PERSON)


def test_extensions_of_llama_server_work_on_both_endpoints(shared: Server) -> None:
    answer = shared.complete("Is water wet?", grammar='root ::= "yes" | "no"')
    assert answer.json()["choices"][0]["text"] in ("yes", "no")
    answer = shared.complete("A person:", json_schema=PERSON, max_tokens=80)
    assert schemas.follows(answer.json()["choices"][0]["text"], PERSON)
    body = {"messages": ASKED, "response_format": {"type": "json_object"}, "max_tokens": 120}
    choice = shared.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_what_cannot_be_enforced_is_refused_and_nothing_is_generated(client: OpenAI) -> None:
    model = client.models.list().data[0].id
    for schema in ({"not": {"type": "string"}}, {"$ref": "#/nowhere"}, {"$ref": "#"}):
        with pytest.raises(BadRequestError) as caught:
            client.chat.completions.create(
                model=model, messages=ASKED, response_format=form(schema)
            )
        assert caught.value.param == "response_format"


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "make_person",
            "description": "Makes a person up",
            "parameters": PERSON,
        },
    },
    {"type": "function", "function": {"name": "now", "description": "What time it is"}},
]


def test_a_required_call_always_parses_streamed_or_not(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "make_person"}}
    model = client.models.list().data[0].id
    for choice in ("required", named):
        how: dict[str, Any] = {
            "model": model,
            "messages": ASKED,
            "tools": TOOLS,
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "max_tokens": 200,
            "seed": 1,
        }
        whole = client.chat.completions.create(**how).choices[0]
        assert whole.finish_reason == "tool_calls"
        assert whole.message.content is None
        calls = whole.message.tool_calls or []
        assert len(calls) == 1
        call = calls[0]
        assert call.type == "function"
        _check_call(call.function.name, call.function.arguments, choice)
        pieces = [
            piece
            for chunk in client.chat.completions.create(**how, stream=True)
            for piece in chunk.choices[0].delta.tool_calls or ()
        ]
        assert pieces[0].id
        assert pieces[0].function is not None
        told = "".join(p.function.arguments or "" for p in pieces if p.function is not None)
        # Drawn anew from a prompt that is cached now: not to the letter the same.
        _check_call(pieces[0].function.name or "", told, choice)


def _check_call(name: str, arguments: str, choice: Any) -> None:
    if name == "make_person":
        assert schemas.follows(arguments, PERSON)
    else:
        assert (name, choice) == ("now", "required")
        assert isinstance(json.loads(arguments), dict)


def test_several_answers_have_calls_of_their_own(shared: Server) -> None:
    body = {
        "messages": ASKED, "tools": TOOLS, "tool_choice": "required", "n": 3, "max_tokens": 150,
        "parallel_tool_calls": False, "seed": 1,
    }  # fmt: skip
    choices = shared.http.post("/v1/chat/completions", json=body).json()["choices"]
    ids = [call["id"] for c in choices for call in c["message"]["tool_calls"]]
    assert len(ids) == len(set(ids)) == 3


def test_a_conversation_with_calls_goes_on(client: OpenAI) -> None:
    call: Any = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        ],
        tools=TOOLS,
        max_tokens=24,
        temperature=0,
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls
