"""The official clients of OpenAI's responses and Anthropic's messages, and `lbhost chat`, against
the real server with the real model.

Needs the starter extra.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import anthropic
import openai
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, ToolParam
from openai import OpenAI
from openai.types.responses import FunctionToolParam, ResponseInputParam
from pydantic import BaseModel

from chat_terminal import Terminal
from serving import PATIENCE_S, Server

pytestmark = pytest.mark.e2e

KEY = "a-key-of-the-tests"
SAY = "Name three rivers."
GREEDY = {"temperature": 0}
"""Anthropic's client has no parameter for it any more; the API has."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    where = tmp_path_factory.mktemp("clients") / "run"
    arguments = ("--ctx-size", "512", "--workers", "1", "--api-key", KEY)
    with Server(where, *arguments) as server:
        server.http.headers["authorization"] = f"Bearer {KEY}"
        yield server


# --- responses --------------------------------------------------------------------------


def test_the_openai_client_gets_responses(shared: Server) -> None:
    with OpenAI(base_url=f"{shared.endpoint}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.responses.create(
            model=client.models.list().data[0].id,
            instructions="Be brief.",
            input=[{"role": "user", "content": [{"type": "input_text", "text": SAY}]}],
            temperature=0,
            max_output_tokens=16,
            store=False,
        )
        assert answer.output_text
        assert answer.status in ("completed", "incomplete")
        assert answer.usage is not None
        assert 0 < answer.usage.output_tokens <= 16
        with client.responses.stream(
            model=answer.model,
            instructions="Be brief.",
            input=SAY,
            temperature=0,
            max_output_tokens=16,
        ) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        assert "".join(deltas) == answer.output_text
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=answer.model, input=SAY, previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id"


WEATHER_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class City(BaseModel):
    """What the answers that follow a schema are parsed into."""

    name: Literal["Rome", "Oslo"]
    big: bool


def test_the_openai_client_gets_calls_and_gives_their_results(shared: Server) -> None:
    with OpenAI(base_url=f"{shared.endpoint}/v1", api_key=KEY, max_retries=0) as client:
        tool: FunctionToolParam = {
            "type": "function",
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": WEATHER_SCHEMA,
            "strict": True,
        }
        asked: ResponseInputParam = [{"role": "user", "content": "How is the weather in Rome?"}]
        model = shared.status().model
        answer = client.responses.create(
            model=model,
            input=asked,
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_output_tokens=64,
        )
        (call,) = answer.output
        assert call.type == "function_call"
        assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
        with client.responses.stream(
            model=model,
            input=asked,
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_output_tokens=64,
        ) as stream:
            deltas = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
            (streamed,) = stream.get_final_response().output
        assert streamed.type == "function_call"
        assert "".join(deltas) == streamed.arguments == call.arguments
        asked += [
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
            },
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 25 C"},
        ]
        said = client.responses.create(
            model=model, input=asked, tools=[tool], temperature=0, max_output_tokens=16
        )
        assert said.usage is not None
        assert answer.usage is not None
        assert said.usage.input_tokens > answer.usage.input_tokens


def test_the_openai_client_parses_a_response(shared: Server) -> None:
    with OpenAI(base_url=f"{shared.endpoint}/v1", api_key=KEY, max_retries=0) as client:
        parsed = client.responses.parse(
            model=shared.status().model,
            input="A city?",
            text_format=City,
            temperature=0,
            max_output_tokens=64,
        )
        assert isinstance(parsed.output_parsed, City)


# --- messages ---------------------------------------------------------------------------


def test_the_anthropic_client_gets_messages(shared: Server) -> None:
    with Anthropic(base_url=shared.endpoint, api_key=KEY, max_retries=0) as client:
        model = shared.status().model
        answer = client.messages.create(
            model=model,
            system="Be brief.",
            messages=[{"role": "user", "content": SAY}],
            max_tokens=16,
            extra_body=GREEDY,
        )
        (block,) = answer.content
        assert block.type == "text"
        assert block.text
        assert answer.stop_reason in ("end_turn", "max_tokens")
        counted = client.messages.count_tokens(
            model=model, system="Be brief.", messages=[{"role": "user", "content": SAY}]
        )
        usage = answer.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        with client.messages.stream(
            model=model,
            system="Be brief.",
            messages=[{"role": "user", "content": SAY}],
            max_tokens=16,
            extra_body=GREEDY,
        ) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == block.text
        assert final.usage.output_tokens == usage.output_tokens
        assert final.stop_reason == answer.stop_reason
        first = block.text.split()[0]
        stopped = client.messages.create(
            model=model,
            system="Be brief.",
            messages=[{"role": "user", "content": SAY}],
            max_tokens=16,
            extra_body=GREEDY,
            stop_sequences=[first],
        )
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", first)


def test_the_anthropic_client_uses_tools_and_gives_their_results(shared: Server) -> None:
    with Anthropic(base_url=shared.endpoint, api_key=KEY, max_retries=0) as client:
        model = shared.status().model
        tool: ToolParam = {
            "name": "get_weather",
            "description": "The weather of a city",
            "input_schema": WEATHER_SCHEMA,
        }
        asked: list[MessageParam] = [{"role": "user", "content": "How is the weather in Rome?"}]
        answer = client.messages.create(
            model=model,
            messages=asked,
            tools=[tool],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            max_tokens=64,
            extra_body=GREEDY,
        )
        (use,) = answer.content
        assert use.type == "tool_use"
        assert use.input["city"] in ("Rome", "Oslo")
        assert answer.stop_reason == "tool_use"
        with client.messages.stream(
            model=model,
            messages=asked,
            tools=[tool],
            tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
            max_tokens=64,
            extra_body=GREEDY,
        ) as stream:
            pieces = [e.partial_json for e in stream if e.type == "input_json"]
            final = stream.get_final_message()
        (streamed,) = final.content
        assert streamed.type == "tool_use"
        assert json.loads("".join(pieces)) == streamed.input == use.input
        assert final.stop_reason == "tool_use"
        asked += [
            {"role": "assistant", "content": [use]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 25 C"}
                ],
            },
        ]
        said = client.messages.create(
            model=model, messages=asked, tools=[tool], max_tokens=16, extra_body=GREEDY
        )
        usage = said.usage
        counted = client.messages.count_tokens(model=model, messages=asked, tools=[tool])
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        without = client.messages.count_tokens(model=model, messages=asked)
        assert without.input_tokens < counted.input_tokens


def test_the_anthropic_client_parses_a_message(shared: Server) -> None:
    with Anthropic(base_url=shared.endpoint, api_key=KEY, max_retries=0) as client:
        parsed = client.messages.parse(
            model=shared.status().model,
            messages=[{"role": "user", "content": "A city?"}],
            output_format=City,
            max_tokens=64,
            extra_body=GREEDY,
        )
        assert isinstance(parsed.parsed_output, City)


def test_the_anthropic_client_raises_what_it_should(shared: Server) -> None:
    with Anthropic(base_url=shared.endpoint, api_key="wrong-key", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(
                model="x", max_tokens=1, messages=[{"role": "user", "content": "x"}]
            )
        assert caught.value.request_id
    with Anthropic(base_url=shared.endpoint, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(
                model="gpt", max_tokens=1, messages=[{"role": "user", "content": "x"}]
            )
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            client.messages.create(
                model=shared.status().model,
                max_tokens=1,
                messages=[{"role": "user", "content": "x"}],
                extra_body={"temperature": 7},
            )


# --- llama-server's routes --------------------------------------------------------------


def test_texts_become_tokens_and_back_and_templates_are_applied(shared: Server) -> None:
    text = "Three rivers: Rhône, 長江 and 🏞️"
    tokens = shared.http.post("/tokenize", json={"content": text}).json()["tokens"]
    assert shared.http.post("/detokenize", json={"tokens": tokens}).json() == {"content": text}
    asked = {"messages": [{"role": "user", "content": SAY}]}
    prompt = shared.http.post("/apply-template", json=asked).json()["prompt"]
    assert SAY in prompt
    body = {"prompt": prompt, "n_predict": 12, "temperature": 0}
    native = shared.http.post("/completion", json=body).json()
    chat = shared.http.post(
        "/chat/completions", json={**asked, "max_tokens": 12, "temperature": 0}
    ).json()
    assert native["content"] == chat["choices"][0]["message"]["content"]
    assert native["timings"]["predicted_n"] == native["tokens_predicted"]


def test_slots_and_props_are_there(shared: Server) -> None:
    slots = shared.http.get("/slots").json()
    assert shared.http.get("/props").json()["total_slots"] == len(slots) > 0


# --- the terminal -----------------------------------------------------------------------


def test_lines_of_a_file_are_messages(shared: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lbhost", "chat", "--url", shared.endpoint, "--system", "Be brief."],
        input=f"{SAY}\n\nAnd one more.\n",  # an answer may fill the context: see conversation.py
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "LBHOST_API_KEY": KEY},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 2


@pytest.mark.parametrize(
    ("arguments", "key", "complaint"),
    [
        (("--url", "http://127.0.0.1:9"), KEY, "no server answers at http://127.0.0.1:9"),
        (("--url", "localhost"), KEY, "--url: expected something like"),
        ((), "another-key", "wrong or missing API key"),
    ],
)
def test_what_goes_wrong_is_one_line(
    shared: Server, arguments: tuple[str, ...], key: str, complaint: str
) -> None:
    where = arguments or ("--runtime-dir", str(shared.runtime_dir))
    done = subprocess.run(
        [sys.executable, "-m", "lbhost", "chat", *where],
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "LBHOST_API_KEY": key},
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("lbhost: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends(shared: Server) -> None:
    with Terminal(KEY, "--runtime-dir", str(shared.runtime_dir)) as terminal:
        terminal.sees("Ctrl-D ends\\s+> ")
        terminal.type("Tell me a very long story about a river.\n")
        shared.wait(lambda status: status.traffic.in_flight > 0, "it answers")
        terminal.sees(r"river\.\s+[^\s>]")
        terminal.process.send_signal(signal.SIGINT)
        terminal.sees(r"\[stopped\]\s+> ")
        shared.wait(lambda status: status.traffic.in_flight == 0, "the slot is free")
        terminal.process.send_signal(signal.SIGINT)
        terminal.sees("> ")
        terminal.type("Say hello.\n")
        terminal.sees(r"hello\.\s+[^\s>]")
        terminal.sees("> ")
        terminal.type("\x04")
        assert terminal.process.wait(PATIENCE_S) == 0
