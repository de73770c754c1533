"""How model families write calls: grammars that bind them, and readers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lbhost import guidance
from lbhost.gateway.api.reading import AnswerReader, Reading, Thinking
from lbhost.gateway.api.tools import forced_tags
from lbhost.gateway.api.tools.calls import Arguments, CallBegun
from lbhost.gateway.api.tools.families import Family
from lbhost.gateway.api.tools.forced import Tool, calls_only
from lbhost.gateway.api.tools.forced_tags import text_arguments
from tool_requests import HI, NOW, WEATHER, accepts, prepare


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("parallel", [False, True])
def test_every_family_has_a_grammar_for_its_calls(family: Family, parallel: bool) -> None:
    tools = [Tool("get_weather", "", WEATHER["function"]["parameters"]), Tool("now")]
    written = guidance.check(calls_only(tools, family, parallel=parallel))
    key = "parameters" if family is Family.LLAMA3 else "arguments"
    call = f'{{"name": "get_weather", "{key}": {{"city": "Rome"}}}}'
    if family in (Family.HERMES, Family.QWEN_CODER):  # tags cannot say all that the schema does
        call = f"<tool_call>\n{call}\n</tool_call>"
    elif family is Family.GLM:
        call = f"<tool_call>{call}</tool_call>"
    elif family is Family.DEEPSEEK:
        call = 'get_weather\n```json\n{"city": "Rome"}\n```'
    elif parallel and family is not Family.LLAMA3:
        call = f"[{call}]"
    assert accepts(written, call)
    assert not accepts(written, call.replace('"Rome"', "5"))


SEND: dict[str, Any] = {
    "type": "object",
    "properties": {
        "to": {"type": "string", "description": "Whom"},
        "how": {"enum": ["by air", "1"]},
        "count": {"type": "integer"},
        "parts": {"type": "array", "items": {"type": "string", "maxLength": 3}},
    },
    "required": ["to", "how"],
}
IN_TAGS = {
    Family.QWEN_CODER: (
        "<tool_call>\n<function=send>\n<parameter=to>\n12\n<a </tool_call>\n</parameter>\n"
        '<parameter=how>\n1\n</parameter>\n<parameter=parts>\n["a"]\n</parameter>\n'
        "</function>\n</tool_call>"
    ),
    Family.GLM: (
        "<tool_call>send\n<arg_key>to</arg_key>\n<arg_value>12\n<a </tool_call></arg_value>\n"
        "<arg_key>how</arg_key>\n<arg_value>1</arg_value>\n"
        '<arg_key>parts</arg_key>\n<arg_value>["a"]</arg_value>\n</tool_call>'
    ),
}


@pytest.mark.parametrize("family", IN_TAGS)
def test_a_required_call_in_tags_is_bound_and_read(family: Family) -> None:
    text = IN_TAGS[family]
    written = guidance.check(calls_only([Tool("send", "", SEND)], family, parallel=True))
    assert accepts(written, text)
    assert accepts(written, f"{text}\n{text}")
    assert not accepts(written, text.replace('"a"', "5"))
    assert not accepts(written, text.replace('"a"', '"abcd"'))
    assert not accepts(written, text.replace("send", "sent"))
    how = Reading(None, family, ("send",), {"send": text_arguments(SEND)}, forced=True)
    reader = AnswerReader(how)
    events = [*reader.feed(text), *reader.finish()]
    assert isinstance(events[1], Arguments)
    expected = {"to": "12\n<a </tool_call>", "how": "1", "parts": ["a"]}
    assert (events[0], json.loads(events[1].text)) == (CallBegun("send"), expected)


@pytest.mark.parametrize("family", IN_TAGS)
@pytest.mark.parametrize(
    "one",
    [
        {"type": "string", "pattern": "^a$"},
        {"enum": ["<b>"]},
        {"enum": []},
        {"$ref": "#/$defs/x"},
        {"type": "string", "enum": 5},
        True,
    ],
)
def test_what_tags_cannot_carry_is_left_to_json(family: Family, one: Any) -> None:
    assert forced_tags.rules("call_0", "f", {"properties": {"a": one}}, family) is None
    assert forced_tags.rules("call_0", "f", {"properties": {"a>": {}}}, family) is None
    assert forced_tags.rules("call_0", "f", {"oneOf": []}, family) is None
    wrong: list[Any] = [None, 5, "a", [{}], ["b"]]
    for required in wrong:
        schema: dict[str, Any] = {"properties": {"a": {}}, "required": required}
        assert forced_tags.rules("call_0", "f", schema, family) is None


GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.thinking %}<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|> tools #}"
)


def test_answers_of_gpt_oss_are_read_by_their_channels() -> None:
    text, taken = prepare(GPT_OSS)
    assert text.endswith("<|start|>assistant")
    assert taken.style.reading is not None
    assert taken.style.reading.family is Family.HARMONY
    text, taken = prepare(GPT_OSS, json_schema={"type": "object"})
    assert text.endswith("<|start|>assistant<|channel|>final<|message|>")
    assert taken.style.reading is None
    text, taken = prepare(GPT_OSS, tools=[NOW], tool_choice="required")
    assert text.endswith("<|start|>assistant<|channel|>commentary<|message|>")
    assert accepts(taken.works[0].grammar, '[{"name": "now", "arguments": {}}]')


DEEPSEEK = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is none %}{% for c in m.tool_calls %}"
    "<｜tool▁call▁begin｜>{{ c.type + '<｜tool▁sep｜>' + c.function.name + c.function.arguments }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}{# </think> #}"
)


def test_deepseeks_templates_are_told_of_the_functions() -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "now"}}]}
    given = {"role": "tool", "tool_call_id": "a", "content": "noon"}
    text, taken = prepare(DEEPSEEK, tools=[NOW], messages=[*HI, called, given])
    assert text.startswith("[system]You can call these functions:")
    text = text.encode("latin-1").decode()
    assert "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now{}[tool]noon" in text
    assert taken.style.reading is not None
    assert taken.style.reading.thinking == Thinking("<think>", "</think>", begun=True)
    text, taken = prepare(DEEPSEEK, tools=[NOW], tool_choice="required")
    assert (
        text.encode("latin-1")
        .decode()
        .endswith(
            "<think>\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        )
    )
    assert accepts(taken.works[0].grammar, "now\n```json\n{}\n```")
    assert taken.style.reading is not None
    assert taken.style.reading.thinking is None
