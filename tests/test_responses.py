"""OpenAI's responses: what clients may send, the answers, the events and their order."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given

from any_bodies import patiently, refusal, some_fields
from events import named_events
from fake_worker import Script
from lbhost import wire
from lbhost.errors import InvalidRequestError, QueueFullError, WorkerLostError
from lbhost.gateway.api import responses
from lbhost.gateway.api.generation import Generation, PastCall, Style, ToolUse, Turn
from lbhost.gateway.api.responses_reply import IncompleteDetails, ResponsesReply
from lbhost.gateway.api.tools.forced import Tool
from running_gateway import MODEL, running_gateway

N_VOCAB = 1000
PATH = "/v1/responses"
TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "4"}


def parse(**fields: Any) -> Generation:
    return responses.parse(msgspec.json.encode({"input": "hi", **fields}), N_VOCAB).generation


def test_a_text_is_what_the_user_says() -> None:
    generation = parse(instructions="be brief", max_output_tokens=7, temperature=0.5, top_p=0.9)
    assert generation.prompt == (Turn("system", "be brief"), Turn("user", "hi"))
    assert (generation.max_tokens, generation.max_tokens_param) == (7, "max_output_tokens")
    assert (generation.sampling.temperature, generation.sampling.top_p) == (0.5, 0.9)


def test_items_become_turns() -> None:
    generation = parse(
        instructions="be brief",
        input=[
            {"role": "developer", "content": "and kind"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "b", "annotations": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {"role": "user", "content": "c"},
        ],
    )
    assert generation.prompt == (
        Turn("system", "be brief\n\nand kind"),
        Turn("user", "a"),
        Turn("assistant", "b\nno"),
        Turn("user", "c"),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", None), ("input", []), ("input", 5), ("input", [5]), ("input", [{}]),
        ("input", [{"role": "king", "content": "x"}]), ("input", [{"role": "user"}]),
        ("input", [{"type": "function_call", "name": "f", "arguments": "{}"}]),
        ("input", [{**CALL, "arguments": "[]"}]), ("input", [{**CALL, "arguments": "{"}]),
        ("input", [RESULT]), ("input", [RESULT, CALL]), ("input", [CALL, {**RESULT, "output": 5}]),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"type": "reasoning"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", [{"role": "user", "content": [{"type": "input_text"}]}]),
        ("instructions", 5), ("max_output_tokens", 0), ("max_output_tokens", "5"),
        ("temperature", 3), ("top_p", 2), ("store", True), ("store", "yes"),
        ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True),
        ("prompt", {"id": "p"}), ("truncation", "auto"), ("truncation", "x"),
        ("text", {"format": {"type": "xml"}}), ("text", {"format": {"type": "json_schema"}}),
        ("text", {"format": 5}), ("text", 5), ("tools", [{"type": "web_search"}]),
        ("tools", [{"type": "function", "name": "a b"}]), ("tools", [TOOL, TOOL]),
        ("tool_choice", "required"), ("tool_choice", {"type": "function", "name": "f"}),
        ("tool_choice", {"type": "function"}), ("tool_choice", {"type": "file_search"}),
        ("top_logprobs", 3), ("include", ["message.output_text.logprobs"]), ("include", 5),
        ("metadata", {"a": 5}), ("metadata", {"a": "x" * 513}), ("reasoning", "high"),
        ("service_tier", "x"), ("stream", 1), ("model", 5), ("n", 2),
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
        ("store", False), ("store", None), ("background", False), ("previous_response_id", None),
        ("text", {"format": {"type": "text"}, "verbosity": "low"}), ("tools", []),
        ("tool_choice", "auto"), ("tool_choice", "none"),
        ("include", ["reasoning.encrypted_content"]),
        ("reasoning", {"effort": "low", "summary": None}), ("truncation", "disabled"),
        ("user", "me"), ("prompt_cache_key", "k"), ("unheard_of", [1]),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(field: str, value: Any) -> None:
    assert parse(**{field: value}).prompt == (Turn("user", "hi"),)


FIELDS = [
    "model", "input", "instructions", "max_output_tokens", "text", "reasoning", "metadata",
    "include", "store", "background", "truncation", "previous_response_id", "conversation",
    "prompt", "tools", "tool_choice", "top_logprobs", "temperature", "top_p", "stream",
]  # fmt: skip


@patiently
@given(some_fields(FIELDS))
def test_any_body_is_understood_or_refused_by_name(fields: dict[str, Any]) -> None:
    assert refusal(responses.parse, {"input": "hi", **fields}) in {None, "", *fields}


def test_calls_their_outputs_and_thoughts_become_turns() -> None:
    generation = parse(
        tools=[TOOL],
        input=[
            {"role": "user", "content": "x"},
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "short"}],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {"role": "assistant", "content": "wait"},
            CALL,
            {**CALL, "call_id": "call_2", "arguments": ""},
            RESULT,
            {**RESULT, "call_id": "call_2", "output": [{"type": "input_text", "text": "5"}]},
        ],
    )
    calls = (PastCall("call_1", "f", {"a": 1}), PastCall("call_2", "f", {}))
    assert generation.prompt == (
        Turn("user", "x"),
        Turn("assistant", "wait", calls=calls, thought="hm"),
        Turn("tool", "4", answers="call_1"),
        Turn("tool", "5", answers="call_2"),
    )
    assert generation.tools == ToolUse((Tool("f", "", {"type": "object"}),))
    assert generation.reads


ALLOWED = {"type": "allowed_tools", "tools": [{"type": "function", "name": "g"}]}
TWO = (Tool("f", "", {"type": "object"}), Tool("g", "", {"type": "object"}))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", ToolUse(TWO, ("f", "g"))),
        ({"type": "function", "name": "g"}, ToolUse(TWO, ("g",))),
        ({**ALLOWED, "mode": "required"}, ToolUse(TWO, ("g",))),
        (ALLOWED, ToolUse(TWO[1:])),
        ("none", None),
    ],
)
def test_the_choice_of_tools_is_openais(choice: Any, expected: ToolUse | None) -> None:
    assert parse(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice).tools == expected


def test_an_answer_can_be_bound_and_thinking_switched_off() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": True}
    generation = parse(text={"format": form}, reasoning={"effort": "none"})
    assert generation.grammar is not None
    assert (generation.grammar.text, generation.grammar.param) == ('{"type":"integer"}', "text")
    assert generation.template_options == {
        "reasoning_effort": "none",
        "enable_thinking": False,
        "thinking": False,
    }
    assert parse(text={"format": {"type": "json_object"}}).grammar is not None
    with pytest.raises(InvalidRequestError, match="text: cannot be combined with tools"):
        parse(text={"format": form}, tools=[TOOL])


def test_the_answer_names_the_parameters_again() -> None:
    huge = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 10**40}}}
    body = {
        "input": "hi",
        "tools": [{**TOOL, "parameters": huge}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 7,
    }
    style = responses.parse(msgspec.json.encode(body), N_VOCAB).style
    # it may come from a helper process
    style = msgspec.msgpack.decode(msgspec.msgpack.encode(style), type=Style)
    made = ResponsesReply("1", "toy", style).complete("hi", wire.Finish(wire.FinishReason.STOP))
    got = msgspec.json.decode(msgspec.json.encode(made))
    assert got["tools"][0]["parameters"] == huge
    assert (got["tool_choice"]["name"], got["max_output_tokens"]) == ("f", 7)
    assert (got["text"]["format"]["type"], got["text"]["verbosity"]) == ("text", "low")
    assert got["reasoning"]["effort"] == "low"


# --- answers ----------------------------------------------------------------------------


def reply() -> ResponsesReply:
    return ResponsesReply("1", "toy")


def test_what_is_cut_off_is_incomplete() -> None:
    body = reply().complete("hi", wire.Finish(wire.FinishReason.LENGTH))
    assert body.status == body.output[0].status == "incomplete"
    assert body.incomplete_details == IncompleteDetails("max_output_tokens")


def test_a_failure_is_a_failed_response_whenever_it_comes() -> None:
    early = named_events(reply().failing(QueueFullError("full")))
    assert [name.removeprefix("response.") for name, _ in early] == [
        "created", "in_progress", "failed",
    ]  # fmt: skip
    failed = early[-1][1]["response"]
    assert (failed["status"], failed["output"]) == ("failed", [])
    assert failed["error"] == {"code": "rate_limit_exceeded", "message": "full"}
    late = reply()
    stream = late.begin() + late.piece("a") + late.failing(WorkerLostError("it died"))
    events = named_events(stream)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    name, last = events[-1]
    assert name == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["output"][0]["content"][0]["text"] == "a"


@pytest.mark.anyio
async def test_an_answer_has_openais_shape() -> None:
    async with running_gateway(script=Script(cached_tokens=3)) as g:
        body = {"input": "hello", "model": MODEL, "metadata": {"a": "b"}, "temperature": 0.5}
        response = await g.client.post(PATH, json=body)
        assert response.status_code == 200
        got = response.json()
        assert got["id"].startswith("resp_")
        assert (got["object"], got["status"], got["model"]) == ("response", "completed", MODEL)
        assert (got["metadata"], got["temperature"], got["store"]) == ({"a": "b"}, 0.5, False)
        (item,) = got["output"]
        assert (item["type"], item["role"], item["status"]) == (
            "message", "assistant", "completed",
        )  # fmt: skip
        assert item["content"] == [
            {
                "type": "output_text",
                "text": "one two three four five",
                "annotations": [],
                "logprobs": [],
            }
        ]
        usage = got["usage"]
        assert usage["output_tokens"] == 5
        assert usage["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 0}
        assert usage["total_tokens"] == usage["input_tokens"] + 5


@pytest.mark.anyio
async def test_events_come_in_openais_order() -> None:
    async with running_gateway() as g:
        response = await g.client.post(PATH, json={"input": "hello", "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        events = named_events(response.content)
        names = [name.removeprefix("response.") for name, _ in events]
        deltas = names.count("output_text.delta")
        assert deltas >= 1
        assert names == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            *["output_text.delta"] * deltas,
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert all(event["type"] == name for name, event in events)
        assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
        text = "".join(e["delta"] for n, e in events if n.endswith("text.delta"))
        last = events[-1][1]["response"]
        assert last["output"][0]["content"][0]["text"] == text == "one two three four five"
        assert last["id"] == events[0][1]["response"]["id"]
        assert last["usage"]["output_tokens"] == 5


@pytest.mark.anyio
async def test_errors_before_the_first_text_have_a_status() -> None:
    async with running_gateway() as g:
        refused = await g.client.post(PATH, json={"input": "x", "store": True, "stream": True})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "store"
        too_many = await g.client.post(PATH, json={"input": "x", "max_output_tokens": 5000})
        assert too_many.json()["error"]["code"] == "context_length_exceeded"
        assert too_many.json()["error"]["param"] == "max_output_tokens"
