"""Anthropic's messages: what clients may send, the answers, the events and their order."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given

from any_bodies import patiently, refusal, some_fields
from events import named_events
from fake_worker import Script
from lbhost import wire
from lbhost.errors import (
    DeadlineError,
    InvalidRequestError,
    LbhostError,
    NotFoundError,
    NotReadyError,
    PayloadTooLargeError,
    QueueFullError,
    UnauthorizedError,
)
from lbhost.gateway.api import error_shapes, messages
from lbhost.gateway.api.generation import Generation, PastCall, Style, ToolUse, Turn
from lbhost.gateway.api.messages_reply import MessagesReply
from lbhost.gateway.api.tools.forced import Tool
from running_gateway import MODEL, running_gateway

N_VOCAB = 1000
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
CALL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
TOOLS = (Tool("f", "", {"type": "object"}), Tool("g", "", {"type": "object"}))
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "4"}


def parse(**fields: Any) -> Generation:
    return messages.parse(msgspec.json.encode({**HELLO, **fields}), N_VOCAB).generation


def test_a_conversation_becomes_turns() -> None:
    generation = parse(
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": "b"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "c"},
                    {"type": "text", "text": "d"},
                ],
            },
            {"role": "user", "content": "e"},
            {"role": "system", "content": "f"},
        ],
        stop_sequences=["x", "y", "x"],
        top_k=5,
        temperature=0.5,
        metadata={"user_id": "me"},
    )
    assert generation.prompt == (
        Turn("system", "be brief"),
        Turn("user", "a\n\nb"),
        Turn("assistant", "c\nd", thought="hm"),
        Turn("user", "e"),
        Turn("system", "f"),
    )
    assert generation.stop == ("x", "y")
    assert (generation.sampling.top_k, generation.sampling.temperature) == (5, 0.5)


def test_a_last_message_of_the_assistant_is_continued() -> None:
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert parse(messages=said).continues
    assert not parse(messages=said[:1]).continues


def test_max_tokens_is_cut_to_the_room_there_is() -> None:
    generation = parse(max_tokens=100_000)
    assert (generation.max_tokens, generation.usual_tokens) == (None, 100_000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", None), ("max_tokens", 0), ("max_tokens", "5"), ("temperature", 1.5),
        ("temperature", -1), ("top_p", 2), ("top_k", -2), ("system", 5), ("system", [{}]),
        ("system", [{"type": "image"}]), ("messages", []), ("messages", "hi"),
        ("messages", [{"role": "king", "content": "x"}]), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "image", "source": {}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("n", 2),
        ("stop_sequences", "x"), ("stop_sequences", [""]), ("stop_sequences", ["x"] * 17),
        ("metadata", 5), ("metadata", {"user_id": 5}), ("stream", "yes"), ("model", 5),
        ("service_tier", "flex"), ("tools", [{"name": "f"}]), ("tools", [{"input_schema": {}}]),
        ("tools", [{"name": "a b", "input_schema": {}}]), ("tools", [TOOL, TOOL]),
        ("tools", [{"type": "bash_20250124", "name": "bash", "input_schema": {}}]),
        ("tool_choice", {"type": "any"}), ("tool_choice", {"type": "tool"}),
        ("tool_choice", {"type": "tool", "name": "f"}), ("tool_choice", "any"),
        ("thinking", {"type": "x"}), ("thinking", {"type": "enabled", "budget_tokens": 0}),
        ("container", "c"), ("mcp_servers", [{}]), ("output_format", {"type": "json_schema"}),
        ("output_config", {"format": {"type": "text", "schema": {}}}),
        ("messages", [{"role": "user", "content": [CALL]}]),
        ("messages", [{"role": "user", "content": "x"}, {"role": "assistant", "content": [CALL]}]),
        ("messages", [{"role": "user", "content": [{"type": "tool_result"}]}]),
        ("messages", [{"role": "user", "content": [RESULT]}]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, field)
    assert field in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []), ("tool_choice", {"type": "auto"}), ("thinking", {"type": "disabled"}),
        ("tool_choice", {"type": "none"}), ("thinking", {"type": "adaptive"}),
        ("service_tier", "standard_only"), ("unheard_of", [1]), ("mcp_servers", []),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(field: str, value: Any) -> None:
    assert parse(**{field: value}).prompt == (Turn("user", "hi"),)


FIELDS = [
    "model", "messages", "system", "max_tokens", "metadata", "stop_sequences", "stream",
    "temperature", "top_k", "top_p", "tools", "tool_choice", "thinking", "service_tier",
    "output_config", "output_format",
]  # fmt: skip


@patiently
@given(some_fields(FIELDS))
def test_any_body_is_understood_or_refused_by_name(fields: dict[str, Any]) -> None:
    assert refusal(messages.parse, {**HELLO, **fields}) in {None, "", *fields}


def test_calls_and_their_results_become_turns() -> None:
    generation = parse(
        tools=[{**TOOL, "description": "adds"}],
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "text", "text": "wait"}, CALL]},
            {
                "role": "user",
                "content": [
                    RESULT,
                    {**RESULT, "content": [{"type": "text", "text": "no"}], "is_error": True},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
    )
    assert generation.prompt == (
        Turn("user", "x"),
        Turn("assistant", "wait", calls=(PastCall("toolu_1", "f", {"a": 1}),)),
        Turn("tool", "4", answers="toolu_1"),
        Turn("tool", "Error: no", answers="toolu_1"),
        Turn("user", "and?"),
    )
    assert generation.tools == ToolUse((Tool("f", "adds", {"type": "object"}),))
    assert generation.reads


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "any"}, ToolUse(TOOLS, ("f", "g"))),
        ({"type": "tool", "name": "g"}, ToolUse(TOOLS, ("g",))),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolUse(TOOLS, parallel=False)),
        ({"type": "none"}, None),
    ],
)
def test_the_choice_of_tools_is_anthropics(choice: Any, expected: ToolUse | None) -> None:
    generation = parse(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert generation.tools == expected


def test_an_answer_can_be_bound_and_thinking_switched() -> None:
    form = {"type": "json_schema", "schema": {"type": "integer"}}
    for field in ({"output_config": {"format": form}}, {"output_format": form}):
        generation = parse(**field)
        assert generation.grammar is not None
        assert generation.grammar.text == '{"type":"integer"}'
    with pytest.raises(InvalidRequestError, match="output_config: cannot be combined with tools"):
        parse(output_config={"format": form}, tools=[TOOL])
    on = parse(thinking={"type": "enabled", "budget_tokens": 1024}, output_config={"effort": "low"})
    assert on.template_options == {
        "enable_thinking": True,
        "thinking": True,
        "reasoning_effort": "low",
    }


def test_nothing_is_continued_together_with_tools() -> None:
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(InvalidRequestError, match="not continued together with tools"):
        parse(messages=said, tools=[TOOL])


# --- answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "reason", "stop"),
    [
        (wire.Finish(wire.FinishReason.STOP), "end_turn", None),
        (wire.Finish(wire.FinishReason.STOP, stop="X"), "stop_sequence", "X"),
        (wire.Finish(wire.FinishReason.LENGTH, completion_tokens=20), "max_tokens", None),
        (
            wire.Finish(wire.FinishReason.LENGTH, completion_tokens=19),
            "model_context_window_exceeded",
            None,
        ),
    ],
)
def test_why_it_ended_is_told(finish: wire.Finish, reason: str, stop: str | None) -> None:
    reply = MessagesReply("1", "toy", Style(repeated={"max_tokens": 20}))
    body = reply.complete("hi", finish)
    assert (body.stop_reason, body.stop_sequence) == (reason, stop)
    (delta,) = [e for n, e in named_events(reply.end(finish)) if n == "message_delta"]
    assert delta["delta"] == {"stop_reason": reason, "stop_sequence": stop}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("x"), "invalid_request_error"),
        (UnauthorizedError("x"), "authentication_error"),
        (NotFoundError("x"), "not_found_error"),
        (PayloadTooLargeError("x"), "request_too_large"),
        (QueueFullError("x"), "rate_limit_error"),
        (NotReadyError("x"), "overloaded_error"),
        (DeadlineError("x"), "timeout_error"),
        (LbhostError("x"), "api_error"),
    ],
)
def test_errors_have_anthropics_types(error: LbhostError, kind: str) -> None:
    body = json.loads(error_shapes.body(error, "/v1/messages/count_tokens", "req_1"))
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
        "request_id": "req_1",
    }


def test_other_paths_have_openais_errors() -> None:
    for path in ("/v1/messagesx", "/v1/chat/completions", ""):
        body = json.loads(error_shapes.body(NotFoundError("x"), path, "req_1"))
        assert set(body) == {"error"}


@pytest.mark.anyio
async def test_an_answer_has_anthropics_shape() -> None:
    async with running_gateway(script=Script(cached_tokens=3)) as g:
        response = await g.client.post(
            "/v1/messages", json={**HELLO, "model": MODEL}, headers={"anthropic-version": "x"}
        )
        assert response.status_code == 200
        assert response.headers["request-id"] == response.headers["x-request-id"]
        body = response.json()
        assert body.pop("id").startswith("msg_")
        usage = body.pop("usage")
        assert body == {
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [{"type": "text", "text": "one two three four five"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
        }
        assert (usage["output_tokens"], usage["cache_read_input_tokens"]) == (5, 3)
        counted = await g.client.post(
            "/v1/messages/count_tokens", json={"messages": HELLO["messages"]}
        )
        assert counted.json() == {"input_tokens": usage["input_tokens"] + 3}


@pytest.mark.anyio
async def test_events_come_in_anthropics_order() -> None:
    async with running_gateway() as g:
        response = await g.client.post("/v1/messages", json={**HELLO, "stream": True})
        events = named_events(response.content)
        names = [name for name, _ in events]
        deltas = names.count("content_block_delta")
        assert deltas >= 1
        assert names == [
            "message_start",
            "ping",
            "content_block_start",
            *["content_block_delta"] * deltas,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert all(event["type"] == name for name, event in events)
        texts = [e["delta"]["text"] for n, e in events if n == "content_block_delta"]
        assert "".join(texts) == "one two three four five"
        start, end = events[0][1]["message"]["usage"], events[-2][1]["usage"]
        assert (start["input_tokens"], start["output_tokens"]) == (end["input_tokens"], 0)
        assert end["output_tokens"] == 5


@pytest.mark.anyio
async def test_every_refusal_on_these_paths_has_anthropics_shape() -> None:
    async with running_gateway(api_key="secret-key", max_body_bytes=1024) as g:
        key = {"x-api-key": "secret-key"}
        json_type = {**key, "content-type": "application/json"}
        for what, status, kind in (
            (g.client.post("/v1/messages", json=HELLO), 401, "authentication_error"),
            (
                g.client.post("/v1/messages", json={**HELLO, "model": "gpt"}, headers=key),
                404,
                "not_found_error",
            ),
            (g.client.post("/v1/messages/batches", json={}, headers=key), 404, "not_found_error"),
            (g.client.get("/v1/messages", headers=key), 405, "invalid_request_error"),
            (
                g.client.post("/v1/messages", content=b"x" * 2000, headers=json_type),
                413,
                "request_too_large",
            ),
            (
                g.client.post("/v1/messages", content=b"{", headers=json_type),
                400,
                "invalid_request_error",
            ),
        ):
            response = await what
            assert response.status_code == status
            body = response.json()
            assert (body["type"], body["error"]["type"]) == ("error", kind)
            assert body["request_id"] == response.headers["request-id"]


@pytest.mark.anyio
async def test_without_workers_it_is_overloaded() -> None:
    async with running_gateway(workers=0) as g:
        response = await g.client.post("/v1/messages", json=HELLO)
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "overloaded_error"


@pytest.mark.anyio
async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    def answer(_: wire.Submit) -> list[str]:
        return ["a"] * 2000

    async with running_gateway(script=Script(answer=answer, step_s=0.005)) as g:
        body = {**HELLO, "max_tokens": 1000, "stream": True}
        async with g.client.stream("POST", "/v1/messages", json=body) as response:
            got = b""
            async for data in response.aiter_bytes():
                got += data
                if b"content_block_delta" in got:
                    g.stop(0.0)
        name, event = named_events(got)[-1]
        assert (name, event["type"], event["error"]["type"]) == (
            "error",
            "error",
            "overloaded_error",
        )
        assert event["request_id"] == response.headers["request-id"]


@pytest.mark.anyio
async def test_text_that_is_held_back_sends_no_pings() -> None:
    pieces = ['{"name": "f", ', '"arguments": ', '{"a": 1', "}}"]
    async with running_gateway(script=Script(answer=lambda _: pieces, step_s=0.01)) as g:
        body = {**HELLO, "stream": True, "tools": [TOOL]}
        response = await g.client.post("/v1/messages", json=body)
        events = named_events(response.content)
        assert [name for name, _ in events].count("ping") == 1
        assert events[-2][1]["delta"]["stop_reason"] == "tool_use"
