"""llama-server's own routes: /completion, /tokenize and their kin, /props and /slots."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given

from any_bodies import patiently, refusal, some_fields
from fake_worker import Script
from lbhost import wire
from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import native, questions
from lbhost.gateway.api.generation import Generation
from running_gateway import HELLO, MODEL, running_gateway, until
from toy_vocab import ToyVocab

N_VOCAB = 1000


def parse(**fields: Any) -> Generation:
    return native.parse(msgspec.json.encode({"prompt": "hi", **fields}), N_VOCAB).generation


def test_defaults_are_those_of_llama_server() -> None:
    generation = parse(seed=3)
    assert generation.sampling == wire.Sampling(
        temperature=0.8, top_p=0.95, top_k=40, min_p=0.05, seed=3
    )
    assert (generation.max_tokens, generation.usual_tokens) == (None, None)


@pytest.mark.parametrize(
    ("fields", "usual"),
    [
        ({"n_predict": -1}, None),
        ({"n_predict": 5}, 5),
        ({"max_tokens": 6}, 6),
        ({"n_predict": 5, "max_tokens": 6}, 5),
    ],
)
def test_how_many_tokens_are_wanted(fields: dict[str, int], usual: int | None) -> None:
    assert parse(**fields).usual_tokens == usual


def test_biases_come_in_both_forms() -> None:
    biases = ((5, -100.0), (6, 2.5))
    assert parse(logit_bias=[[5, False], [6, 2.5]]).sampling.logit_bias == biases
    assert parse(logit_bias={"5": -100, "6": 2.5}).sampling.logit_bias == biases


def test_prompts_are_a_text_or_tokens() -> None:
    assert parse(prompt=["one"]).prompt == "one"
    assert parse(prompt=[1, 2]).prompt == [1, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None), ("prompt", ["a", "b"]), ("prompt", [1, "a"]), ("prompt", [1000]),
        ("prompt", [-1]), ("n_predict", 0), ("n_predict", -2), ("n_predict", "5"),
        ("temperature", 3), ("logit_bias", [[5, True]]), ("logit_bias", [[1000, 1]]),
        ("logit_bias", [["x", 1]]), ("logit_bias", [5]), ("n_probs", 3), ("mirostat", 2),
        ("dynatemp_range", 0.5), ("typical_p", 0.5), ("dry_multiplier", 1),
        ("xtc_probability", 0.5), ("t_max_predict_ms", 100), ("return_tokens", True),
        ("image_data", [{}]), ("lora", [{"id": 0}]), ("grammar", 5),
        ("json_schema", "x"), ("stop", 5), ("stream", "x"), ("n", 2),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_probs", 0), ("mirostat", 0), ("typical_p", 1.0), ("image_data", []),
        ("cache_prompt", True), ("id_slot", -1), ("samplers", ["top_k"]), ("n_keep", 5),
        ("repeat_last_n", 64), ("timings_per_token", True),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(field: str, value: Any) -> None:
    assert parse(**{field: value}).prompt == "hi"


FIELDS = ["prompt", "n_predict", "logit_bias", "stop", "seed", "top_k", "lora", "n_probs", "stream"]


@patiently
@given(some_fields(FIELDS))
def test_any_body_is_understood_or_refused_by_name(fields: dict[str, Any]) -> None:
    assert refusal(native.parse, {"prompt": "hi", **fields}) in {None, "", *fields}


# --- over HTTP --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_completion_has_llama_servers_shape() -> None:
    async with running_gateway(script=Script(cached_tokens=1)) as g:
        body = (await g.client.post("/completion", json={"prompt": "xyz", "n_predict": 3})).json()
        assert (body["content"], body["stop"], body["model"]) == ("one two three", True, MODEL)
        assert (body["stop_type"], body["stopping_word"]) == ("limit", "")
        assert (body["tokens_predicted"], body["tokens_evaluated"]) == (3, 3)
        assert body["timings"]["cache_n"] == 1
        assert body["timings"]["prompt_n"] == 2
        assert body["timings"]["predicted_n"] == 3
        assert body["generation_settings"]["n_predict"] == 3


@pytest.mark.anyio
async def test_a_gap_is_filled_in() -> None:
    async with running_gateway() as g:
        body = {"input_prefix": "ab", "input_suffix": "yz", "n_predict": 2}
        refused = await g.client.post("/infill", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_suffix")
    vocab = ToyVocab()
    vocab.infill_tokens = (256, 257, 258)
    async with running_gateway(vocab=vocab) as g:
        assert (await g.client.post("/infill", json=body)).json()["content"] == "one two"
        (submit,) = g.workers[0].submits
        assert wire.unpack_tokens(submit.prompt) == [256, *b"ab", 257, *b"yz", 258]
        for field, value in (("prompt", "x"), ("input_extra", [{}]), ("input_prefix", 5)):
            refused = await g.client.post("/infill", json={**body, field: value})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


@pytest.mark.anyio
async def test_a_stream_ends_with_the_event_that_says_stop() -> None:
    async with running_gateway() as g:
        response = await g.client.post("/completion", json={"prompt": "x", "stream": True})
        blocks = [b for b in response.text.split("\n\n") if b]
        events = [json.loads(b.removeprefix("data: ")) for b in blocks]
        assert [e["stop"] for e in events] == [False] * (len(events) - 1) + [True]
        assert "".join(e["content"] for e in events) == "one two three four five"
        assert events[-1]["stop_type"] == "eos"


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 3000], ids=["here", "in a helper"])
async def test_texts_become_tokens_and_back(size: int) -> None:
    async with running_gateway() as g:
        text = "é<s>" * size
        asked = await g.client.post("/tokenize", json={"content": text})
        tokens = asked.json()["tokens"]
        assert tokens == [*"é".encode(), 258] * size
        plain = await g.client.post("/tokenize", json={"content": text, "parse_special": False})
        assert plain.json()["tokens"] == list(text.encode())
        back = await g.client.post("/detokenize", json={"tokens": tokens})
        assert back.json() == {"content": text}


@pytest.mark.anyio
async def test_a_text_that_would_keep_a_helper_busy_is_refused() -> None:
    async with running_gateway() as g:
        asked = await g.client.post("/tokenize", json={"content": "a" * (questions.MAX_TEXT + 1)})
        assert (asked.status_code, asked.json()["error"]["param"]) == (400, "content")


@pytest.mark.anyio
async def test_pieces_are_texts_or_bytes() -> None:
    async with running_gateway() as g:
        asked = await g.client.post("/tokenize", json={"content": "aé", "with_pieces": True})
        first, second = "é".encode()
        assert asked.json()["tokens"] == [
            {"id": 97, "piece": "a"},
            {"id": first, "piece": [first]},
            {"id": second, "piece": [second]},
        ]


@pytest.mark.anyio
async def test_a_template_is_applied_and_not_run() -> None:
    async with running_gateway() as g:
        asked = await g.client.post("/apply-template", json=HELLO)
        assert asked.json() == {
            "prompt": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        }
        assert not g.workers[0].submits
        goes_on = {
            "messages": [*HELLO["messages"], {"role": "assistant", "content": "Oh"}],
            "continue_final_message": True,
        }
        asked = await g.client.post("/apply-template", json=goes_on)
        assert asked.json()["prompt"].endswith("<|im_start|>assistant\nOh")
        tools = [{"type": "function", "function": {"name": "now"}}]
        asked = await g.client.post("/apply-template", json={**HELLO, "tools": tools})
        assert '"name": "now"' in asked.json()["prompt"]


@pytest.mark.anyio
async def test_special_tokens_come_back_as_their_texts() -> None:
    async with running_gateway() as g:
        asked = await g.client.post("/tokenize", json={"content": "a<|im_end|>"})
        tokens = asked.json()["tokens"]
        assert len(tokens) == 2
        asked = await g.client.post("/detokenize", json={"tokens": tokens})
        assert asked.json() == {"content": "a<|im_end|>"}
        asked = await g.client.post(
            "/tokenize", json={"content": "<|im_end|>", "with_pieces": True}
        )
        assert [token["piece"] for token in asked.json()["tokens"]] == ["<|im_end|>"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "x", "add_special": 5}, "add_special"),
        ("/tokenize", {"content": "x", "with_pieces": "y"}, "with_pieces"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1 << 40]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/v1/messages/count_tokens", {"messages": []}, None),
    ],
)
async def test_bad_questions_are_refused_by_name(
    path: str, body: dict[str, Any], param: str | None
) -> None:
    async with running_gateway() as g:
        response = await g.client.post(path, json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error.get("param") == param
        assert (param or "messages") in error["message"]


@pytest.mark.anyio
async def test_props_tell_the_model_and_the_slots() -> None:
    async with running_gateway(workers=2) as g:
        props = (await g.client.get("/props")).json()
        assert (props["model_alias"], props["total_slots"]) == (MODEL, 8)
        assert props["default_generation_settings"]["n_ctx"] == 2048
        assert "<|im_start|>" in props["chat_template"]
        assert (await g.client.post("/props", json={})).status_code == 405


@pytest.mark.anyio
async def test_slots_show_what_runs_and_no_text() -> None:
    async with running_gateway(workers=2) as g:
        for fake in g.workers:
            fake.hold()
        body = {"prompt": "secret words", "max_tokens": 9}
        asked = asyncio.create_task(g.client.post("/v1/completions", json=body))
        await until(lambda: g.served.dispatcher.in_flight == 1, "it runs")
        page = await g.client.get("/slots")
        for fake in g.workers:
            fake.release()
        assert (await asked).status_code == 200
        slots = page.json()
        assert [slot["id"] for slot in slots] == list(range(8))
        assert [slot["worker"] for slot in slots] == [0] * 4 + [1] * 4
        (busy,) = [slot for slot in slots if slot["is_processing"]]
        assert (busy["n_prompt_tokens"], busy["n_prompt_tokens_processed"]) == (12, 0)
        assert busy["next_token"] == [{"n_decoded": 0, "n_remain": 9}]
        assert "secret" not in page.text
        after = (await g.client.get("/slots")).json()
        assert not any(slot["is_processing"] for slot in after)


@pytest.mark.anyio
async def test_the_same_routes_without_v1() -> None:
    async with running_gateway() as g:
        for short, long in (
            ("/chat/completions", HELLO),
            ("/completions", {"prompt": "x"}),
            ("/responses", {"input": "x"}),
        ):
            answers = [await g.client.post(path, json=long) for path in (short, f"/v1{short}")]
            assert [a.status_code for a in answers] == [200, 200]
            assert answers[0].json()["object"] == answers[1].json()["object"]
        for short in ("/models", "/health"):
            assert (await g.client.get(short)).json() == (await g.client.get(f"/v1{short}")).json()
