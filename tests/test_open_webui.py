"""What Open WebUI asks for, as its version 0.12.4 was recorded in front of a running lbhost.

Its own words in the prompts are shortened; fields, their order and their values are as they came.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from running_gateway import MODEL, running_gateway

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]

KEY = "sk-open-webui-key-1234567"
HEADERS = {
    "content-type": "application/json",
    "authorization": f"Bearer {KEY}",
    "accept": "*/*",
    "user-agent": "Python/3.11 aiohttp/3.13.2",
}
SAID = [{"role": "user", "content": "Name three rivers."}]
TIME = {"type": "object", "properties": {}, "required": []}
WHAT = {"name": "get_time", "description": "the time", "parameters": TIME}
TOOL = {"type": "function", "function": WHAT}
SETTINGS: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "seed": 3, "stop": ["zz"],
    "max_tokens": 8, "frequency_penalty": 0.5, "presence_penalty": 0.1, "repeat_penalty": 1.1,
    "mirostat": 0, "tfs_z": 1, "num_ctx": 1024, "logit_bias": {"5": -100},
    "reasoning_effort": "low", "keep_alive": "5m",
}  # fmt: skip
"""Of a chat, all that its panel offers. Ollama's and old llama.cpp's names are among them."""
CALL = {"index": 0, "id": "call_1", "type": "function"}
CALLED = [
    *SAID,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{**CALL, "function": {"name": "get_time", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
]
CHATS: list[dict[str, Any]] = [
    {"messages": SAID, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 16},
    {"messages": SAID, "stream": False},
    {"messages": SAID, "stream": True, **SETTINGS},
    {"messages": SAID, "stream": True, "max_tokens": 64, "tools": [TOOL]},
    {"messages": CALLED, "stream": True, "tools": [TOOL]},
    {"messages": SAID, "stream": False, "max_tokens": 1000},  # a title
    {  # "continue", where it knows the server as llama.cpp
        "messages": [*SAID, {"role": "assistant", "content": "The Rhine,"}],
        "stream": True,
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
]


def spoken(role: str, kind: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


RESPONSES: list[dict[str, Any]] = [
    {
        "stream": True,
        "input": [spoken("user", "input_text", "Name three rivers.")],
        "max_output_tokens": 16,
    },
    {
        "stream": False,
        "input": [
            spoken("user", "input_text", "Name three rivers."),
            spoken("assistant", "output_text", "Rhine"),
            {"type": "function_call", "call_id": "call_1", "name": "get_time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "noon"},
            spoken("user", "input_text", "Name three rivers."),
        ],
        "instructions": "Be brief.",
        "tools": [{"type": "function", "strict": False, **WHAT}],
    },
]


async def test_it_finds_the_model() -> None:
    async with running_gateway(api_key=KEY) as g:
        models = (await g.client.get("/v1/models", headers=HEADERS)).json()
        assert [model["id"] for model in models["data"]] == [MODEL]
        assert models["object"] == "list"


async def test_its_chats_are_answered_whole_and_streamed() -> None:
    async with running_gateway(api_key=KEY) as g:
        for body in CHATS:
            asked = {"model": MODEL, **body}
            answer = await g.client.post("/v1/chat/completions", json=asked, headers=HEADERS)
            assert answer.status_code == 200, answer.text
            if not body["stream"]:
                assert answer.json()["choices"][0]["message"]["content"]
                continue
            # It takes an answer for a stream by this, and tells the text from these fields.
            assert "text/event-stream" in answer.headers["content-type"]
            *events, done, end = answer.text.split("\n\n")
            assert (done, end) == ("data: [DONE]", "")
            chunks = [json.loads(event.removeprefix("data: ")) for event in events]
            deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
            assert "".join(delta.get("content") or "" for delta in deltas)
            assert ("usage" in chunks[-1]) == ("stream_options" in body)


async def test_its_connections_by_responses_are_answered_too() -> None:
    async with running_gateway(api_key=KEY) as g:
        for body in RESPONSES:
            asked = {"model": MODEL, **body}
            answer = await g.client.post("/v1/responses", json=asked, headers=HEADERS)
            assert answer.status_code == 200, answer.text
            if body["stream"]:
                *_, last, end = answer.text.split("\n\n")
                assert last.startswith("event: response.completed\n")
                assert end == ""
            else:
                assert answer.json()["output"][0]["content"][0]["text"]


async def test_it_counts_tokens_as_anthropics_clients_do() -> None:
    async with running_gateway(api_key=KEY) as g:
        asked = {"model": MODEL, "max_tokens": 8, "messages": SAID}
        answer = await g.client.post("/v1/messages/count_tokens", json=asked, headers=HEADERS)
        assert answer.json()["input_tokens"] > 0


async def test_what_it_may_show_its_user_says_what_is_wrong() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    said = [{"role": "user", "content": [{"type": "text", "text": "what"}, picture]}]
    async with running_gateway(api_key=KEY) as g:
        for path, body in (
            ("/v1/chat/completions", {"messages": said, "stream": False}),
            ("/v1/embeddings", {"input": "x"}),
        ):
            answer = await g.client.post(path, json={"model": MODEL, **body}, headers=HEADERS)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"]
