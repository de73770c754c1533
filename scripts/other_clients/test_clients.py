"""LangChain, instructor and `llm` against the server at LBHOST_URL. Part of scripts/clients.

The model is a small one: what is looked at is that the client understands each answer.
"""

from __future__ import annotations

import json
import math
import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import instructor
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import OpenAI
from pydantic import BaseModel, Field

URL = os.environ["LBHOST_URL"] + "/v1"
KEY = os.environ["LBHOST_KEY"]
VECTORS = os.environ["LBHOST_VECTORS"]
"""The model that embeds; the first one chats."""
MODEL = OpenAI(base_url=URL, api_key=KEY).models.list().data[0].id
SAY = "Name three rivers."


class Person(BaseModel, extra="forbid"):
    """A person. Bounded all over: a small model may fill what is free until its tokens are used
    up."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    mood: Literal["good", "bad"]


@tool
def weather(city: Annotated[str, Field(max_length=12)]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


# --- LangChain --------------------------------------------------------------------------


def chat(**how: object) -> ChatOpenAI:
    settings = {"temperature": 0, "max_tokens": 24, **how}
    return ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, **settings)


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_talks_and_streams(responses: bool) -> None:
    model = chat(use_responses_api=responses, stream_usage=True)
    asked = [SystemMessage("Be brief."), HumanMessage(SAY)]
    whole = model.invoke(asked)
    assert whole.text
    assert whole.usage_metadata["output_tokens"] > 0
    pieces = list(model.stream(asked))
    assert "".join(piece.text for piece in pieces) == whole.text
    together = pieces[0]
    for piece in pieces[1:]:
        together += piece
    assert together.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_langchain_calls_tools_and_goes_on(responses: bool, streamed: bool) -> None:
    model = chat(use_responses_api=responses, max_tokens=200)
    bound = model.bind_tools([weather], tool_choice="any", strict=True)
    said = HumanMessage("How is the weather in Rome?")
    if streamed:
        answer, *more = list(bound.stream([said]))
        for piece in more:
            answer += piece
    else:
        answer = bound.invoke([said])
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls, answer
    assert {call["name"] for call in answer.tool_calls} == {"weather"}
    results = [
        ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
        for call in answer.tool_calls
    ]
    assert model.bind_tools([weather]).invoke([said, answer, *results]).id


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_gets_structures(method: str) -> None:
    model = chat(max_tokens=200).with_structured_output(Person, method=method, include_raw=True)
    got = model.invoke(f"A person as JSON with name, age and mood ({method}).")
    assert got["raw"]
    if method != "json_mode":  # which asks for any JSON at all
        assert isinstance(got["parsed"], Person), got


TEXTS = ["The cat sat on the mat.", "A cat sits on a mat.", "Shares fell in London today."]


def cosine(one: list[float], other: list[float]) -> float:
    """Of vectors of length 1."""
    return sum(map(operator.mul, one, other))


def test_langchain_embeds_documents_and_queries() -> None:
    # Otherwise it cuts texts into token ids of OpenAI's own vocabulary, which no other model has.
    model = OpenAIEmbeddings(
        base_url=URL, api_key=KEY, model=VECTORS, check_embedding_ctx_length=False, chunk_size=2
    )
    vectors = model.embed_documents(TEXTS)
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0] * len(TEXTS))
    query = model.embed_query(TEXTS[0])
    assert cosine(query, vectors[0]) > 0.999
    if len(query) == 384:  # a real model, which knows what texts are about
        same, other = (cosine(query, vector) for vector in vectors[1:])
        assert same > 0.8 > 0.3 > other
    short = OpenAIEmbeddings(
        base_url=URL, api_key=KEY, model=VECTORS, check_embedding_ctx_length=False, dimensions=16
    )
    assert len(short.embed_query(TEXTS[0])) == 16


# --- instructor -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor_gets_structures(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY), mode=mode)
    asked = {"model": MODEL, "max_tokens": 200, "max_retries": 0, "seed": 7}
    if mode is instructor.Mode.TOOLS:  # a small model would go on calling
        asked["parallel_tool_calls"] = False
    asked["messages"] = [{"role": "user", "content": "Make up a person."}]
    person = client.chat.completions.create(response_model=Person, **asked)
    assert isinstance(person, Person)
    parts = list(client.chat.completions.create_partial(response_model=Person, **asked))
    assert parts[-1].age is not None


# --- llm --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> None:
    """Tells `llm` of the model; the file is JSON, which is YAML too."""
    entry = {"model_id": "here", "model_name": MODEL, "api_base": URL, "api_key_name": "lbhost"}
    features = {"supports_schema": True, "supports_tools": True}
    folder = Path(os.environ["LLM_USER_PATH"])
    (folder / "extra-openai-models.yaml").write_text(json.dumps([{**entry, **features}]))
    (folder / "keys.json").write_text(json.dumps({"lbhost": KEY}))


def llm(*arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("more", [(), ("--no-stream",)])
def test_llm_talks_and_goes_on(known: None, more: tuple[str, ...]) -> None:
    options = ("-o", "temperature", "0", "-o", "max_tokens", "24", *more)
    assert llm("-m", "here", "-s", "Be brief.", SAY, *options).strip()
    assert llm("-c", "And one more.", *options).strip()


def test_llm_gets_structures_and_has_tools(known: None) -> None:
    shoe = {
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "blue"]},
            "size": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["color", "size"],
        "additionalProperties": False,
    }
    options = ("-o", "max_tokens", "200")
    got = json.loads(llm("-m", "here", "--schema", json.dumps(shoe), "Make up a shoe.", *options))
    assert set(got) == {"color", "size"}
    options = ("-o", "temperature", "0", "-o", "max_tokens", "200")
    llm("-m", "here", "-T", "llm_version", "Say hello.", *options)
