"""LoRA adapters in an engine: a batch is one's, all have their turn, none sees another's KV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from random import Random
from typing import Any

import pytest

from engine_bench import Bench
from fake_engine import FORCING, FakeContext, continuation, lively, submit
from keeping import Bench as KeepingBench
from lbhost import order
from lbhost.adapters import AdapterFile
from lbhost.state_link import Taken
from lbhost.weights import FilePart
from lbhost.wire import FinishReason, Submit
from lbhost.worker.context import Decoded

N_CTX = 256
PROMPT = list(range(100, 160))


def adapted(request: int, prompt: list[int], adapter: int, tokens: int = 20, **more: Any) -> Submit:
    """As a gateway sends it: every adapter's requests are of a scope of their own."""
    return submit(request, prompt, tokens, adapter=adapter, scope=scope(adapter), **more)


def scope(adapter: int) -> int:
    return 0 if not adapter else files()[adapter - 1].scope(0)


def files() -> list[AdapterFile]:
    return [AdapterFile("a", 1.0, part("a.gguf")), AdapterFile("b", 1.0, part("b.gguf"))]


def part(path: str, mtime_ns: int = 1) -> FilePart:
    return FilePart(path, 1, 2, 3, mtime_ns)


@pytest.fixture
def bench() -> Bench:
    return Bench(FakeContext(slots=4, n_ctx=N_CTX, batch_size=64))


class Watched(FakeContext):
    """Notes which adapter each decode was with."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.used: list[int] = []

    def decode(self) -> Decoded:
        self.used.append(self.adapter)
        return super().decode()


def test_the_same_prompt_with_several_adapters_at_once_is_answered_as_if_alone(
    bench: Bench,
) -> None:
    for number, adapter in enumerate((0, 1, 2, 1)):
        bench.submit(adapted(number, PROMPT, adapter))
    bench.run()
    for number, adapter in enumerate((0, 1, 2, 1)):
        assert bench.result(number).tokens == continuation(PROMPT, 20, N_CTX, adapter)
    assert bench.result(0).tokens != bench.result(1).tokens != bench.result(2).tokens


def test_a_slots_kv_is_reused_by_the_same_adapter_only(bench: Bench) -> None:
    for number, adapter in enumerate((0, 1, 0, 1, 2)):
        bench.submit(adapted(number, PROMPT, adapter, 4))
        bench.run()
    cached = [bench.finish(number).cached_tokens for number in range(5)]
    assert cached == [0, 0, len(PROMPT) - 1, len(PROMPT) - 1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_every_answer_is_its_adapters_own(seed: int) -> None:
    random = Random(seed)
    context = FakeContext(slots=3, n_ctx=N_CTX, batch_size=48)
    context.tiled = random.random() < 0.5
    bench = Bench(context)
    sent: list[Submit] = []
    for number in range(24):
        prompt = list(range(100, 100 + random.randrange(1, 90)))
        grammar = FORCING if random.random() < 0.3 else ""
        sent.append(adapted(number, prompt, random.randrange(3), 16, grammar=grammar))
        bench.submit(sent[-1])
        if random.random() < 0.1:
            context.results = [Decoded.ABORTED]
        for _ in range(random.randrange(12)):
            bench.step()
    bench.run()
    for one in sent:
        prompt = list(range(100, 100 + len(one.prompt) // 4))
        assert bench.result(one.request).tokens == continuation(prompt, 16, N_CTX, one.adapter)


def stints(used: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((adapter, len(list(steps))) for adapter, steps in groupby(used))


def timed(context: Watched) -> Bench:
    """Every decode takes 40 ms, so that a stint of 150 ms is four of them."""
    bench = Bench(context)

    def pass_time() -> None:
        bench.now += 0.04

    context.during_decode = pass_time
    return bench


def test_adapters_take_turns_of_the_inter_token_target() -> None:
    context = Watched(slots=4, n_ctx=N_CTX, batch_size=64)
    bench = timed(context)
    for adapter in range(3):
        bench.submit(adapted(adapter, lively(8, adapter, adapter), adapter, 40))
    bench.run()
    full = list(stints(context.used))[:9]
    assert [adapter for adapter, _ in full] == [0, 1, 2] * 3
    assert {steps for _, steps in full} == {4}


def test_a_newcomer_with_another_adapter_waits_for_one_turn_at_most() -> None:
    context = Watched(slots=4, n_ctx=N_CTX, batch_size=64)
    bench = timed(context)
    bench.submit(adapted(0, lively(8), 0, 200))
    for _ in range(10):
        bench.step()
    bench.submit(adapted(1, lively(8, 1, 1), 1, 200))
    bench.step()
    assert context.used[-1] == 1, "the turn was over long ago"
    bench.submit(adapted(2, lively(8, 2, 2), 2, 5))
    for _ in range(4):
        bench.step()
    assert context.used[-5:] == [1, 1, 1, 1, 0], "who was there before it goes first"
    for _ in range(4):
        bench.step()
    assert context.used[-1] == 2


def test_an_adapter_that_only_flex_requests_have_keeps_the_others_waiting_for_a_step() -> None:
    context = Watched(slots=4, n_ctx=N_CTX, batch_size=64)
    bench = timed(context)
    bench.submit(adapted(0, lively(8), 0, 30))
    bench.submit(adapted(1, lively(8, 1, 1), 1, 30, rank=order.FLEX))
    bench.run()
    told = dict(list(stints(context.used))[:4])
    assert told == {0: 4, 1: 1}


def test_one_adapter_alone_is_never_changed_and_the_load_counts_changes(bench: Bench) -> None:
    for number in range(3):
        bench.submit(adapted(number, lively(8, number), 0))
    bench.run()
    assert bench.engine.load().adapter_switches == 0
    bench.submit(adapted(3, PROMPT, 2))
    bench.run()
    assert bench.engine.load().adapter_switches == 1


class Twins(Watched):
    """Both adapters are the same file with the same scale."""

    def adapt(self, adapter: int) -> None:
        super().adapt(min(adapter, 1))


def test_a_prompt_that_waits_for_its_like_by_another_name_holds_nobody_up() -> None:
    bench = timed(Twins(slots=4, n_ctx=N_CTX, batch_size=32))
    prompt = list(range(100, 300))
    bench.submit(adapted(0, lively(8, 0), 0, 40))
    for number, adapter in ((1, 1), (2, 2)):
        bench.submit(submit(number, prompt, 8, adapter=adapter, scope=scope(1)))
    bench.run()
    assert bench.context.copies == 1, "the second takes over what the first has computed"
    for number in (1, 2):
        assert bench.result(number).tokens == continuation(prompt, 8, N_CTX, 1)


def test_an_adapter_that_is_not_there_is_an_error_of_that_request_alone(bench: Bench) -> None:
    bench.submit(adapted(0, PROMPT, 1))
    bench.submit(submit(1, PROMPT, adapter=3))
    bench.run()
    assert bench.finish(1).reason is FinishReason.ERROR
    assert bench.finish(0).reason is not FinishReason.ERROR


def test_a_state_that_one_adapter_computed_is_refused_for_another() -> None:
    bench = KeepingBench()
    try:
        prompt = list(range(100, 900))
        bench.engine.submit(0, adapted(1, prompt, 1, 4))
        bench.run()
        (_, fd), *_ = bench.states
        for request, adapter in ((2, 2), (3, 0), (4, 1)):
            other = KeepingBench()
            try:
                other.engine.submit(0, adapted(request, prompt, adapter, 4, state=7), os.dup(fd))
                other.run()
                taken = [message for message in other.sent if isinstance(message, Taken)]
                assert [bool(one.tokens) for one in taken] == [adapter == 1]
                assert other.answer(request) == continuation(prompt, 4, 4096, adapter)
            finally:
                other.close()
    finally:
        bench.close()


def test_a_scope_is_an_adapters_a_files_a_scales_and_a_keys() -> None:
    one = AdapterFile("a", 1.0, part("a.gguf"))
    others = [
        AdapterFile("a", 0.5, part("a.gguf")),
        AdapterFile("a", 1.0, part("b.gguf")),
        AdapterFile("a", 1.0, part("a.gguf", mtime_ns=2)),
    ]
    scopes = [one.scope(0), one.scope(1), *(other.scope(0) for other in others)]
    assert len({0, 1, *scopes}) == 2 + len(scopes)
    renamed = AdapterFile("new name", 1.0, part("a.gguf"))
    assert renamed.scope(0) == one.scope(0), "what it has computed stays of use"
