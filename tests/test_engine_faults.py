"""Decodes that are aborted or fail, and numbers that are none."""

from __future__ import annotations

from typing import Any

import pytest

from engine_bench import OTHER, PROMPT, Bench
from fake_engine import (
    FakeContext,
    FakeSampler,
    continuation,
    lively,
    submit,
)
from lbhost.wire import FinishReason
from lbhost.worker.context import Decoded
from lbhost.worker.draw import LogitsError
from lbhost.worker.interfaces import MAX_FAILURES, EngineFailureError


def test_an_aborted_step_leaves_the_kv_as_it_was() -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 12))
    bench.submit(submit(2, OTHER, 12))
    bench.step()
    bench.step()
    bench.context.results = [Decoded.ABORTED]
    before = [list(kv) for kv in bench.context.kv]
    assert bench.step() == []
    assert bench.context.kv == before
    bench.run()
    assert bench.result(1).tokens == continuation(PROMPT, 12, 64)
    assert bench.result(2).tokens == continuation(OTHER, 12, 64)


def test_an_abort_after_a_cancel_frees_the_slot_and_keeps_its_valid_prefix() -> None:
    bench = Bench()
    bench.submit(submit(1, list(range(1, 61)), 12))
    bench.step()
    held = len(bench.context.kv[0])
    assert 0 < held < 60
    bench.context.results = [Decoded.ABORTED]
    bench.step()
    bench.engine.cancel(0, 1)
    bench.submit(submit(2, list(range(1, 61)), 3))
    bench.run()
    assert bench.finish(2).cached_tokens == held
    assert bench.result(2).tokens == continuation(list(range(1, 61)), 3, 64)


def test_the_requests_of_a_step_are_known_while_it_is_computed() -> None:
    bench = Bench()
    seen: list[set[tuple[int, int]]] = []
    bench.context.during_decode = lambda: seen.append(set(bench.engine.computing))
    bench.submit(submit(1, PROMPT, 2))
    bench.submit(submit(2, PROMPT, 2), link=3)
    bench.run()
    assert seen[0] <= {(0, 1), (3, 2)}
    assert bench.engine.computing == set()


@pytest.mark.parametrize("how", [Decoded.NO_ROOM, Decoded.FAILED])
@pytest.mark.parametrize("requests", [1, 2])
def test_a_failed_decode_gives_its_requests_back_and_the_worker_goes_on(
    how: Decoded, requests: int
) -> None:
    bench = Bench()
    for number in range(requests):
        bench.submit(submit(number, PROMPT, 12))
    while not all((0, number) in bench.results for number in range(requests)):
        bench.step()
    bench.context.results = [how]
    bench.step()
    for number in range(requests):
        finish = bench.finish(number)
        assert (finish.reason, finish.alone) == (FinishReason.FAILED, requests == 1)
        told = bench.result(number).tokens
        assert finish.completion_tokens == len(told) > 0
        assert told == continuation(PROMPT, len(told), 64)
        assert bench.context.kv[number] == []
    bench.submit(submit(5, PROMPT, 5))
    bench.run()
    assert bench.result(5).tokens == continuation(PROMPT, 5, 64)


def test_what_is_no_number_fails_its_request_and_nobody_reuses_its_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(FakeContext(slots=2))
    pick = FakeSampler.pick

    def broken(self: FakeSampler, outputs: Any, index: int) -> int:
        if outputs.tokens_before(index)[0] == 7:
            raise LogitsError
        return pick(self, outputs, index)

    monkeypatch.setattr(FakeSampler, "pick", broken)
    bench.submit(submit(1, [7, 8, 9]))
    bench.submit(submit(2, lively(5, 1), max_tokens=3))
    while bench.engine.busy:
        bench.step()
    finish = bench.results[0, 1].finish
    assert finish is not None
    assert (finish.reason, finish.error) == (
        FinishReason.ERROR,
        "the model computed something that is no number",
    )
    assert bench.results[0, 2].tokens == continuation(lively(5, 1), 3, 64)
    monkeypatch.undo()
    bench.submit(submit(3, [7, 8, 9, 10], max_tokens=1))
    while bench.engine.busy:
        bench.step()
    last = bench.results[0, 3].finish
    assert last is not None
    assert last.cached_tokens == 0


@pytest.mark.parametrize("how", [Decoded.NO_ROOM, Decoded.FAILED])
def test_failures_in_a_row_end_the_worker(how: Decoded) -> None:
    bench = Bench()
    bench.context.results = [how] * MAX_FAILURES
    for request in range(MAX_FAILURES - 1):
        bench.submit(submit(request, PROMPT))
        bench.step()
    bench.submit(submit(99, PROMPT))
    with pytest.raises(EngineFailureError):
        bench.step()
    assert [d.finish.reason for _, d in bench.engine.take() if d.finish] == [FinishReason.FAILED]
