"""Tokens that a grammar forces: told at once, computed in one go."""

from __future__ import annotations

import pytest

from engine_bench import Bench
from fake_engine import (
    FORCING,
    FakeContext,
    continuation,
    lively,
    submit,
)
from lbhost.wire import FinishReason, pack_tokens


def test_forced_tokens_come_with_the_one_that_was_picked_and_are_computed_in_one_go() -> None:
    prompt = lively(9)
    bench = Bench()
    bench.submit(submit(1, prompt, 30, grammar=FORCING))
    told = []
    while bench.engine.busy:
        told += [len(delta.tokens) for delta in bench.step()]
    assert bench.result(1).tokens == continuation(prompt, 30, 64)
    assert bench.result(1).text == "".join(f"{token} " for token in bench.result(1).tokens)
    assert bench.finish(1).completion_tokens == sum(told) == 30
    assert max(told) == 4
    assert bench.engine.load().steps == len(told) < 20


def test_a_stop_string_among_forced_tokens_ends_the_answer() -> None:
    prompt = lively(9)
    expected = continuation(prompt, 30, 64)
    for stop in range(2, 12):
        bench = Bench()
        word = f" {expected[stop]} "
        bench.submit(submit(1, prompt, 30, grammar=FORCING, stop=(word,)))
        bench.run()
        said = "".join(f"{token} " for token in expected)
        assert bench.result(1).text == said[: said.index(word)]
        assert bench.finish(1).stop == word


def test_a_request_moves_amid_forced_tokens() -> None:
    prompt, told = lively(9), list[int]()
    amid = 0
    while len(told) < 30:
        bench = Bench(FakeContext(batch_size=64))
        bench.submit(submit(1, prompt, 30, grammar=FORCING, done=pack_tokens(told)))
        bench.step()
        if bench.engine.busy:
            amid += bench.engine.prefill_pending > 0
            bench.engine.move(0, 1)
            bench.run()
            assert bench.finish(1).reason is FinishReason.MOVED
        told += bench.result(1).tokens
    assert told == continuation(prompt, 30, 64)
    assert amid > 3, "what was forced was not computed when it moved"


def test_forced_tokens_are_no_prompt_to_the_speeds() -> None:
    bench = Bench()
    bench.context.during_decode = lambda: setattr(bench, "now", bench.now + 1.0)
    bench.submit(submit(1, lively(9), 30, grammar=FORCING))
    bench.run()
    load = bench.engine.load()
    assert load.prompt_tokens == 9
    assert load.speeds.prefill_tok_s == pytest.approx(9)
