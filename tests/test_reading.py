"""What is found in an answer is the same wherever its pieces are cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbhost.gateway.api.reading import AnswerReader, Reading, Thinking
from lbhost.gateway.api.tools.calls import Arguments, CallBegun, Event, Said, Thought
from lbhost.gateway.api.tools.families import Family, family_of
from lbhost.gateway.api.tools.json_span import JsonSpan
from lbhost.gateway.api.tools.tagged_span import TaggedSpan

NAMES = ("get_weather", "now")
TAGS = Thinking("<think>", "</think>")


def reading(family: Family | None, **how: object) -> Reading:
    return Reading(family=family, names=NAMES, **how)  # type: ignore[arg-type]


def joined(events: list[Event]) -> list[Event]:
    """Neighbours of a kind as one: where they were cut is nobody's business."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if not isinstance(event, CallBegun) and type(last) is type(event):
            assert isinstance(last, Said | Thought | Arguments)
            out[-1] = type(last)(last.text + event.text)
        else:
            out.append(event)
    return out


def read(how: Reading, *pieces: str) -> list[Event]:
    reader = AnswerReader(how)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return joined(events + reader.finish())


def call(name: str = "now", **arguments: object) -> list[Event]:
    return [CallBegun(name), Arguments(json.dumps(arguments))]


WEATHER = call("get_weather", city="Rome {[")
H, L, M, G = Family.HERMES, Family.LLAMA3, Family.MISTRAL, Family.GENERIC
Q, Z, D, P = Family.QWEN_CODER, Family.GLM, Family.DEEPSEEK, Family.HARMONY
CALLS, CALL, SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
END, CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
ROME = '{"name": "get_weather", "arguments": {"city": "Rome {["}}'
NOW = '{"name": "now", "arguments": {}}'

CASES: list[tuple[Reading, str, list[Event]]] = [
    (reading(H), f"<tool_call>\n{ROME}\n</tool_call>", WEATHER),
    (reading(H), f"<tool_call>{ROME}</tool_call>\n<tool_call>{NOW}</tool_call>", WEATHER + call()),
    (reading(H), f"I look.\n<tool_call>\n{NOW}", [Said("I look.\n"), *call()]),
    (reading(H), f"<tool_call>{NOW}</tool_call> Done", [*call(), Said(" Done")]),
    (reading(H), "a < b <tool> c", [Said("a < b <tool> c")]),
    (reading(H), "<tool_call>{broken", [Said("<tool_call>{broken")]),
    (reading(H), "<tool_call>{]} x", [Said("<tool_call>{]} x")]),
    (reading(H), "<tool_call>hello", [Said("<tool_call>hello")]),
    (reading(H), '<tool_call>{"name": "rm"}', [Said('<tool_call>{"name": "rm"}')]),
    (reading(H), f"<tool_call>no<tool_call>{NOW}", [Said("<tool_call>no"), *call()]),
    (reading(H), '<tool_call>{"name": "now", "arguments": "{}"}', call()),
    (reading(H), '<tool_call>{"name": "now", "arguments": 5}',
     [Said('<tool_call>{"name": "now", "arguments": 5}')]),
    (reading(H), r'<tool_call>{"name": "now", "arguments": {"a": "\"}\\"}}', call(a='"}\\')),
    (reading(H, parallel=False), f"<tool_call>{NOW}</tool_call><tool_call>{ROME}", call()),
    (reading(L), '{"name": "get_weather", "parameters": {"city": "Rome {["}}', WEATHER),
    (reading(L), '<|python_tag|>{"name": "now", "parameters": {}}; {"name": "now"}',
     call() + call()),
    (reading(L), '{"a": 1} is JSON', [Said('{"a": 1} is JSON')]),
    (reading(L), "[1, 2] and 3", [Said("[1, 2] and 3")]),
    (reading(M), f"[TOOL_CALLS][{ROME}, {NOW}]", WEATHER + call()),
    (reading(M), '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome {["}[TOOL_CALLS]now{}',
     WEATHER + call()),
    (reading(M), "[TOOL_CALLS]", [Said("[TOOL_CALLS]")]),
    (reading(M), "[TOOL_CALLS]nothing else", [Said("[TOOL_CALLS]nothing else")]),
    (reading(M), f"[TOOL_CALLS] [{NOW}] ", call()),
    (reading(G), ROME, WEATHER),
    (reading(G), f"```json\n{ROME}\n```", WEATHER),
    (reading(G), f'{{"tool_calls": [{NOW}]}}', call()),
    (reading(G), f" {NOW}\n{ROME}", call() + WEATHER),
    (reading(G), "It is ```json\n{}\n``` see", [Said("It is ```json\n{}\n``` see")]),
    (reading(G), "", []),
    (reading(G), "  ", []),
    (reading(G, forced=True), f"[{ROME}, {NOW}]", WEATHER + call()),
    (reading(H, forced=True), f"<tool_call>\n{NOW}\n</tool_call>", call()),
    (reading(L, forced=True), '{"name": "now", "parameters": {"a": {"b": ["}"]}}}',
     call(a={"b": ["}"]})),
    (reading(Q), "I see.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome {[\n"
     "</parameter>\n</function>\n</tool_call>", [Said("I see.\n"), *WEATHER]),
    (reading(Q), "<function=now>\n</function>\n</tool_call>\n<tool_call><function=now></function>",
     call() + call()),
    (reading(Q, texts={"now": ("a",)}), "<tool_call><function=now><parameter=a>\n1\n</parameter>"
     "<parameter=b>2</parameter><parameter=c>[1, {}]</parameter><parameter=d>True</parameter>"
     "<parameter=e>\n</tool_call>\n\n</parameter></function></tool_call>",
     call(a="1", b=2, c=[1, {}], d=True, e="</tool_call>\n")),
    (reading(Q), f"<tool_call>{NOW}</tool_call>", call()),
    (reading(Q), f"<tool_call>no<tool_call>{NOW}", [Said("<tool_call>no"), *call()]),
    (reading(Q), "<function=rm></function> x", [Said("<function=rm></function> x")]),
    (reading(Q), "<tool_call><function=now><parameter=a>1", [
        Said("<tool_call><function=now><parameter=a>1")]),
    (reading(Q), "<tool_call><function=now>so<function=now></function>",
     [Said("<tool_call><function=now>so"), *call()]),
    (reading(Z), "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome {[</arg_value>"
     "\n</tool_call>\n<tool_call>now</tool_call>", WEATHER + call()),
    (reading(Z), "<tool_call>now<arg_key>a</arg_key><arg_value>null</arg_value><arg_key>b</arg_key>"
     "<arg_value>x: 1</arg_value></tool_call>", call(a=None, b="x: 1")),
    (reading(Q), '<function=now><parameter=a>\n{"b": "</parameter>\\\\", '
     '"c": ["\\"</parameter>"]}\n</parameter><parameter=d>"</parameter>"</parameter></function>',
     call(a={"b": "</parameter>\\", "c": ['"</parameter>']}, d="</parameter>")),
    (reading(Q, texts={"now": ("a",)}), '<function=now><parameter=a>{"</parameter></function>',
     call(a='{"')),
    (reading(Q), '<function=now><parameter=a>\n{"b\n</parameter><parameter=c>"d</parameter>\n'
     "</function>", call(a='{"b', c='"d')),
    (reading(Q), '<function=now><parameter=a>[\\"</parameter></function>', call(a='[\\"')),
    (reading(Z), '<tool_call>now<arg_key>a</arg_key><arg_value>["</arg_value>"]</arg_value>'
     "</tool_call>", call(a=["</arg_value>"])),
    (reading(Z), f"<tool_call>no<tool_call>{NOW}", [Said("<tool_call>no"), *call()]),
    (reading(Z), "<tool_call>is a tag", [Said("<tool_call>is a tag")]),
    (reading(D), f"Well.{CALLS}{CALL}function{SEP}get_weather\n```json\n" '{"city": "Rome {["}'
     f"\n```{END}\n{CALL}function{SEP}now\n```json\n{{}}\n```{END}{CALLS_END}",
     [Said("Well."), *WEATHER, *call()]),
    (reading(D), f"{CALLS}{CALL}now{SEP}{{}}{END}{CALLS_END}", call()),
    (reading(D), f"{CALL}rm{SEP}{{}}", [Said(f"{CALL}rm{SEP}{{}}")]),
    (reading(D, forced=True), 'now\n```json\n{"a": 1}\n```', call(a=1)),
    (reading(P), "<|channel|>analysis<|message|>Let me <see><|end|><|start|>assistant<|channel|>"
     "final<|message|>Yes. <|x|>", [Thought("Let me <see>"), Said("Yes. <|x|>")]),
    (reading(P), "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
     '{"city": "Rome {["}', WEATHER),
    (reading(P), "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.now"
     "<|channel|>commentary json<|message|>{}<|call|>", [Said("I look."), *call()]),
    (reading(P), " to=functions.now<|channel|>commentary<|message|>{1}", [Said("{1}")]),
    (reading(P), "<|channel|>commentary to=python<|message|>{}", [Said("{}")]),
    (reading(P), "Just text <|end|>", [Said("Just text ")]),
    (reading(P), "<|start|>" + "x" * 500, [Said("<|start|>" + "x" * 500)]),
    (reading(P), "<|channel|>fin", []),
    (reading(P, forced=True), f"[{ROME}, {NOW}]", WEATHER + call()),
    (Reading(TAGS), "<think>\nhm</thin\n</think>\n\nYes.", [Thought("hm</thin"), Said("Yes.")]),
    (Reading(TAGS), "No <think>thoughts</think>", [Said("No <think>thoughts</think>")]),
    (Reading(TAGS), "<think></think>x", [Said("x")]),
    (Reading(TAGS), "<think>cut o", [Thought("cut o")]),
    (Reading(TAGS), " <thi", [Said("<thi")]),
    (Reading(Thinking("<think>", "</think>", begun=True)), "so\n\nso </think> a b ",
     [Thought("so\n\nso"), Said("a b ")]),
    (Reading(), "plain", [Said("plain")]),
    (reading(H, thinking=TAGS), f"<think>call <tool_call></think>\n<tool_call>{NOW}</tool_call>",
     [Thought("call <tool_call>"), *call()]),
]  # fmt: skip


@pytest.mark.parametrize(("how", "text", "expected"), CASES)
def test_an_answer_is_read_alike_wherever_it_is_cut(
    how: Reading, text: str, expected: list[Event]
) -> None:
    assert read(how, text) == expected
    assert read(how, *text) == expected
    for at in range(len(text) + 1):
        assert read(how, text[:at], text[at:]) == expected, (text[:at], text[at:])


@pytest.mark.parametrize(("family", "head"), [(H, "<tool_call>"), (L, ""), (G, "")])
@pytest.mark.parametrize("value", [r'"\ud800"', "NaN", "[" * 999 + "]" * 999])
def test_a_call_that_no_json_can_carry_is_text(family: Family, head: str, value: str) -> None:
    text = f'{head}{{"name": "now", "arguments": {{"a": {value}}}}}'
    assert read(reading(family), text) == [Said(text)]


def looked_at(text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters that brackets were looked for in, until the answer was read."""
    seen = 0
    feed = JsonSpan.feed

    def counting(span: JsonSpan, piece: str) -> int | None:
        nonlocal seen
        length = feed(span, piece)
        seen += len(piece) if length is None else length
        return length

    monkeypatch.setattr(JsonSpan, "feed", counting)
    assert read(reading(H), text) == [Said(text)]
    return seen


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{" * 500 + "}" * 500,
        '<tool_call>{"a":[' * 500 + "]}" * 500,
        '<tool_call>["<tool_call>[",' * 500 + "1" + "]" * 500,
        r'<tool_call>["\"<tool_call>[",' * 500 + "1" + "]" * 500,
    ],
)  # fmt: skip
def test_calls_within_calls_are_read_in_linear_time(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked_at(text, monkeypatch) < 4 * len(text)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (Q, "<tool_call><function=now><parameter=a>" * 500 + "</parameter>x"),
        (Z, "<tool_call>now<arg_key>a</arg_key><arg_value>" * 500 + "</arg_value>x"),
    ],
)
def test_what_stands_in_tags_is_not_looked_at_for_calls_once_more(
    family: Family, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = []
    begin = TaggedSpan.__init__

    def counting(span: TaggedSpan, *how: object) -> None:
        spans.append(span)
        begin(span, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(TaggedSpan, "__init__", counting)
    assert read(reading(family), text) == [Said(text)]
    assert len(spans) == 1


@pytest.mark.parametrize(
    ("family", "begun"),
    [(Q, "<function=now>"), (Z, "now<arg_key>a</arg_key><arg_value>1</arg_value>")],
)
def test_white_space_is_no_call_for_ever(family: Family, begun: str) -> None:
    reader = AnswerReader(reading(family))
    reader.feed(f"<tool_call>{begun}")
    said = [event for _ in range(700) for event in reader.feed(" ")]
    assert said
    assert isinstance(said[0], Said)


def test_a_name_that_never_ends_is_given_up_without_trying_all_ways() -> None:
    text = "[TOOL_CALLS]now" + "[AAAAAAAA" * 200 + "!"  # took longer than the universe
    assert read(reading(M), text) == [Said(text)]


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", NOW, ROME, "[TOOL_CALLS]", "{", "}", "[", "]", '"', "\\",
     "now", "[ARGS]", "<think>", "</think>", " ", "\n", "text", ";", ",", "```json", "```",
     "<|python_tag|>", '{"name": "now"', "é", "<function=now>", "<parameter=a>", "</parameter>",
     "</function>", "<arg_key>a</arg_key>", "<arg_value>", "</arg_value>", "<｜tool▁call▁begin｜>",
     "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "function"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(PIECES, max_size=10),
    st.sampled_from([*Family, None]),
    st.booleans(),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_nothing_that_a_model_writes_is_lost_or_depends_on_the_cuts(
    parts: list[str], family: Family | None, thinks: bool, cuts: list[int]
) -> None:
    text = "".join(parts)
    how = reading(family, thinking=TAGS if thinks else None)
    whole = read(how, text)
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    assert read(how, *(text[a:b] for a, b in itertools.pairwise(ends))) == whole
    for event in whole:
        if isinstance(event, Arguments):
            assert isinstance(json.loads(event.text), dict)
    if not any(isinstance(event, CallBegun) for event in whole) and not thinks:
        said = "".join(event.text for event in whole if isinstance(event, Said))
        assert said.strip() == text.strip()


def test_the_family_is_told_from_the_template() -> None:
    assert family_of("{{ tools }}<tool_call>{{ x }}</tool_call>") is Family.HERMES
    assert family_of("{% if tools %}<|python_tag|>{% endif %}") is Family.LLAMA3
    assert family_of("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]") is Family.MISTRAL
    assert family_of("{{ messages }}") is Family.GENERIC
    assert family_of("{{ tools }}<tool_call><function=x>") is Family.GENERIC
    assert family_of("{{ tools }}<tool_call><function=x><parameter=y>") is Family.QWEN_CODER
    assert family_of("{{ tools }}<tool_call>x<arg_key>") is Family.GLM
    assert family_of("{{ message.tool_calls }}<｜tool▁call▁begin｜>") is Family.DEEPSEEK
    assert family_of("<|start|>assistant<|channel|>final<|message|>") is Family.HARMONY
