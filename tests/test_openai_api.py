"""OpenAI's API of the real server with the real model, through OpenAI's own client."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from lbhost.llama import Vocab
from lbhost.model import resolve
from serving import Server

pytestmark = pytest.mark.e2e

PROMPT = "The three primary colours are"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client that keeps its connections to a server."""
    folder = tmp_path_factory.mktemp("openai") / "run"
    with (
        Server(folder, "--ctx-size", "1024", "--workers", "1") as server,
        OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def client(shared: OpenAI) -> OpenAI:
    return shared


@pytest.fixture
def model(shared: OpenAI) -> str:
    return shared.models.list().data[0].id


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_same_seed_gives_the_same_text_and_each_choice_has_its_own(
    client: OpenAI, model: str
) -> None:
    def answers(n: int, seed: int) -> list[str | None]:
        made = client.chat.completions.create(
            model=model, messages=ask("Tell me a story."), n=n, seed=seed, max_tokens=24
        )
        assert [choice.index for choice in made.choices] == list(range(n))
        return [choice.message.content for choice in made.choices]

    alone = answers(1, 1234)
    assert answers(1, 1234) == alone
    assert answers(1, 1235) != alone
    assert len(set(answers(3, 1234))) == 3


def test_choices_of_a_stream_add_up(client: OpenAI, model: str) -> None:
    said = {0: "", 1: "", 2: ""}
    reasons: dict[int, str | None] = {}
    stream = client.chat.completions.create(
        model=model,
        messages=ask("Name a river."),
        n=3,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert len(set(said.values())) == 1
    assert set(reasons) == {0, 1, 2}
    assert usage is not None
    whole = client.chat.completions.create(
        model=model, messages=ask("Name a river."), temperature=0, max_tokens=12
    )
    assert whole.choices[0].message.content == said[0]
    assert whole.usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.completion_tokens == 3 * whole.usage.completion_tokens
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    timings = whole.model_extra["timings"] if whole.model_extra else {}
    assert timings["predicted_n"] == whole.usage.completion_tokens
    assert timings["predicted_per_second"] > 0


def test_chat_logprobs_are_those_of_the_text_streamed_or_not(client: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": ask("What is the capital of France?"),
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 5,
    }
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.logprobs is not None
    entries = answer.logprobs.content or []
    assert b"".join(bytes(e.bytes or []) for e in entries).decode() == answer.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 5
        assert entry.top_logprobs[0].token == entry.token  # greedy takes the most probable
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                streamed += choice.logprobs.content or []
    assert [e.token for e in streamed] == [e.token for e in entries]
    assert [e.logprob for e in streamed] == pytest.approx([e.logprob for e in entries], abs=0.05)


def test_logprobs_know_nothing_of_bias_and_temperature(client: OpenAI, model: str) -> None:
    def first(**more: Any) -> Any:
        made = client.completions.create(
            model=model, prompt=PROMPT, max_tokens=1, logprobs=2, seed=1, **more
        )
        return made.choices[0].logprobs

    plain, hot = first(temperature=0), first(temperature=2)
    for token, logprob in plain.top_logprobs[0].items():
        assert hot.top_logprobs[0][token] == pytest.approx(logprob, abs=0.05)
    most, second = plain.top_logprobs[0]
    assert plain.tokens == [most]
    vocab = Vocab.load(resolve("starter").path)
    (banned,) = vocab.tokenize(most, add_bos=False, parse_special=False)
    vocab.close()
    biased = first(temperature=0, logit_bias={str(banned): -100})
    assert biased.tokens == [second]
    for token, logprob in plain.top_logprobs[0].items():
        assert biased.top_logprobs[0][token] == pytest.approx(logprob, abs=0.05)


def test_a_list_of_prompts_is_answered_as_each_alone(client: OpenAI, model: str) -> None:
    prompts = [PROMPT, "One plus one is", "In the beginning"]
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 10}
    together = client.completions.create(prompt=prompts, n=2, **asked)
    assert [choice.index for choice in together.choices] == list(range(6))
    for place, prompt in enumerate(prompts):
        alone = client.completions.create(prompt=prompt, **asked).choices[0].text
        assert [c.text for c in together.choices[2 * place : 2 * place + 2]] == [alone] * 2


def test_an_echoed_prompts_logprobs_are_those_that_it_had_when_generated(
    client: OpenAI, model: str
) -> None:
    """A greedy continuation, given back as a prompt, is as probable as it was."""
    asked: dict[str, Any] = {"model": model, "temperature": 0, "logprobs": 3}
    made = client.completions.create(prompt=PROMPT, max_tokens=30, **asked).choices[0]
    assert made.logprobs is not None
    scored = client.completions.create(
        prompt=PROMPT + made.text, max_tokens=0, echo=True, **asked
    ).choices[0]
    assert scored.text == PROMPT + made.text
    assert scored.finish_reason == "length"
    assert scored.logprobs is not None
    tokens, values = scored.logprobs.tokens or [], scored.logprobs.token_logprobs or []
    assert "".join(tokens) == scored.text
    assert values[0] is None
    assert all(value is not None and value <= 0 for value in values[1:])
    offsets = scored.logprobs.text_offset or []
    assert all(scored.text[at:].startswith(t) for at, t in zip(offsets, tokens, strict=True))
    begins = offsets.index(len(PROMPT))
    # until the tokeniser cuts the text in other places than the model did
    before = list(zip(made.logprobs.tokens or [], made.logprobs.token_logprobs or [], strict=True))
    after = list(zip(tokens[begins:], values[begins:], strict=True))
    same = list(
        itertools.takewhile(lambda pair: pair[0][0] == pair[1][0], zip(before, after, strict=False))
    )
    assert len(same) >= 8
    assert [b for (_, b), _ in same] == pytest.approx([a for _, (_, a) in same], abs=0.1)


def test_scored_prompts_and_plain_ones_get_along(client: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 12}
    long = "Once upon a time there was a little mouse. " * 4

    def plain(number: int) -> str:
        made = client.completions.create(prompt=f"{number}. {PROMPT}", **asked)
        return str(made.choices[0].text)

    def scored(_: int) -> int:
        made = client.completions.create(prompt=long, echo=True, logprobs=1, **asked)
        logprobs = made.choices[0].logprobs
        assert logprobs is not None
        return len(logprobs.tokens or [])

    alone = [plain(number) for number in range(4)]
    with ThreadPoolExecutor(6) as pool:
        lengths = [pool.submit(scored, number) for number in range(2)]
        beside = [pool.submit(plain, number) for number in range(4)]
        assert [one.result() for one in beside] == alone
        assert len({one.result() for one in lengths}) == 1


def test_the_best_of_several_is_at_least_as_probable_as_the_rest(
    client: OpenAI, model: str
) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "max_tokens": 8, "seed": 7}

    def means(made: Any) -> list[float]:
        scores = [choice.logprobs.token_logprobs for choice in made.choices]
        return [sum(one) / len(one) for one in scores]

    best = client.completions.create(best_of=4, logprobs=0, **asked)
    every = client.completions.create(n=4, logprobs=0, **asked)
    assert means(best)[0] == pytest.approx(max(means(every)), abs=0.1)
    assert best.usage is not None
    assert best.usage.completion_tokens > 8


def test_an_answer_goes_on_where_the_last_message_ends(client: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "temperature": 0}
    messages = ask("What is the capital of France?")
    first = client.chat.completions.create(messages=messages, max_tokens=4, **asked)
    begun = first.choices[0].message.content
    whole = client.chat.completions.create(messages=messages, max_tokens=9, **asked)
    rest = client.chat.completions.create(
        messages=[*messages, {"role": "assistant", "content": begun}],
        max_tokens=5,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
        **asked,
    )
    assert f"{begun}{rest.choices[0].message.content}" == whole.choices[0].message.content


def test_stop_strings_are_found_across_tokens_and_up_to_sixteen(client: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": "1, 2, 3, 4, 5,", "temperature": 0}
    full = client.completions.create(max_tokens=20, **asked).choices[0].text
    inner = full[7:12]
    stops = [f"never {i}" for i in range(15)] + [inner]
    cut = client.completions.create(max_tokens=20, stop=stops, **asked).choices[0]
    assert cut.text == full[: full.index(inner)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_refusals_are_understood(
    client: OpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ask("x"), extra_body=fields)
    assert caught.value.param == param


def test_a_prompt_beyond_the_context_is_told_with_both_numbers(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ask("word " * 3000))
    assert caught.value.code == "context_length_exceeded"
    assert "1024" in str(caught.value)
    assert "3" in str(caught.value).partition("prompt")[2]


def test_filling_in_needs_a_model_that_can(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="def f(", suffix="return x")
    assert caught.value.param == "suffix"
