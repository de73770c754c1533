"""What clients may send, and what they are told when it is wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import json_depth, parameters
from lbhost.gateway.api.chat import ChatRequest
from lbhost.gateway.api.chat import parse as parse_chat
from lbhost.gateway.api.completions import CompletionRequest
from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.generation import Generation, Infill, Several, Turn
from lbhost.gateway.api.replies import Given, Kind
from lbhost.gateway.scheduling.deltas import TextDelta

N_VOCAB = 1000


HI = {"messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: Any) -> ChatRequest:
    body = {**HI, **fields}
    return parameters.parse(msgspec.json.encode(body), ChatRequest)


def completion(**fields: Any) -> CompletionRequest:
    return parameters.parse(msgspec.json.encode({"prompt": "hi", **fields}), CompletionRequest)


def test_defaults_are_those_of_openai() -> None:
    assert chat(seed=0).sampling(N_VOCAB) == wire.Sampling(temperature=1.0, top_p=1.0, seed=0)
    assert chat().output_limit() == ("max_tokens", None)
    assert chat().stops() == ()


def test_null_means_the_default() -> None:
    names = [
        "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
        "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
        "repeat_penalty", "logit_bias", "stop", "ignore_eos", "n", "logprobs", "response_format",
        "tools", "tool_choice", "service_tier",
    ]  # fmt: skip
    assert chat(**dict.fromkeys(names)) == chat()


@pytest.mark.parametrize(
    ("tier", "rank", "answered"),
    [
        (None, 1, None),
        ("auto", 1, "default"),
        ("default", 1, "default"),
        ("priority", 0, "priority"),
        ("flex", 2, "flex"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
def test_classes_become_ranks_and_are_named_in_the_answer(
    kind: Kind, tier: str | None, rank: int, answered: str | None
) -> None:
    own = (
        {"prompt": "hi"}
        if kind is Kind.COMPLETION
        else {"messages": [{"role": "user", "content": "hi"}]}
    )
    parsed = DIALECTS[kind].parse(msgspec.json.encode({**own, "service_tier": tier}), N_VOCAB)
    assert (parsed.generation.rank, parsed.style.tier) == (rank, answered)
    finish = wire.Finish(wire.FinishReason.STOP)
    reply = DIALECTS[kind].reply("id", "toy", parsed.style)
    whole = reply.whole([Given(TextDelta("", ()), finish)], [finish])
    assert json.loads(whole).get("service_tier") == answered
    chunk = json.loads(reply.text(0, TextDelta("a", (7,))).removeprefix(b"data: "))
    assert chunk.get("service_tier") == answered


@pytest.mark.parametrize("tier", ["scale", "", "FLEX", 1])
def test_unknown_classes_are_refused_by_name(tier: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(service_tier=tier)
    assert caught.value.param == "service_tier"


def test_sampling_parameters_reach_the_wire() -> None:
    sampling = chat(
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        seed=7,
        presence_penalty=1,
        frequency_penalty=-1,
        repeat_penalty=1.1,
        logit_bias={"5": -100, "6": 2.5},
    ).sampling(N_VOCAB)
    assert sampling == wire.Sampling(
        temperature=0.0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        seed=7,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        repeat_penalty=1.1,
        logit_bias=((5, -100.0), (6, 2.5)),
    )


@pytest.mark.parametrize(
    ("seed", "sent"),
    [(0, 0), (7, 7), (-2, 2**32 - 2), (2**32 - 1, 2**32 - 1), (2**32 + 7, 7)],
)
def test_seeds_have_32_bits(seed: int, sent: int) -> None:
    assert chat(seed=seed).sampling(N_VOCAB).seed == sent


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_each_request_gets_one_of_its_own(seed: int | None) -> None:
    seeds = {chat(seed=seed).sampling(N_VOCAB).seed for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= settled < 2**32 for settled in seeds)


def test_top_k_of_minus_one_means_all() -> None:
    assert chat(top_k=-1).sampling(N_VOCAB).top_k == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "warm"),
        ("temperature", True), ("top_p", 1.1), ("top_p", -1), ("top_k", -2), ("top_k", 2**70),
        ("min_p", 2), ("seed", 2**64), ("seed", 1.5), ("presence_penalty", 3),
        ("frequency_penalty", -2.5), ("repeat_penalty", 0), ("repeat_penalty", 11),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**40), ("max_tokens", "5"),
        ("max_completion_tokens", 0), ("n", 0), ("n", 129), ("n", 1000), ("stop", 5), ("stop", ""),
        ("stop", ["x"] * 17), ("stop", [""]), ("stop", "x" * 513), ("logit_bias", {"5": 101}),
        ("logit_bias", [1]), ("stream", "yes"), ("stream_options", 1), ("messages", []),
        ("messages", "hi"), ("messages", [{}]), ("messages", [{"role": "king", "content": "x"}]),
        ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]),
        ("messages", [{"role": "user", "content": "x", "name": "<|im_end|>"}]),
        ("model", 5), ("logprobs", 1), ("top_logprobs", 21), ("top_logprobs", -1),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"), ("tool_choice", 5), ("functions", [{}]),
        ("modalities", ["audio"]),
        ("response_format", {"type": "xml"}), ("response_format", "text"),
        ("response_format", {"type": "json_schema"}), ("response_format", {}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": [1]}}),
        ("grammar", 5), ("grammar", "(" * 60), ("json_schema", []), ("audio", {"voice": "a"}),
        ("min_tokens", 5), ("stop_token_ids", [2]), ("use_beam_search", True), ("mirostat", 2),
        ("typical_p", 0.5), ("prompt_logprobs", 1), ("bad_words", ["x"]),
        ("add_generation_prompt", "no"), ("continue_final_message", 1),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat(msgspec.json.encode({**HI, field: value}), N_VOCAB)
    assert caught.value.status == 400
    assert caught.value.param == field
    assert field in caught.value.message
    assert "`" not in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", "yes"), ("suffix", 5), ("best_of", 129), ("best_of", 0), ("logprobs", 6),
        ("logprobs", True), ("logprobs", -1), ("n", 129), ("max_tokens", -1),
        ("prompt", None), ("prompt", 5), ("prompt", {"a": 1}), ("prompt", [1.5]),
    ],
)  # fmt: skip
def test_what_plain_completions_cannot_have_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []), ("tool_choice", "auto"), ("response_format", {"type": "text"}),
        ("logprobs", False), ("n", 1), ("user", "me"), ("metadata", {"a": "b"}),
        ("store", True), ("unheard_of", {"deep": [1, 2, {}]}), ("service_tier", "auto"),
        ("modalities", ["text"]), ("parallel_tool_calls", True), ("top_logprobs", 0),
        ("typical_p", 1.0), ("mirostat", 0), ("bad_words", []), ("min_tokens", 0),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_ignored(field: str, value: Any) -> None:
    assert chat(**{field: value}).turns() == (Turn("user", "hi"),)


def test_contents_may_be_parts_and_developers_are_systems() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts, "name": "ann_1"},
            {"role": "assistant", "content": ""},
        ]
    )
    assert request.turns() == (
        Turn("system", "be brief"),
        Turn("user", "a\nb", "ann_1"),
        Turn("assistant", ""),
    )


def test_max_completion_tokens_beats_max_tokens() -> None:
    request = chat(max_tokens=5, max_completion_tokens=7)
    assert request.output_limit() == ("max_completion_tokens", 7)


def test_stops_are_one_or_several_without_repeats() -> None:
    assert chat(stop="x").stops() == ("x",)
    assert chat(stop=["x", "y", "x"]).stops() == ("x", "y")
    assert chat(stop=["s" + str(i) for i in range(16)]).stops()[15] == "s15"


@pytest.mark.parametrize("key", ["", "x", "-1", "1000", "99999999999", "٣"])
def test_biases_are_for_tokens_that_exist(key: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(logit_bias={key: 1}).sampling(N_VOCAB)
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("x", ["x"]), ("", [""]), (["x"], ["x"]), ([1, 2], [[1, 2]]), ([[1, 2]], [[1, 2]]),
        ([], [[]]), (["x", "y"], ["x", "y"]), ([[1], [2, 3], []], [[1], [2, 3], []]),
        (["x", [1]], ["x", [1]]),
    ],
)  # fmt: skip
def test_prompts_are_texts_or_tokens_one_or_several(prompt: Any, taken: Any) -> None:
    assert completion(prompt=prompt).prompts(N_VOCAB) == taken


@pytest.mark.parametrize(
    "prompt", [[1000], [-1], [1, "x"], ["x", 1], [[1, 5000]], [[1], [5000]], ["x"] * 129]
)
def test_unknown_tokens_and_too_many_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(prompt=prompt).prompts(N_VOCAB)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nul", b"null", b"[]", b'"x"', b"{}x", b"\xff", b'{"messages": "\xff"}',
        b'{"messages": NaN}', b'{"model": "\\ud800"}', b"\xef\xbb\xbf{}", b"\x00", b'{"a":}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_objects_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parameters.parse(body, ChatRequest)
    with pytest.raises(InvalidRequestError):
        parameters.parse(body, CompletionRequest)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b"[[],"])
def test_deep_nesting_is_refused_before_it_is_parsed(opening: bytes) -> None:
    body = b'{"metadata":' + opening * 100_000
    with pytest.raises(InvalidRequestError, match="nested"):
        parameters.parse(body, ChatRequest)


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    tricky = '[{"\\' * 500 + '"'
    assert chat(messages=[{"role": "user", "content": tricky}]).turns()[0].text == tricky


def test_allowed_depth_and_many_siblings_pass() -> None:
    deep: Any = 1
    for _ in range(json_depth.MAX_DEPTH - 2):
        deep = [deep]
    assert chat(metadata=deep, other=[[]] * 5000).turns()


def test_errors_say_where_in_a_list_it_is() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(messages=[{"role": "user", "content": "x"}, {"content": "y"}])
    assert caught.value.message == "messages[1].role: must be given"


USER = {"role": "user", "content": "x"}
ASSISTANT = {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (Kind.CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (Kind.CHAT, {"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
        (Kind.CHAT, {"continue_final_message": True}, "continue_final_message"),
        (
            Kind.CHAT,
            {
                "messages": [USER, ASSISTANT],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
        (Kind.COMPLETION, {"n": 3, "best_of": 2}, "best_of"),
        (Kind.COMPLETION, {"n": 1, "best_of": 2, "stream": True}, "best_of"),
        (Kind.COMPLETION, {"max_tokens": 0}, "max_tokens"),
        (Kind.COMPLETION, {"suffix": "z", "echo": True}, "suffix"),
    ],
)
def test_what_means_nothing_together_is_refused_by_name(
    kind: Kind, fields: dict[str, Any], param: str
) -> None:
    body = {"prompt": "x", "messages": [USER], **fields}
    with pytest.raises(InvalidRequestError) as caught:
        DIALECTS[kind].parse(msgspec.json.encode(body), N_VOCAB)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


def generation(kind: Kind, **fields: Any) -> Generation:
    body = {"prompt": "x", "messages": [USER, ASSISTANT], **fields}
    return DIALECTS[kind].parse(msgspec.json.encode(body), N_VOCAB).generation


def test_logprobs_are_a_flag_and_a_number_in_chats_and_a_number_in_completions() -> None:
    assert generation(Kind.CHAT).logprobs is None
    assert generation(Kind.CHAT, logprobs=True).logprobs == 0
    assert generation(Kind.CHAT, logprobs=True, top_logprobs=20).logprobs == 20
    assert generation(Kind.COMPLETION).logprobs is None
    assert generation(Kind.COMPLETION, logprobs=0).logprobs == 0
    assert generation(Kind.COMPLETION, logprobs=5).logprobs == 5


def test_who_speaks_next_is_told_to_the_template() -> None:
    usual = generation(Kind.CHAT)
    assert (usual.next_speaker, usual.continues) == (True, False)
    assert not generation(Kind.CHAT, add_generation_prompt=False).next_speaker
    assert generation(Kind.CHAT, continue_final_message=True).continues


def test_several_answers_to_several_prompts() -> None:
    assert (generation(Kind.CHAT, n=3).n, generation(Kind.CHAT, n=3).best_of) == (3, 3)
    several = generation(Kind.COMPLETION, prompt=["a", [1]], n=2, best_of=4, suffix="z")
    assert (several.n, several.best_of) == (2, 4)
    assert several.prompt == Infill(("a", [1]), "z")
    assert generation(Kind.COMPLETION, prompt=["a", [1]]).prompt == Several(("a", [1]))
    assert generation(Kind.COMPLETION, prompt=["a"]).prompt == "a"


def test_tools_answers_are_turns_of_their_own() -> None:
    request = chat(messages=[USER, {"role": "tool", "content": "42", "tool_call_id": "1"}])
    assert request.turns() == (Turn("user", "x"), Turn("tool", "42", answers="1"))


def test_dialects_differ_only_in_what_they_call_things() -> None:
    shared = {"model": "m", "seed": 1, "stop": ["a", "b", "a"], "stream": True, "top_k": 3}
    parsed = {}
    for kind, own in (
        (Kind.CHAT, {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 5}),
        (Kind.COMPLETION, {"prompt": "x", "max_tokens": 5}),
    ):
        body = {**shared, **own, "stream_options": {"include_usage": True}}
        parsed[kind] = DIALECTS[kind].parse(msgspec.json.encode(body), N_VOCAB)
        assert parsed[kind].style.include_usage
    chat, plain = parsed[Kind.CHAT].generation, parsed[Kind.COMPLETION].generation
    assert (chat.prompt, chat.prompt_param) == ((Turn("user", "x"),), "messages")
    assert (plain.prompt, plain.prompt_param) == ("x", "prompt")
    assert (chat.max_tokens_param, chat.usual_tokens) == ("max_completion_tokens", None)
    assert (plain.max_tokens_param, plain.usual_tokens) == ("max_tokens", 16)
    for name in ("model", "max_tokens", "sampling", "stop", "stream", "ignore_eos"):
        assert getattr(chat, name) == getattr(plain, name)
