"""The engine over the real model: greedy text is a plain run's, and neighbours do not matter."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from typing import Any

import pytest

from lbhost.llama import Model
from lbhost.llamacpp import api
from lbhost.model import resolve
from lbhost.wire import Sampling, Submit, pack_tokens
from lbhost.worker.context import Context, Decoded
from lbhost.worker.engine import Engine
from lbhost.worker.sampling import Samplers

pytestmark = pytest.mark.e2e

N_CTX = 256
NEW = 20

QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "How many legs does a spider have?",
    "Write a haiku about rain.",
    "What is 2 + 2?",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What is photosynthesis?",
    "Tell me a joke about cats.",
    "What is the largest planet?",
    "Explain gravity to a child.",
    "List the days of the week.",
    "What does HTTP stand for?",
    "How do I boil an egg?",
    "Name a famous painter.",
    "What is the boiling point of water?",
    "Write one sentence about the sea.",
    "What is a prime number?",
    "Who was Ada Lovelace?",
    "What is the opposite of hot?",
]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    loaded = Model(resolve("starter").path)
    yield loaded
    loaded.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, slots=3, n_ctx=N_CTX, threads=1)
    yield made
    made.close()


@pytest.fixture
def engine(context: Context, model: Model) -> Engine:
    # With so much time a step takes whole prompts, however slow the box: shapes are the same
    # in every run, and rounding with them.
    return Engine(context, Samplers(model.vocab), model.vocab, target_s=1e6)


def chat(model: Model, text: str) -> list[int]:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return model.vocab.tokenize(prompt, add_bos=True, parse_special=True)


def plain_run(model: Model, prompt: list[int]) -> list[int]:
    """Greedy tokens by a single-sequence context of its own, with nothing of ours around it."""
    params = api.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = N_CTX, 1, 1
    if not model.flash_attention:
        params.flash_attn_type = 0
    ctx = api.llama_init_from_model(model.handle, params)
    pick_largest = api.llama_sampler_init_greedy()
    out: list[int] = []
    tokens = (ctypes.c_int32 * len(prompt))(*prompt)
    batch = api.llama_batch_get_one(tokens, len(prompt))
    while True:
        assert api.llama_decode(ctx, batch) == 0
        out.append(int(api.llama_sampler_sample(pick_largest, ctx, -1)))
        if model.vocab.is_eog(out[-1]) or len(out) == NEW:
            break
        batch = api.llama_batch_get_one((ctypes.c_int32 * 1)(out[-1]), 1)
    api.llama_sampler_free(pick_largest)
    api.llama_free(ctx)
    return out


def run(engine: Engine) -> dict[int, list[int]]:
    """All that is submitted, to its end: tokens by request."""
    answers: dict[int, list[int]] = {}
    while engine.busy:
        for _, delta in engine.step():
            answers.setdefault(delta.request, []).extend(delta.tokens)
            assert delta.finish is None or delta.finish.error is None
    return answers


def greedy(request: int, prompt: list[int], max_tokens: int = NEW, **more: Any) -> Submit:
    sampling = Sampling(temperature=0.0)
    return Submit(request, pack_tokens(prompt), max_tokens, sampling, **more)


def test_greedy_output_is_that_of_a_plain_run(model: Model, engine: Engine) -> None:
    for question in QUESTIONS:
        prompt = chat(model, question)
        engine.submit(0, greedy(1, prompt))
        assert run(engine)[1] == plain_run(model, prompt), question


def test_greedy_output_is_the_same_when_a_prompts_kv_is_reused(
    model: Model, engine: Engine
) -> None:
    for question in QUESTIONS[:6]:
        prompt = chat(model, question)
        engine.submit(0, greedy(1, prompt))
        first = run(engine)[1]
        engine.submit(0, greedy(2, prompt))
        assert run(engine)[2] == first == plain_run(model, prompt), question


def test_a_sequences_text_does_not_depend_on_whose_tokens_share_its_batch(
    model: Model, engine: Engine, context: Context
) -> None:
    prompt = chat(model, QUESTIONS[3])
    draw = random.Random(1)
    answers = []
    for round_ in range(3):
        for slot in range(context.slots):
            context.truncate(slot, 0)
        fresh = Engine(context, Samplers(model.vocab), model.vocab, target_s=1e6)
        for neighbour in (1, 3):
            strangers = [draw.randrange(1000, 40_000) for _ in range(30)]
            fresh.submit(0, greedy(neighbour, strangers, ignore_eos=True))
            if neighbour == 1:
                fresh.submit(0, greedy(2, prompt))
        answers.append(run(fresh)[2])
        assert answers[round_] == answers[0]


def test_a_copied_prefix_continues_as_a_computed_one(model: Model, context: Context) -> None:
    prompt = chat(model, " ".join(QUESTIONS[:8]))
    assert len(prompt) > 60
    engine = Engine(context, Samplers(model.vocab), model.vocab, target_s=1e6)
    engine.submit(0, greedy(1, prompt, 40, ignore_eos=True))
    answers: dict[int, list[int]] = {}
    submitted = False
    cached = 0
    while engine.busy:
        for _, delta in engine.step():
            answers.setdefault(delta.request, []).extend(delta.tokens)
            if delta.request == 2 and delta.finish:
                cached = delta.finish.cached_tokens
        if not submitted and len(answers.get(1, [])) > 3:
            submitted = True
            engine.submit(0, greedy(2, prompt, 40, ignore_eos=True))
    assert cached == len(prompt) - 1
    assert answers[2][:8] == answers[1][:8]


def test_the_same_seed_repeats_and_others_do_not(model: Model, engine: Engine) -> None:
    prompt = chat(model, QUESTIONS[3])

    def sampled(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.5, seed=seed)
        engine.submit(0, Submit(1, pack_tokens(prompt), 16, sampling, ignore_eos=True))
        return run(engine)[1]

    sampled(1)  # from here on the prompt is cached, and shapes are the same
    assert sampled(7) == sampled(7)
    assert len({tuple(sampled(seed)) for seed in range(3)}) == 3


def test_an_aborted_decode_can_be_repeated_and_is_no_error_in_the_log(
    model: Model, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = chat(model, " ".join(QUESTIONS))
    packed = pack_tokens(prompt)

    def compute(position: int, tokens: bytes) -> tuple[Decoded, int]:
        context.clear()
        index = context.add(0, position, tokens, output=True)
        result = context.decode()
        return result, int(context.logits(index).argmax()) if result is Decoded.OK else -1

    half = 4 * 60
    assert compute(0, packed[:half])[0] is Decoded.OK
    asked = 0

    def after_a_while() -> bool:
        nonlocal asked
        asked += 1
        return asked > 100

    context.watch(after_a_while)
    assert compute(60, packed[half : 2 * half])[0] is Decoded.ABORTED
    assert "llama.cpp" not in capsys.readouterr().out
    context.watch(None)
    assert context.truncate(0, 60)
    repeated = compute(60, packed[half : 2 * half])
    context.truncate(0, 0)
    assert compute(0, packed[:half])[0] is Decoded.OK
    assert compute(60, packed[half : 2 * half]) == repeated


def test_the_batch_refuses_more_than_it_holds(context: Context) -> None:
    context.clear()
    with pytest.raises(ValueError, match="do not fit"):
        context.add(0, 0, bytes(4 * (context.batch_size + 1)), output=True)
    with pytest.raises(ValueError, match="do not fit"):
        context.add(0, N_CTX, bytes(4), output=True)


def test_truncating_to_what_is_there_changes_nothing(context: Context) -> None:
    context.clear()
    context.add(0, 0, pack_tokens([300, 301, 302]), output=True)
    assert context.decode() is Decoded.OK
    assert context.truncate(0, 3)
    assert context.truncate(0, 1)
    assert context.truncate(0, 0)
    assert context.truncate(1, 0)
