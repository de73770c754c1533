"""What always holds of a choice of worker, over random arrivals, ends and readings."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.choices import Policy
from lbhost.gateway.scheduling.policy import (
    ANOTHER_KIND,
    ASSUMED_SPEEDS,
    LONG_PROMPT,
    NOISE,
    Need,
    choose,
    penalty,
    predict,
)
from lbhost.gateway.scheduling.worker_view import UNDISTURBED, Speeds, WorkerView

CORE: Speeds = (400.0, 0.003, 0.009)
GPU: Speeds = (20_000.0, 0.002, 0.0002)


class _Running(msgspec.Struct):
    prompt: int
    left: int
    """Prompt tokens that are not computed yet."""


class _Worker(msgspec.Struct):
    slots: int
    speeds: Speeds
    share: float = 1.0
    error_rate: float = 0.0
    running: list[_Running] = []

    def view(self, worker: int, cached: int = 0) -> WorkerView:
        return WorkerView(
            worker=worker,
            epoch=1,
            slots=self.slots,
            in_flight=len(self.running),
            long_in_flight=sum(r.prompt >= LONG_PROMPT for r in self.running),
            prefills=tuple(sorted(r.left for r in self.running if r.left)),
            cached=cached,
            speeds=self.speeds,
            share=self.share,
            penalty=penalty(self.error_rate, 1e9),
        )


def _vacant(view: WorkerView) -> bool:
    return not view.in_flight and view.share >= UNDISTURBED and view.penalty <= 2.0


def _alone_s(need: Need, view: WorkerView) -> float:
    speed, base, seq = view.speeds or ASSUMED_SPEEDS
    return need.prompt_tokens / speed + need.expected_tokens * (base + seq)


def _check(need: Need, views: list[WorkerView], index: int | None) -> None:
    seconds = [predict(need, view, ASSUMED_SPEEDS) for view in views]
    vacant = [i for i, view in enumerate(views) if _vacant(view)]
    free = [i for i, view in enumerate(views) if view.in_flight < view.slots]
    if index is None:
        assert not vacant or (need.long and all(views[i].slots == 1 for i in vacant))
        return
    assert index in free
    if not vacant:
        assert seconds[index] <= min(seconds[i] for i in free) * NOISE * 1.000001
        return
    best = min(vacant, key=seconds.__getitem__)
    if _vacant(views[index]):
        assert seconds[index] <= seconds[best] * NOISE * 1.000001
        return
    assert seconds[index] * NOISE <= seconds[best] * 1.000001
    assert views[index].cached > views[best].cached or _alone_s(
        need, views[index]
    ) * ANOTHER_KIND < _alone_s(need, views[best])


_events = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 4000), st.integers(1, 600)),
        st.tuples(st.just("end"), st.integers(0, 20), st.integers(0, 20)),
        st.tuples(st.just("compute"), st.integers(0, 20), st.integers(1, 2000)),
        st.tuples(st.just("share"), st.integers(0, 20), st.sampled_from([5, 20, 50, 74, 76, 100])),
        st.tuples(st.just("fail"), st.integers(0, 20), st.sampled_from([0, 20, 90])),
    ),
    max_size=60,
)


@given(
    slots=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    gpus=st.sets(st.integers(0, 7), max_size=2),
    events=_events,
    rng=st.randoms(use_true_random=False),
)
def test_nobody_waits_or_joins_while_an_undisturbed_worker_is_idle_and_the_sooner_worker_wins(
    slots: list[int], gpus: set[int], events: list[tuple[str, int, int]], rng: Random
) -> None:
    workers = [
        _Worker(count, GPU if i in gpus else CORE, running=[]) for i, count in enumerate(slots)
    ]
    for kind, which, value in events:
        worker = workers[which % len(workers)]
        if kind == "arrive":
            need = Need(which, value)
            views = [
                w.view(i, rng.choice([0, 0, 0, which // 2, which - 1]))
                for i, w in enumerate(workers)
            ]
            index = choose(Policy.COST, need, views, rng, 0)
            _check(need, views, index)
            if index is not None:
                left = which - views[index].cached
                workers[index].running.append(_Running(which, left))
        elif kind == "end" and worker.running:
            del worker.running[value % len(worker.running)]
        elif kind == "compute" and worker.running:
            one = min(worker.running, key=lambda r: r.left or 10**9)
            one.left = max(0, one.left - value)
        elif kind == "share":
            worker.share = value / 100
        elif kind == "fail":
            worker.error_rate = value / 100


def _two(share: float) -> list[WorkerView]:
    """A long prompt and a short one in worker 1; nothing in worker 0, which has this share."""
    busy = _Worker(4, CORE, running=[_Running(1038, 700), _Running(60, 0)])
    return [_Worker(4, CORE, share).view(0), busy.view(1)]


@pytest.mark.parametrize("share", [1.0, 0.9, 0.8, 0.76])
def test_a_short_request_goes_to_the_worker_that_has_nothing(share: float) -> None:
    """Recorded: 63 tokens were sent beside a prompt of 1,038, as a core looked used by others."""
    for outputs in (1, 16, 200):
        assert choose(Policy.COST, Need(63, outputs), _two(share), Random(1), 0) == 0


def test_the_better_idle_worker_gets_it_though_one_that_computes_would_be_sooner() -> None:
    """1.27 s on four fifths of a core, 1.11 s beside a stream on a whole one."""
    need = Need(400, 1)
    busy = _Worker(4, CORE, running=[_Running(60, 0)]).view(1)
    better, worse = _Worker(4, CORE, 0.8).view(0), _Worker(4, CORE, UNDISTURBED - 0.1).view(2)
    assert predict(need, busy, ASSUMED_SPEEDS) * NOISE < predict(need, better, ASSUMED_SPEEDS)
    assert choose(Policy.COST, need, [better, busy, worse], Random(1), 0) == 0
    slow = _Worker(4, (200.0, 0.003, 0.009), 0.8).view(3)
    for seed in range(20):
        assert choose(Policy.COST, need, [slow, busy, better], Random(seed), 0) == 2


def test_a_worker_beside_a_neighbour_is_left_alone_while_another_has_room() -> None:
    views = [_Worker(4, CORE, 0.2).view(0), _Worker(4, CORE, running=[_Running(60, 0)]).view(1)]
    assert choose(Policy.COST, Need(63, 64), views, Random(1), 0) == 1


def test_a_cached_prefix_is_worth_joining_for_only_when_it_saves_more_than_company_costs() -> None:
    idle = _Worker(4, CORE).view(0)
    busy = _Worker(4, CORE, running=[_Running(60, 0)])
    long = Need(1200, 32)
    assert choose(Policy.COST, long, [idle, busy.view(1, 1100)], Random(1), 0) == 1
    assert choose(Policy.COST, Need(40, 200), [idle, busy.view(1, 32)], Random(1), 0) == 0


def test_a_gpu_is_joined_rather_than_an_idle_core_taken() -> None:
    gpu = _Worker(8, GPU, running=[_Running(100, 100)]).view(1)
    assert choose(Policy.COST, Need(800, 100), [_Worker(4, CORE).view(0), gpu], Random(1), 0) == 1


def test_an_idle_worker_that_fails_requests_is_no_vacant_one() -> None:
    failing = _Worker(4, CORE, error_rate=0.9).view(0)
    busy = _Worker(4, CORE, running=[_Running(60, 0)]).view(1)
    assert choose(Policy.COST, Need(63, 64), [failing, busy], Random(1), 0) == 1


def test_long_prompts_take_any_idle_worker_that_keeps_a_slot_for_others() -> None:
    full = _Worker(4, CORE, running=[_Running(900, 0)] * 4)
    views = [full.view(i) for i in range(63)] + [_Worker(4, CORE).view(63)]
    assert choose(Policy.COST, Need(900, 64), views, Random(1), 0) == 63
