"""Several answers in one request, log-probabilities, echoes: over HTTP, with fake workers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import msgspec
import pytest

from fake_worker import Script
from lbhost import wire
from lbhost.gateway.api.generation import Echo, Style
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt import helper_messages
from lbhost.gateway.prompt.grammars import Grammars
from lbhost.gateway.prompt.helper_messages import Prepared
from lbhost.gateway.prompt.preparation import Preparation, Taken
from lbhost.gateway.prompt.prompter import IN_HELPER
from lbhost.wire import Submit
from running_gateway import CHAT, HELLO, RunningGateway, running_gateway, until
from toy_vocab import ToyVocab

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/completions"
SEED = 40


def seeded(submit: Submit) -> list[str]:
    """An answer that tells the prompt's last byte and how far the seed has counted."""
    return [chr(submit.prompt[-4]), str(submit.sampling.seed - SEED), "!"]


def letters(submit: Submit, place: int) -> int:
    """The tokens of a, b, c."""
    return ord("a") + place


TELLING = Script(answer=seeded, token=letters)


async def complete(gateway: RunningGateway, **fields: Any) -> httpx2.Response:
    body = {"prompt": "x", "max_tokens": 8, "seed": SEED, **fields}
    return await gateway.client.post(COMPLETIONS, json=body)


async def stream(gateway: RunningGateway, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The events before [DONE]."""
    body = {**HELLO, "prompt": "x", "max_tokens": 8, "seed": SEED, "stream": True, **fields}
    response = await gateway.client.post(path, json=body)
    assert response.status_code == 200, response.text
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def texts(choices: list[dict[str, Any]]) -> list[str]:
    return [choice["text"] for choice in choices]


async def test_n_answers_come_in_order_with_seeds_that_count_up() -> None:
    async with running_gateway(script=TELLING) as g:
        body = (await g.chat(n=3, seed=SEED)).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        contents = [choice["message"]["content"] for choice in body["choices"]]
        assert contents == ["\n0!", "\n1!", "\n2!"]
        one = (await g.chat(seed=SEED)).json()
        assert body["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
        assert body["usage"]["completion_tokens"] == 9
        assert body["timings"]["predicted_n"] == 9


async def test_every_prompt_gets_n_answers_in_the_prompts_order() -> None:
    async with running_gateway(script=TELLING) as g:
        body = (await complete(g, prompt=["ab", [120, 121], "z"], n=2)).json()
        assert texts(body["choices"]) == ["b0!", "b1!", "y0!", "y1!", "z0!", "z1!"]
        assert [choice["index"] for choice in body["choices"]] == list(range(6))
        assert body["usage"]["prompt_tokens"] == 2 + 2 + 1
        assert body["usage"]["completion_tokens"] == 18


async def test_streams_of_several_answers_are_told_apart_by_index() -> None:
    async with running_gateway(workers=2, script=TELLING) as g:
        for path, head in ((CHAT, "\n"), (COMPLETIONS, "x")):
            got = await stream(g, path, n=5, stream_options={"include_usage": True})
            *chunks, usage = got
            for index in range(5):
                mine = [
                    chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index
                ]
                said = "".join(
                    choice.get("text") or choice.get("delta", {}).get("content", "")
                    for choice in mine
                )
                assert said == f"{head}{index}!"
                reasons = [choice["finish_reason"] for choice in mine]
                assert reasons == [None] * (len(mine) - 1) + ["stop"]
                if path == CHAT:
                    roles = [choice["delta"].get("role") for choice in mine]
                    assert roles == ["assistant"] + [None] * (len(mine) - 1)
            assert usage["choices"] == []
            assert usage["usage"]["completion_tokens"] == 15


async def test_an_answer_that_ends_early_says_so_before_the_others_end() -> None:
    def answer(submit: Submit) -> list[str]:
        return ["a"] if submit.sampling.seed == SEED + 1 else ["b"] * 2000

    async with running_gateway(script=Script(answer=answer, step_s=0.005)) as g:
        body = {"prompt": "x", "max_tokens": 1500, "seed": SEED, "stream": True, "n": 2}
        async with g.client.stream("POST", COMPLETIONS, json=body) as response:
            async for line in response.aiter_lines():
                if '"finish_reason":"stop"' in line:
                    assert '"index":1' in line
                    break
        await until(lambda: g.workers[0].busy == 0, "the other one was cancelled")
        assert g.workers[0].cancels


async def test_the_best_of_several_is_the_one_with_the_highest_mean() -> None:
    """The fake worker's log-probabilities fall with the seed's last digit."""
    async with running_gateway(script=TELLING) as g:
        body = (await complete(g, seed=SEED + 8, n=2, best_of=4, prompt=["p", "q"])).json()
        assert texts(body["choices"]) == ["p10!", "p11!", "q10!", "q11!"]  # seeds 50, 51
        assert all(choice["logprobs"] is None for choice in body["choices"])
        assert body["usage"]["completion_tokens"] == 2 * 4 * 3
        assert body["usage"]["prompt_tokens"] == 2
        asked = (await complete(g, best_of=3, logprobs=1)).json()["choices"][0]["logprobs"]
        assert asked["tokens"] == ["a", "b", "c"]


async def test_one_failure_fails_all_and_stops_the_others() -> None:
    async with running_gateway(workers=2) as g:
        g.workers[0].hold()
        g.workers[1].script.fail = "it broke"
        response = await g.chat(n=6, max_tokens=5)
        assert response.status_code == 500
        assert "it broke" in response.json()["error"]["message"]
        g.workers[0].release()
        await until(lambda: g.served.dispatcher.active == 0, "nothing is left")
        await until(lambda: g.workers[0].busy == 0, "the others were cancelled")


async def test_a_client_that_leaves_frees_all_slots() -> None:
    script = Script(answer=lambda _: ["a"] * 2000, step_s=0.005)
    async with running_gateway(workers=2, script=script) as g:
        body = {**HELLO, "stream": True, "n": 8}
        async with g.client.stream("POST", CHAT, json=body) as response:
            async for line in response.aiter_lines():
                if '"content":"a' in line:
                    break
        await until(lambda: not any(w.busy for w in g.workers), "all were cancelled")
        assert g.served.dispatcher.active == 0


async def test_more_answers_than_may_wait_are_refused_by_name() -> None:
    async with running_gateway(queue_size=8) as g:
        assert len((await g.chat(n=8)).json()["choices"]) == 8
        for fields, param in (
            ({"n": 9}, "n"),
            ({"best_of": 9}, "best_of"),
            ({"prompt": ["x"] * 9}, "prompt"),
            ({"prompt": ["x"] * 3, "n": 3}, "n"),
        ):
            response = await complete(g, **fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param


async def test_a_full_queue_takes_all_of_a_request_or_nothing() -> None:
    async with running_gateway(queue_size=8) as g:
        g.workers[0].hold()
        waiting = [asyncio.create_task(g.chat()) for _ in range(4 + 5)]
        await until(lambda: g.served.dispatcher.queue_depth == 5, "five wait")
        refused = await g.chat(n=4)
        assert refused.status_code == 429
        assert g.served.dispatcher.queue_depth == 5
        waiting.append(asyncio.create_task(g.chat(n=3)))
        await until(lambda: g.served.dispatcher.queue_depth == 8, "three more wait")
        g.workers[0].release()
        assert [r.status_code for r in await asyncio.gather(*waiting)] == [200] * 10


async def test_when_one_of_several_is_refused_none_of_them_runs() -> None:
    """Flex may fill half of the queue only: the fifth one goes over that."""
    async with running_gateway(queue_size=8) as g:
        g.workers[0].hold()
        busy = [asyncio.create_task(g.chat()) for _ in range(4)]
        await until(lambda: g.workers[0].busy == 4, "the worker is full")
        refused = await g.chat(n=5, service_tier="flex")
        assert refused.status_code == 429
        assert g.served.dispatcher.queue_depth == 0
        g.workers[0].release()
        assert [r.status_code for r in await asyncio.gather(*busy)] == [200] * 4
        assert len(g.workers[0].submits) == 4


# --- log-probabilities ------------------------------------------------------------------


def chat_entry(token: str, logprob: float, top: list[str]) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": logprob,
        "bytes": list(token.encode()),
        "top_logprobs": [
            {"token": one, "logprob": -ord(one) / 10, "bytes": list(one.encode())} for one in top
        ],
    }


CHAT_ENTRIES = [
    chat_entry("a", -0.97, ["a", "b"]),
    chat_entry("b", -0.98, ["a", "b"]),
    chat_entry("c", -0.99, ["a", "b"]),
]


async def test_chats_have_logprobs_in_openais_shape() -> None:
    async with running_gateway(script=TELLING) as g:
        body = (await g.chat(seed=SEED, logprobs=True, top_logprobs=2)).json()
        assert body["choices"][0]["logprobs"] == {"content": CHAT_ENTRIES, "refusal": None}
        bare = (await g.chat(seed=SEED, logprobs=True)).json()["choices"][0]["logprobs"]
        assert [entry["top_logprobs"] for entry in bare["content"]] == [[], [], []]
        none = (await g.chat(seed=SEED)).json()["choices"][0]
        assert none["logprobs"] is None


async def test_streams_have_each_tokens_logprobs_in_the_chunk_that_its_step_made() -> None:
    script = Script(answer=lambda _: ["", "one", ""], token=letters, step_s=0.02)
    async with running_gateway(script=script) as g:
        chunks = await stream(g, CHAT, logprobs=True, top_logprobs=2)
        choices = [chunk["choices"][0] for chunk in chunks]
        entries = [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]]
        assert entries == CHAT_ENTRIES
        first = next(c for c in choices if c["logprobs"])
        if len(first["logprobs"]["content"]) == 1:  # on a slow box two steps may come at once
            assert first["delta"] == {"content": ""}
        assert "".join(c["delta"].get("content", "") for c in choices) == "one"
        plain = await stream(g, CHAT)
        assert all(chunk["choices"][0]["logprobs"] is None for chunk in plain)


async def test_completions_have_logprobs_in_their_own_shape() -> None:
    async with running_gateway(script=TELLING) as g:
        body = (await complete(g, logprobs=1)).json()
        assert body["choices"][0]["logprobs"] == {
            "tokens": ["a", "b", "c"],
            "token_logprobs": [-0.97, -0.98, -0.99],
            "top_logprobs": [
                {"a": -0.97},
                {"a": -9.7, "b": -0.98},
                {"a": -9.7, "c": -0.99},
            ],
            "text_offset": [0, 1, 2],
        }
        zero = (await complete(g, logprobs=0)).json()["choices"][0]["logprobs"]
        assert zero["top_logprobs"] == [{"a": -0.97}, {"b": -0.98}, {"c": -0.99}]


async def test_tokens_that_are_no_characters_are_shown_as_bytes() -> None:
    def halves(submit: Submit, place: int) -> int:
        return "é".encode()[place] if place < 2 else 257  # and <|im_end|>

    script = Script(answer=lambda _: ["", "é", ""], token=halves)
    async with running_gateway(script=script) as g:
        found = (await complete(g, logprobs=0)).json()["choices"][0]["logprobs"]
        assert found["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "<|im_end|>"]
        assert found["text_offset"] == [0, 0, 1]
        entries = (await g.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
        assert [entry["bytes"] for entry in entries] == [[0xC3], [0xA9], list(b"<|im_end|>")]
        assert [entry["token"] for entry in entries] == ["\ufffd", "\ufffd", "<|im_end|>"]


# --- echoes -----------------------------------------------------------------------------


async def test_an_echo_begins_every_answer_with_its_prompt() -> None:
    async with running_gateway(script=TELLING) as g:
        body = (await complete(g, prompt=["ab", [120, 258]], n=2, echo=True)).json()
        assert texts(body["choices"]) == ["abb0!", "abb1!", "x<s>\x020!", "x<s>\x021!"]
        chunks = await stream(g, COMPLETIONS, prompt="ab", echo=True)
        assert chunks[0]["choices"][0]["text"] == "ab"
        assert "".join(texts([chunk["choices"][0] for chunk in chunks])) == "abb0!"


async def test_echoed_prompts_have_logprobs_but_for_their_first_token() -> None:
    async with running_gateway(script=TELLING, vocab=ToyVocab(bos_text="<s>")) as g:
        expected = {
            "tokens": ["<s>", "d", "e", "a", "b", "c"],
            "token_logprobs": [None, -1.0, -1.01, -0.97, -0.98, -0.99],
            "top_logprobs": [None, *({t: -ord(t) / 100} for t in "deabc")],
            "text_offset": [0, 0, 1, 2, 3, 4],
        }
        whole = (await complete(g, prompt="de", echo=True, logprobs=0)).json()["choices"][0]
        assert whole["text"] == "dee0!"
        assert whole["logprobs"] == expected
        chunks = await stream(g, COMPLETIONS, prompt="de", echo=True, logprobs=0)
        pieces = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
        for name, values in expected.items():
            assert [value for piece in pieces for value in piece[name]] == values
        assert g.workers[0].submits[-1].prompt_logprobs


async def test_a_prompt_alone_may_be_asked_about() -> None:
    async with running_gateway(script=TELLING) as g:
        body = (await complete(g, prompt="de", echo=True, logprobs=0, max_tokens=0)).json()
        choice = body["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("de", "length")
        assert choice["logprobs"]["tokens"] == ["d", "e"]
        assert body["usage"]["completion_tokens"] == 0
        plain = await complete(g, prompt="de", echo=True)
        assert plain.json()["choices"][0]["logprobs"] is None
        assert not g.workers[0].submits[-1].prompt_logprobs


# --- filling in, going on ---------------------------------------------------------------


async def test_a_suffix_is_put_as_the_model_wants_it_or_refused() -> None:
    async with running_gateway(script=TELLING) as g:
        refused = await complete(g, suffix="z")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "suffix"
        assert (await complete(g, suffix="")).status_code == 200
    vocab = ToyVocab(bos_text="<s>")
    vocab.infill_tokens = (1, 2, 3)
    async with running_gateway(script=TELLING, vocab=vocab) as g:
        assert (await complete(g, prompt="ab<s>", suffix="yz")).status_code == 200
        prompt = wire.unpack_tokens(g.workers[0].submits[-1].prompt)
        assert prompt == [258, 1, *b"ab<s>", 2, *b"yz", 3]
        await complete(g, prompt=[[97, 98], [99]], suffix="z")
        prompts = [wire.unpack_tokens(submit.prompt) for submit in g.workers[0].submits[-2:]]
        assert sorted(prompts) == [[258, 1, 97, 98, 2, 122, 3], [258, 1, 99, 2, 122, 3]]


async def test_an_answer_may_go_on_with_the_last_message() -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<s> Well, "}]
    vocab = ToyVocab()
    async with running_gateway(script=TELLING) as g:
        assert (await g.chat(messages=said, continue_final_message=True)).status_code == 200
        prompt = vocab.text(wire.unpack_tokens(g.workers[0].submits[-1].prompt))
        assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<s> Well, "
        await g.chat(messages=said, add_generation_prompt=False)
        prompt = vocab.text(wire.unpack_tokens(g.workers[0].submits[-1].prompt))
        assert prompt.endswith("<s> Well, <|im_end|>\n")
    silent = ToyVocab(template="{{ messages[0]['content'] }}")
    async with running_gateway(script=TELLING, vocab=silent) as g:
        refused = await g.chat(messages=said, continue_final_message=True)
        assert (refused.status_code, refused.json()["error"]["param"]) == (
            422,
            "continue_final_message",
        )


def test_what_a_helper_hands_over_arrives_as_it_was() -> None:
    body = {"prompt": ["ab", [120]], "n": 2, "best_of": 3, "echo": True, "logprobs": 2}
    asked = msgspec.json.encode({**body, "service_tier": "flex"})
    taken = Preparation(ToyVocab(), 64, "toy", IN_HELPER, Grammars()).prepare(
        asked, Kind.COMPLETION
    )
    assert isinstance(taken, Taken)
    assert (taken.n, taken.best_of, len(taken.works)) == (2, 3, 2)
    assert taken.echoes == (Echo("ab", 97), Echo("x", 120))
    assert taken.style == Style(tier="flex", logprobs=True, prompt_tokens=2)
    assert helper_messages.answer(helper_messages.frame(Prepared(taken))[4:]) == Prepared(taken)
