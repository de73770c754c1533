"""The engine of embedding workers over a fake model: batches, order, failures, ends."""

from __future__ import annotations

import array
from collections import deque

import numpy
import pytest
from numpy.typing import NDArray

from lbhost.wire import (
    Delta,
    Embed,
    FinishReason,
    Sampling,
    Submit,
    Vectors,
    pack_tokens,
    unpack_tokens,
)
from lbhost.worker.embedding_engine import EmbeddingEngine
from lbhost.worker.interfaces import MAX_FAILURES, EngineFailureError
from lbhost.worker.llama_context import Decoded
from lbhost.worker.packing import WAIT_S

N_VOCAB = 1000


def vector_of(tokens: list[int]) -> NDArray[numpy.float32]:
    """The fake model."""
    return numpy.array([sum(tokens), len(tokens), tokens[0]], numpy.float32)


class FakeContext:
    n_ctx = 64
    n_vocab = N_VOCAB
    usual_tokens = 32
    most_inputs = 4

    def __init__(self, *, scores: bool = False) -> None:
        self.scores = scores
        self.batches: list[list[list[int]]] = []
        self.results: deque[Decoded] = deque()
        self.broken = False

    def compute(self, inputs: list[bytes]) -> tuple[Decoded, list[NDArray[numpy.float32]]]:
        tokens = [unpack_tokens(one) for one in inputs]
        assert len(tokens) <= self.most_inputs
        assert sum(map(len, tokens)) <= self.usual_tokens or len(tokens) == 1
        self.batches.append(tokens)
        result = self.results.popleft() if self.results else Decoded.OK
        if result is not Decoded.OK:
            return result, []
        if self.broken:
            return result, [vector_of(one) * numpy.float32("nan") for one in tokens]
        return result, [vector_of(one) for one in tokens]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


class Bench:
    """An engine and what it has said."""

    def __init__(self, context: FakeContext | None = None) -> None:
        self.context = context or FakeContext()
        self.clock = Clock()
        self.engine = EmbeddingEngine(self.context, clock=self.clock, cpu_clock=self.clock)
        self.vectors: dict[int, Vectors] = {}
        self.ends: dict[int, Delta] = {}

    def embed(self, request: int, *inputs: list[int], link: int = 0) -> None:
        lengths = tuple(map(len, inputs))
        tokens = b"".join(map(pack_tokens, inputs))
        self.engine.submit(link, Embed(request, tokens, lengths))

    def run(self, steps: int = 1000) -> None:
        while self.engine.busy and steps:
            if not self.engine.pause_s():
                self.hear(self.engine.step())
                steps -= 1

    def hear(self, out: list[tuple[int, Delta | Vectors]]) -> None:
        for _, message in out:
            assert not isinstance(message, Vectors) or message.finish is not None, "one frame each"
            (self.vectors if isinstance(message, Vectors) else self.ends)[message.request] = message  # type: ignore[assignment]

    def reason(self, request: int) -> FinishReason:
        finish = self.ends[request].finish
        assert finish is not None
        return finish.reason


def expected(tokens: list[int]) -> list[float]:
    vector = vector_of(tokens)
    return list(vector / numpy.linalg.norm(vector))


def got(vectors: Vectors) -> list[list[float]]:
    numbers = array.array("f", vectors.values).tolist()
    return [numbers[at : at + 3] for at in range(0, len(numbers), 3)]


def test_every_input_gets_its_own_vector_of_length_one_in_its_place() -> None:
    bench = Bench()
    inputs = [[i + 1] * (i % 7 + 1) for i in range(23)]
    bench.embed(1, *inputs)
    bench.embed(2, [5, 6])
    bench.run()
    assert got(bench.vectors[1]) == pytest.approx(numpy.array([expected(one) for one in inputs]))
    assert got(bench.vectors[2]) == pytest.approx(numpy.array([expected([5, 6])]))
    finish = bench.vectors[1].finish
    assert finish is not None
    assert finish.reason is FinishReason.STOP
    assert finish.prompt_tokens == sum(map(len, inputs))
    assert finish.prefill_s > 0
    assert bench.engine.load().prompt_tokens == sum(map(len, inputs)) + 2


def test_inputs_of_several_requests_share_a_batch() -> None:
    bench = Bench()
    bench.embed(1, [1] * 10)
    bench.embed(2, [2] * 10)
    bench.run()
    assert len(bench.context.batches) == 1


def test_scores_are_left_as_the_model_has_them() -> None:
    bench = Bench(FakeContext(scores=True))
    bench.embed(1, [2, 3])
    bench.run()
    assert got(bench.vectors[1]) == [[5.0, 2.0, 2.0]]


def test_a_short_request_does_not_wait_behind_a_long_one() -> None:
    bench = Bench()
    bench.embed(1, *[[7] * 30] * 10)
    bench.run(steps=1)
    bench.embed(2, [1, 2, 3])
    bench.run(steps=1)
    assert 2 in bench.vectors
    assert 1 not in bench.vectors


def test_an_idle_engine_waits_two_milliseconds_for_more_but_not_with_a_full_batch() -> None:
    bench = Bench()
    bench.embed(1, [1])
    began = bench.clock.now
    assert 0 < bench.engine.pause_s() <= WAIT_S
    while bench.engine.pause_s():
        pass
    assert bench.clock.now - began <= WAIT_S + 0.001
    bench.run()
    full = Bench()
    full.embed(1, [1] * 30, [2] * 30)
    assert full.engine.pause_s() == 0.0


def test_cancelled_and_moved_requests_end_and_leave_the_others_alone() -> None:
    bench = Bench()
    for request in (1, 2, 3):
        bench.embed(request, [request] * 20, [request] * 20)
    bench.run(steps=1)
    bench.engine.cancel(0, 1)
    bench.engine.move(0, 2)
    bench.engine.cancel(0, 99)
    bench.run()
    assert bench.reason(1) is FinishReason.CANCELLED
    assert bench.reason(2) is FinishReason.MOVED
    assert set(bench.vectors) == {3}


def test_a_link_that_is_gone_is_told_nothing_and_computed_for_no_more() -> None:
    bench = Bench()
    bench.embed(1, [1] * 20, link=4)
    bench.embed(1, [2] * 20, link=5)
    bench.engine.cancel_link(4)
    bench.run()
    assert bench.context.batches == [[[2] * 20]]
    assert got(bench.vectors[1]) == pytest.approx(numpy.array([expected([2] * 20)]))


def test_an_aborted_batch_is_computed_again() -> None:
    bench = Bench()
    bench.context.results.append(Decoded.ABORTED)
    bench.embed(1, [3, 4])
    bench.run()
    assert len(bench.context.batches) == 2
    assert got(bench.vectors[1]) == pytest.approx(numpy.array([expected([3, 4])]))


def test_a_failed_batch_fails_those_in_it_and_too_many_end_the_worker() -> None:
    bench = Bench()
    for round_ in range(MAX_FAILURES - 1):
        bench.context.results.append(Decoded.FAILED)
        bench.embed(round_, [1])
        bench.run()
        assert bench.reason(round_) is FinishReason.FAILED
        finish = bench.ends[round_].finish
        assert finish is not None
        assert finish.alone
    bench.context.results.append(Decoded.FAILED)
    bench.embed(50, [1])
    with pytest.raises(EngineFailureError):
        bench.run()
    bench.hear(bench.engine.take())
    assert bench.reason(50) is FinishReason.FAILED


def test_what_is_no_number_is_an_error_of_its_request() -> None:
    bench = Bench()
    bench.context.broken = True
    bench.embed(1, [1])
    bench.run()
    assert bench.reason(1) is FinishReason.ERROR


@pytest.mark.parametrize(
    ("embed", "why"),
    [
        (Embed(1, pack_tokens([1, 2]), ()), "lengths"),
        (Embed(1, pack_tokens([1, 2]), (1,)), "lengths"),
        (Embed(1, pack_tokens([1, 2]), (0, 2)), "lengths"),
        (Embed(1, b"abc", (1,)), "whole tokens"),
        (Embed(1, pack_tokens([1] * 65), (65,)), "exceed the context"),
        (Embed(1, pack_tokens([N_VOCAB]), (1,)), "vocabulary"),
        (Submit(1, pack_tokens([1]), 1, Sampling()), "another kind"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(embed: Embed | Submit, why: str) -> None:
    bench = Bench()
    bench.engine.submit(0, embed)
    bench.run()
    finish = bench.ends[1].finish
    assert finish is not None
    assert finish.reason is FinishReason.ERROR
    assert why in (finish.error or "")


def test_a_draining_worker_refuses_and_one_that_stops_gives_back() -> None:
    bench = Bench()
    bench.engine.reject(0, Embed(1, pack_tokens([1]), (1,)))
    bench.embed(2, [1])
    bench.engine.move_all()
    bench.hear(bench.engine.take())
    assert bench.reason(1) is FinishReason.REJECTED
    assert bench.reason(2) is FinishReason.MOVED
    assert not bench.engine.busy


def test_the_board_shows_tokens_to_compute_and_no_kv_cache() -> None:
    bench = Bench()
    bench.embed(1, [1] * 30, [2] * 20)
    load = bench.engine.load()
    assert (load.waiting, load.slots_busy, load.prefill_pending) == (1, 0, 50)
    assert load.speeds.step_seq_s is None
    bench.run(steps=1)
    load = bench.engine.load()
    assert (load.waiting, load.slots_busy, load.prefill_pending) == (0, 1, 20)
    assert (load.kv_used, load.kv_total, load.tokens_out) == (0, 0, 0)
    assert load.speeds.prefill_tok_s is not None
    assert load.speeds.step_seq_s == 0.0
