"""Thoughts, text and calls in OpenAI's responses and Anthropic's messages: whole and in streams."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from events import named_events
from lbhost import wire
from lbhost.gateway.api.generation import Style
from lbhost.gateway.api.messages_reply import MessagesReply
from lbhost.gateway.api.reading import Reading, Thinking
from lbhost.gateway.api.responses_reply import ResponsesReply
from lbhost.gateway.api.tools.families import Family

TAGS = Thinking("<think>", "</think>")
READING = Reading(TAGS, Family.HERMES, ("get_weather", "now"))
FORCED = Reading(None, Family.HERMES, ("get_weather",), forced=True)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TEXT = f'<think>hm\n</think>\n\nLet me see.\n{CALL}<tool_call>{{"name": "now"}}</tool_call>'
STOP = wire.Finish(wire.FinishReason.STOP, 9, completion_tokens=20)
CUT = wire.Finish(wire.FinishReason.LENGTH, 9, completion_tokens=20)
Events = list[tuple[str, Any]]


def messages_reply(reading: Reading = READING) -> MessagesReply:
    return MessagesReply("r1", "toy", Style(reading=reading, repeated={"max_tokens": 20}))


def responses_reply(reading: Reading = READING) -> ResponsesReply:
    return ResponsesReply("r1", "toy", Style(reading=reading))


def whole(
    reply: MessagesReply | ResponsesReply, text: str, finish: wire.Finish = STOP
) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(msgspec.json.encode(reply.complete(text, finish)))
    return made


def streamed(
    reply: MessagesReply | ResponsesReply, text: str, cut: int, finish: wire.Finish = STOP
) -> Events:
    data = reply.begin() + reply.piece(text[:cut]) + reply.piece(text[cut:]) + reply.end(finish)
    events = named_events(data)
    assert all(event["type"] == name for name, event in events)
    return events


def checked(kind: Any, events: Events) -> None:
    """Raises pydantic.ValidationError where a client's own types want something else."""
    for _, event in events:
        TypeAdapter(kind).validate_python(event)


def test_events_have_what_the_clients_types_ask_for() -> None:
    for reading, text in ((READING, TEXT), (FORCED, CALL)):
        for finish in (STOP, CUT):
            spoken = streamed(messages_reply(reading), text, 5, finish)
            checked(RawMessageStreamEvent, [one for one in spoken if one[0] != "ping"])
            checked(ResponseStreamEvent, streamed(responses_reply(reading), text, 5, finish))
    Response.model_validate(whole(responses_reply(), TEXT))
    Message.model_validate(whole(messages_reply(), TEXT))


# --- messages ---------------------------------------------------------------------------


def message_of(events: Events) -> dict[str, Any]:
    """What a client makes of a stream."""
    (_, start), *rest = events
    message: dict[str, Any] = start["message"]
    inputs: dict[int, str] = {}
    closed: set[int] = set()
    for name, event in rest:
        if name == "content_block_start":
            assert event["index"] == len(message["content"]) == len(closed)
            message["content"].append(event["content_block"])
        elif name == "content_block_delta":
            assert event["index"] == len(message["content"]) - 1
            block, delta = message["content"][-1], event["delta"]
            if delta["type"] == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
            else:
                key = delta["type"].removesuffix("_delta")
                block[key] += delta[key]
        elif name == "content_block_stop":
            if event["index"] in inputs:
                message["content"][-1]["input"] = json.loads(inputs[event["index"]])
            closed.add(event["index"])
        elif name == "message_delta":
            message |= event["delta"]
            message["usage"] = event["usage"]
    assert rest[-1][0] == "message_stop"
    return message


def test_a_message_holds_thoughts_text_and_calls() -> None:
    message = whole(messages_reply(), TEXT)
    thought, text, first, second = message["content"]
    assert thought == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert text == {"type": "text", "text": "Let me see.\n"}
    assert (first["type"], first["name"], first["input"]) == (
        "tool_use", "get_weather", {"city": "Rome"},
    )  # fmt: skip
    assert (second["name"], second["input"]) == ("now", {})
    assert first["id"] != second["id"]
    assert first["id"].startswith("toolu_")
    assert message["stop_reason"] == "tool_use"


def test_a_streamed_message_adds_up_to_the_whole_one_wherever_it_is_cut() -> None:
    expected = whole(messages_reply(), TEXT)
    for cut in range(len(TEXT) + 1):
        assert message_of(streamed(messages_reply(), TEXT, cut)) == expected


def test_the_input_of_a_bound_call_comes_piece_by_piece() -> None:
    events = streamed(messages_reply(FORCED), CALL, CALL.index("ome"))
    deltas = [e["delta"] for name, e in events if name == "content_block_delta"]
    assert [d["partial_json"] for d in deltas] == ['{"city": "R', 'ome"}']
    assert message_of(events)["stop_reason"] == "tool_use"


def test_a_message_that_was_cut_in_a_call_says_so() -> None:
    message = whole(messages_reply(FORCED), CALL[:60], CUT)
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][0]["input"] == {}


@pytest.mark.parametrize("reply", [messages_reply, responses_reply])
def test_an_answer_without_a_word_has_one_empty_text(reply: Any) -> None:
    if reply is messages_reply:
        assert whole(reply(), "")["content"] == [{"type": "text", "text": ""}]
        assert message_of(streamed(reply(), "", 0))["content"] == [{"type": "text", "text": ""}]
    else:
        assert whole(reply(), "")["output"][0]["content"][0]["text"] == ""
        assert response_of(streamed(reply(), "", 0))["output"][0]["type"] == "message"


# --- responses --------------------------------------------------------------------------


def response_of(events: Events) -> dict[str, Any]:
    """What the last event holds, checked against what the others add up to."""
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    items: list[dict[str, Any]] = []
    for name, event in events:
        kind = name.removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
        elif kind == "content_part.added":
            items[event["output_index"]]["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            items[event["output_index"]]["content"][0]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == items[event["output_index"]]["content"][0]["text"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == items[event["output_index"]]["arguments"]
        elif kind == "content_part.done":
            assert event["part"] == items[event["output_index"]]["content"][0]
        elif kind == "output_item.done":
            item = items[event["output_index"]]
            assert item["status"] == "in_progress"
            item["status"] = event["item"]["status"]
            assert item == event["item"]
        if "item_id" in event:
            assert event["item_id"] == items[event["output_index"]]["id"]
    last: dict[str, Any] = events[-1][1]["response"]
    assert last["output"] == items
    return last


def test_a_response_holds_thoughts_text_and_calls() -> None:
    response = whole(responses_reply(), TEXT)
    thought, text, first, second = response["output"]
    assert (thought["type"], thought["summary"]) == ("reasoning", [])
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert text["content"][0]["text"] == "Let me see.\n"
    assert (first["type"], first["name"]) == ("function_call", "get_weather")
    assert json.loads(first["arguments"]) == {"city": "Rome"}
    assert second["name"] == "now"
    ids = [item["id"] for item in response["output"]] + [first["call_id"], second["call_id"]]
    assert len(set(ids)) == 6
    assert {item["status"] for item in response["output"]} == {"completed"}


def test_a_streamed_response_adds_up_to_the_whole_one_wherever_it_is_cut() -> None:
    expected = whole(responses_reply(), TEXT)["output"]
    for cut in range(len(TEXT) + 1):
        assert response_of(streamed(responses_reply(), TEXT, cut))["output"] == expected


def test_only_the_last_item_of_a_response_that_was_cut_is_incomplete() -> None:
    response = response_of(streamed(responses_reply(), f"<think>hm</think>{CALL[:20]}", 30, CUT))
    assert response["status"] == "incomplete"
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["output"][1]["content"][0]["text"] == CALL[:20]
