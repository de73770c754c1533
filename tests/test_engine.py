"""The engine over a fake model: requests, their endings, and what is told of them."""

from __future__ import annotations

import msgspec
import pytest

from engine_bench import OTHER, PROMPT, Bench
from fake_engine import (
    EOG,
    UNKNOWN,
    FakeContext,
    continuation,
    lively,
    submit,
)
from lbhost.wire import FinishReason


def test_a_request_gets_the_models_tokens_and_its_numbers() -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 5))
    bench.run()
    expected = continuation(PROMPT, 5, 64)
    assert bench.result(1).tokens == expected
    assert bench.result(1).text == "".join(f"{t} " for t in expected)
    finish = bench.finish(1)
    assert (finish.reason, finish.prompt_tokens, finish.cached_tokens) == ("length", 8, 0)
    assert finish.completion_tokens == 5


def test_the_first_token_says_how_long_its_step_took() -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 3))
    first, second = (delta for _ in range(2) for delta in bench.step())
    assert first.step_s is not None
    assert second.step_s is None


def test_an_eog_token_ends_a_request_and_has_no_text() -> None:
    prompt = next([n] for n in range(1, 999) if continuation([n], 10, 64)[-1] == EOG)
    bench = Bench()
    bench.submit(submit(1, prompt, 60))
    bench.run()
    assert bench.finish(1).reason is FinishReason.STOP
    assert bench.result(1).tokens[-1] == EOG
    assert not bench.result(1).text.endswith("0 ")


def test_a_stop_string_ends_a_request() -> None:
    tokens = continuation(PROMPT, 6, 64)
    bench = Bench()
    bench.submit(submit(1, PROMPT, 60, stop=(f" {tokens[3]} ",)))
    bench.run()
    assert bench.finish(1).reason is FinishReason.STOP
    assert bench.result(1).text == " ".join(map(str, tokens[:3]))


def test_a_full_context_ends_a_request() -> None:
    prompt = lively(60)
    bench = Bench()
    bench.submit(submit(1, prompt, 100))
    bench.run()
    assert bench.finish(1).reason is FinishReason.LENGTH
    assert bench.result(1).tokens == continuation(prompt, 100, 64)
    assert len(bench.result(1).tokens) == 5


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "no tokens"),
        ([1] * 65, "exceed the context"),
        ([1, 1000], "not in the vocabulary"),
        ([-1], "not in the vocabulary"),
    ],
)
def test_a_bad_prompt_is_answered_and_harms_nobody(prompt: list[int], says: str) -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 5))
    bench.submit(submit(2, prompt, 5))
    bench.run()
    assert bench.finish(2).reason is FinishReason.ERROR
    assert says in (bench.finish(2).error or "")
    assert bench.result(1).tokens == continuation(PROMPT, 5, 64)


def test_half_a_token_is_an_error() -> None:
    bench = Bench()
    bench.submit(msgspec.structs.replace(submit(1, PROMPT), prompt=b"abcde"))
    bench.run()
    assert bench.finish(1).reason is FinishReason.ERROR


def test_one_decode_carries_all_sequences_in_slot_order() -> None:
    bench = Bench()
    for request in range(4):
        bench.submit(submit(request, lively(3, request), 8))
    bench.run()
    assert [(0, 1), (1, 1), (2, 1), (3, 1)] in bench.context.batches


def test_more_requests_than_slots_wait_their_turn() -> None:
    bench = Bench(FakeContext(slots=2))
    for request in range(5):
        bench.submit(submit(request, [request + 1, 60], 6))
    assert bench.engine.load().waiting == 5
    assert bench.engine.prefill_pending == 10
    bench.run()
    for request in range(5):
        assert bench.result(request).tokens == continuation([request + 1, 60], 6, 64)


def test_the_same_id_on_two_links_is_two_requests() -> None:
    bench = Bench()
    bench.submit(submit(1, [1, 2, 3], 6), link=0)
    bench.submit(submit(1, [4, 5, 6], 6), link=1)
    bench.run()
    assert bench.result(1, 0).tokens == continuation([1, 2, 3], 6, 64)
    assert bench.result(1, 1).tokens == continuation([4, 5, 6], 6, 64)


def test_a_cancelled_request_ends_at_once_wherever_it_is() -> None:
    bench = Bench(FakeContext(slots=2))
    bench.submit(submit(1, PROMPT, 50))  # will decode
    bench.step()
    bench.submit(submit(2, list(range(1, 61)), 50))  # will be between chunks
    bench.submit(submit(3, PROMPT, 50))  # will wait
    bench.step()
    for request in (1, 2, 3):
        bench.engine.cancel(0, request)
    assert bench.engine.load().slots_busy == 0
    bench.run()
    assert [bench.finish(r).reason for r in (1, 2, 3)] == [FinishReason.CANCELLED] * 3


def test_cancelling_what_is_not_there_does_nothing() -> None:
    bench = Bench()
    bench.engine.cancel(0, 9)
    assert not bench.engine.busy


def test_a_lost_links_requests_end_and_nobody_is_told() -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 50), link=0)
    bench.submit(submit(2, PROMPT, 5), link=1)
    bench.step()
    bench.engine.cancel_link(0)
    bench.run()
    assert bench.finish(2, 1).completion_tokens == 5
    assert (0, 1) not in bench.results or bench.result(1).finish is None


def test_a_rejected_request_is_handed_back() -> None:
    bench = Bench()
    bench.engine.reject(0, submit(1, PROMPT))
    assert bench.engine.busy
    bench.run()
    assert bench.finish(1).reason is FinishReason.REJECTED
    assert bench.context.batches == []


def test_what_was_not_begun_says_so_when_it_is_given_back() -> None:
    bench = Bench(FakeContext(slots=1))

    def second() -> None:
        bench.now += 1.0

    bench.context.during_decode = second
    for number in (1, 2):
        bench.submit(submit(number, PROMPT, 9))
    bench.step()
    bench.engine.move_all()
    bench.step()
    assert bench.finish(1).prefill_s == 1.0
    assert bench.finish(2).prefill_s == 0.0


def test_the_load_counts_what_runs() -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 4))
    bench.submit(submit(2, PROMPT, 4))
    bench.step()
    load = bench.engine.load()
    assert (load.slots_busy, load.kv_total, load.steps) == (2, 256, 1)
    assert load.kv_used > 0
    bench.run()
    load = bench.engine.load()
    assert (load.slots_busy, load.kv_used, load.prefill_pending, load.waiting) == (0, 0, 0, 0)
    assert load.tokens_out == sum(len(r.tokens) for r in bench.results.values())


def test_a_request_whose_grammar_cannot_be_followed_ends_alone() -> None:
    bench = Bench()
    bench.engine.submit(0, submit(1, PROMPT, grammar=UNKNOWN))
    bench.engine.submit(0, submit(2, OTHER))
    bench.run()
    finish = bench.finish(1)
    assert (finish.reason, finish.error) == (FinishReason.GRAMMAR, "unknown")
    assert bench.finish(2).reason is FinishReason.LENGTH
