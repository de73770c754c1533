"""What clients read of calls and thoughts, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

from lbhost import wire
from lbhost.gateway.api.chat_reply import ChatReply
from lbhost.gateway.api.generation import Style
from lbhost.gateway.api.reading import Reading, Thinking
from lbhost.gateway.api.replies import Given
from lbhost.gateway.api.tools.families import Family
from lbhost.gateway.scheduling.deltas import TextDelta

READING = Reading(Thinking("<think>", "</think>"), Family.HERMES, ("get_weather", "now"))


TEXT = (
    "<think>hm</think>Let me see.\n"
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
)
STOP = wire.Finish(wire.FinishReason.STOP)


def reply(**how: Any) -> ChatReply:
    return ChatReply("r1", "toy", Style(reading=Reading(**how) if how else READING))


def chunks(data: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in data.decode().split("\n") if line.startswith("data: {")]
    return [json.loads(line)["choices"][0] for line in lines]


def streamed(text: str, cut: int, finish: wire.Finish = STOP) -> list[dict[str, Any]]:
    made = reply()
    data = made.opening(0)
    for piece in (text[:cut], text[cut:]):
        data += made.text(0, TextDelta(piece, (1,)))
    return chunks(data + made.last_chunk(0, finish))


def test_a_whole_answer_holds_thoughts_text_and_calls() -> None:
    body = json.loads(reply().whole([Given(TextDelta(TEXT, (1,)), STOP)], [STOP]))
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["reasoning_content"] == "hm"
    assert message["content"] == "Let me see.\n"
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather", "now"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert all(call["type"] == "function" for call in message["tool_calls"])


def test_content_is_null_when_there_are_only_calls() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    body = json.loads(reply().whole([Given(TextDelta(text, (1,)), STOP)], [STOP]))
    assert body["choices"][0]["message"]["content"] is None


def test_a_stream_tells_id_type_and_name_first_and_then_arguments() -> None:
    whole = json.loads(reply().whole([Given(TextDelta(TEXT, (1,)), STOP)], [STOP]))
    expected = whole["choices"][0]["message"]
    for cut in range(len(TEXT) + 1):
        calls: dict[int, dict[str, Any]] = {}
        content = thought = ""
        events = streamed(TEXT, cut)
        for event in events:
            delta = event["delta"]
            content += delta.get("content") or ""
            thought += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] not in calls:
                    assert set(call) == {"index", "id", "type", "function"}
                    assert call["function"]["name"]
                    calls[call["index"]] = {**call, "function": dict(call["function"])}
                else:
                    assert "name" not in call["function"]
                    known = calls[call["index"]]["function"]
                    known["arguments"] += call["function"]["arguments"]
        assert content == expected["content"]
        assert thought == expected["reasoning_content"]
        found = [{k: v for k, v in call.items() if k != "index"} for call in calls.values()]
        assert found == expected["tool_calls"]
        assert [event["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1]["finish_reason"] == "tool_calls"


def test_a_call_that_was_cut_off_is_text_and_the_reason_is_its_length() -> None:
    events = streamed('<tool_call>{"name": "now", "argum', 5, wire.Finish(wire.FinishReason.LENGTH))
    said = "".join(event["delta"].get("content") or "" for event in events)
    assert said == '<tool_call>{"name": "now", "argum'
    assert events[-1]["finish_reason"] == "length"
