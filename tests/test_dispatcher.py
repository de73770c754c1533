"""Queue, placement, cancellation, retries and deadlines, against fake workers on real links."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fake_worker import FakeWorker, Script
from lbhost import log, order, wire
from lbhost.board import Board, CoreRow, Wanted, WorkerState
from lbhost.config import Settings
from lbhost.errors import (
    DeadlineError,
    EngineError,
    NotReadyError,
    QueryOfDeathError,
    QueueFullError,
    TooLateError,
    TooSlowError,
    UnprocessableError,
    WorkerLostError,
)
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.recorder import Recorder
from lbhost.gateway.scheduling import dispatcher as dispatch
from lbhost.gateway.scheduling import group, moving, prospects, suspicion
from lbhost.gateway.scheduling.deltas import TextDelta, text_of
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.job import Job, JobState, Work
from lbhost.gateway.scheduling.job_queue import LOOKAHEAD
from lbhost.gateway.scheduling.observer import GuardedObserver
from lbhost.gateway.scheduling.readings import Readings
from lbhost.gateway.scheduling.sessions import Sessions
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.gateway.states.plane import Plane
from lbhost.worker.interfaces import MAX_FAILURES
from running_gateway import PATIENCE_S, until

pytestmark = pytest.mark.anyio


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def work(prompt_tokens: int = 10, max_tokens: int = 50, stream: bool = True, **more: Any) -> Work:
    prompt = wire.pack_tokens(list(range(prompt_tokens)))
    return Work(prompt, prompt_tokens, max_tokens, wire.Sampling(), stream=stream, **more)


class Bench:
    """A dispatcher with a board and some fake workers."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, **settings: Any) -> None:
        self.page = Board.create(workers=4, cores=4, gpus=0)
        chosen = Settings(**settings)
        self.sessions = Sessions(Readings(self.page, chosen), chosen.slots)
        self.metrics = Metrics()
        self.traffic = Recorder(self.page, chosen, self.sessions, self.metrics)
        self.dispatcher = Dispatcher(chosen, self.sessions, self.traffic, clock=clock)
        self.workers: list[FakeWorker] = []

    async def add(self, worker: int = 0, *, held: bool = False, **more: Any) -> FakeWorker:
        fake = FakeWorker(self.page, worker, **more)
        if held:
            fake.hold()
        self.workers.append(fake)
        await self.dispatcher.attach(fake.fd, worker, fake.epoch)
        return fake

    def submit(self, *args: Any, ago_s: float = 0.0, **more: Any) -> Job:
        """A request that arrived so long ago."""
        return self.dispatcher.submit(work(*args, **more), time.monotonic() - ago_s)


@asynccontextmanager
async def bench(
    workers: int = 1,
    script: Script | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> AsyncIterator[Bench]:
    made = Bench(clock=clock, **settings)
    try:
        for worker in range(workers):
            await made.add(worker, slots=settings.get("slots", 4), script=script)
        yield made
    finally:
        for fake in made.workers:
            fake.close()
        await until(lambda: not made.sessions.links(), "all links are closed")
        made.dispatcher.close()
        made.page.close()


class TwoSecondsEach:
    """A clock that only answers move."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def __call__(self) -> float:
        return self._now

    def answer(self, _: wire.Submit) -> list[str]:
        self._now += 2.0
        return ["word"]


async def over(job: Job) -> str:
    """The whole text of a job, once it is over."""
    text = ""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await job.wait()
            text += text_of(job.take())
            if job.over:
                return text


async def test_a_job_gets_its_text_and_gives_its_slot_back() -> None:
    async with bench() as b:
        job = b.submit()
        assert await over(job) == "one two three four five"
        assert job.finish is not None
        assert job.finish.reason is wire.FinishReason.STOP
        assert repr(b.dispatcher) == "Dispatcher(0 in flight, 0 queued)"


async def test_a_job_yields_deltas_and_keeps_its_tokens() -> None:
    async with bench() as b:
        (fake,) = b.workers
        job = b.submit()
        taken = []
        async with asyncio.timeout(PATIENCE_S):
            while not job.over:
                await job.wait()
                taken += job.take()
        words = ["one", " two", " three", " four", " five"]
        assert taken == [TextDelta(word, (7,)) for word in words]
        assert list(job.tokens) == [7] * 5
        assert (job.completion_tokens, job.delivered_tokens) == (5, 5)
        assert job.take() == []
        fake.hold()
        untouched = b.submit()
        assert (list(untouched.tokens), untouched.begun) == ([], False)
        b.dispatcher.cancel(untouched)


async def test_jobs_wait_in_the_gateway_until_a_slot_is_free() -> None:
    async with bench(slots=2) as b:
        (fake,) = b.workers
        fake.hold()
        jobs = [b.submit() for _ in range(5)]
        assert repr(b.dispatcher) == "Dispatcher(2 in flight, 3 queued)"
        fake.release()
        for job in jobs:
            assert await over(job) == "one two three four five"
        assert len(fake.submits) == 5
        assert repr(b.dispatcher) == "Dispatcher(0 in flight, 0 queued)"


async def test_no_worker_ever_has_more_requests_than_slots() -> None:
    async with bench(2, slots=2) as b:
        for fake in b.workers:
            fake.hold()
        jobs = [b.submit() for _ in range(40)]
        await until(lambda: [fake.most_busy for fake in b.workers] == [2, 2], "all slots are taken")
        for fake in b.workers:
            fake.release()
        await asyncio.gather(*map(over, jobs))
        assert [fake.most_busy for fake in b.workers] == [2, 2]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async with bench(slots=1, queue_size=2) as b:
        b.workers[0].hold()
        jobs = [b.submit() for _ in range(3)]
        with pytest.raises(QueueFullError) as caught:
            b.submit()
        assert caught.value.status == 429
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        b.workers[0].release()
        for job in jobs:
            await over(job)


async def test_short_requests_pass_long_ones() -> None:
    async with bench(slots=1) as b:
        (fake,) = b.workers
        fake.hold()
        running = b.submit()
        long = b.submit(1500, 500)
        short = b.submit(10, 1)
        fake.release()
        for job in (running, long, short):
            await over(job)
        assert [len(s.prompt) // 4 for s in fake.submits] == [10, 10, 1500]


async def test_a_long_request_is_passed_by_none_that_arrives_much_later() -> None:
    async with bench(slots=1) as b:
        (fake,) = b.workers
        fake.hold()
        # It takes a minute, and would for ever be later than short ones that go on arriving.
        running = b.submit(10, 1, ago_s=40.0)
        short = b.submit(20, 1)
        long = b.submit(1500, 5000, ago_s=dispatch.MAX_OVERTAKEN_S + 1.0, ignore_eos=True)
        soon = b.submit(30, 1, ago_s=10.0)
        assert (short.state, long.state) == (JobState.QUEUED, JobState.QUEUED)
        fake.release()
        await until(lambda: len(fake.submits) >= 3, "the long one has its turn")
        b.dispatcher.cancel(long)
        for job in (running, soon, short):
            await over(job)
        assert [len(s.prompt) // 4 for s in fake.submits] == [10, 30, 1500, 20]


async def test_a_short_request_passes_any_number_of_long_ones_at_once() -> None:
    async with bench(slots=3, queue_size=1000) as b:
        (fake,) = b.workers
        fake.hold()
        long = [b.submit(600, ago_s=100.0) for _ in range(502)]
        assert b.dispatcher.queue_depth == 500
        short = b.submit(10)
        assert short.state is JobState.RUNNING
        assert b.dispatcher.queue_depth == 500
        for job in long:
            b.dispatcher.cancel(job)
        fake.release()
        await over(short)


async def test_a_long_queue_that_cannot_move_costs_no_more_than_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench(2, slots=1, queue_size=1000) as b:
        for fake in b.workers:
            fake.hold()
        first = b.submit(10)
        full = b.workers[first.worker or 0]
        crawling = b.workers[1 - full.worker]
        asked = 0

        def refuse(*_: object) -> None:
            nonlocal asked
            asked += 1

        monkeypatch.setattr(b.dispatcher._router, "choose", refuse)
        jobs = [b.submit(length) for length in (10, 600) * 200]
        asked = 0
        jobs.append(b.submit(10))
        assert asked == 2 * LOOKAHEAD
        assert crawling.submits == []
        for job in [*jobs, first]:
            b.dispatcher.cancel(job)


async def test_the_queue_tells_how_long_its_oldest_waits() -> None:
    now = time.monotonic()
    async with bench(slots=1, clock=lambda: now) as b:
        b.workers[0].hold()
        jobs = [b.submit(ago_s=50.0)]
        assert b.dispatcher.oldest_wait_s is None
        jobs.append(b.submit())
        now += 3.0
        jobs.append(b.submit())
        now += 4.0
        assert b.dispatcher.oldest_wait_s == pytest.approx(7.0)
        for job in jobs:
            b.dispatcher.cancel(job)
        assert b.dispatcher.oldest_wait_s is None


async def test_retry_after_tells_how_fast_the_queue_moved() -> None:
    slow = TwoSecondsEach()
    async with bench(1, Script(answer=slow.answer), slots=1, queue_size=10, clock=slow) as b:
        (fake,) = b.workers
        for job in [b.submit() for _ in range(10)]:
            await over(job)
        fake.hold()
        waiting = [b.submit() for _ in range(11)]
        with pytest.raises(QueueFullError) as caught:
            b.submit()
        told = caught.value.retry_after_s
        assert told is not None
        assert 10.0 <= told <= 40.0  # ten places, two seconds each
        for job in waiting:
            b.dispatcher.cancel(job)


async def test_a_core_that_clients_use_in_passing_counts_as_free() -> None:
    async with bench(0) as b:
        b.page.cores.write(0, CoreRow(idle=0.1, others=0.9, lasting=0.2))
        b.page.cores.write(1, CoreRow(idle=1.0, others=0.0, lasting=0.0))
        for worker in (0, 1):
            fake = await b.add(worker)
            fake.set_state(WorkerState.READY, cpus=str(worker))
            fake.hold()
        readings = b.sessions.readings
        await until(
            lambda: [reading.share for _, reading in readings.present()] == [0.8, 1.0],
            "the cores are seen",
        )
        jobs = [b.submit(400, 8), b.submit(30, 1)]
        assert [job.worker for job in jobs] == [1, 0]
        for fake in b.workers:
            fake.release()
        for job in jobs:
            await over(job)


async def test_a_long_request_that_cannot_be_placed_does_not_block_short_ones() -> None:
    async with bench(slots=2) as b:
        (fake,) = b.workers
        fake.hold()
        first, second = b.submit(1000), b.submit(1000)
        short = b.submit(10)
        # One slot is kept from long prompts, and the short one has it.
        assert (first.state, second.state) == (JobState.RUNNING, JobState.QUEUED)
        assert short.state is JobState.RUNNING
        fake.release()
        for job in (first, second, short):
            await over(job)


# --- classes ----------------------------------------------------------------------------


async def test_priority_overtakes_and_flex_gets_what_nobody_else_wants() -> None:
    async with bench(slots=2) as b:
        (fake,) = b.workers
        fake.hold()
        running = [b.submit(10, 1), b.submit(11, 1)]
        flex = b.submit(12, 1, rank=order.FLEX, ago_s=50.0)
        usual = b.submit(13, 1)
        priority = b.submit(14, 1, rank=order.PRIORITY)
        old = b.submit(15, 1, ago_s=dispatch.PRIORITY_AHEAD_S + 10.0)
        fake.release()
        for job in (*running, flex, usual, priority, old):
            await over(job)
        sent = [(len(s.prompt) // 4, s.rank) for s in fake.submits]
        assert sent == [(10, 1), (11, 1), (15, 1), (14, 0), (13, 1), (12, 2)]


async def test_flex_leaves_slots_to_those_who_come_later() -> None:
    async with bench(2, slots=4) as b:
        for fake in b.workers:
            fake.hold()
        flex = [b.submit(10, 1, rank=order.FLEX) for _ in range(8)]
        assert sum(job.state is JobState.RUNNING for job in flex) == 6
        usual = [b.submit(20, 1) for _ in range(2)]
        assert {job.state for job in usual} == {JobState.RUNNING}
        for fake in b.workers:
            fake.release()
        for job in (*flex, *usual):
            await over(job)


async def test_a_box_with_one_slot_serves_flex() -> None:
    async with bench(slots=1) as b:
        await over(b.submit(10, 1, rank=order.FLEX))
        assert len(b.workers[0].submits) == 1


async def test_flex_fills_half_of_the_queue_and_waits_beyond_the_queues_time_limit() -> None:
    async with bench(slots=1, queue_size=4, queue_timeout_s=0.05) as b:
        (fake,) = b.workers
        fake.hold()
        running = b.submit(10, 1)
        flex = [b.submit(10, 1, rank=order.FLEX) for _ in range(2)]
        with pytest.raises(QueueFullError):
            b.submit(10, 1, rank=order.FLEX)
        usual = b.submit(10, 1)
        await over(usual)
        assert isinstance(usual.error, DeadlineError)
        fake.release()
        for job in (running, *flex):
            await over(job)
            assert job.error is None


# --- clients ------------------------------------------------------------------------------


async def test_a_clients_single_request_passes_what_another_has_waiting() -> None:
    async with bench(slots=2) as b:
        (fake,) = b.workers
        fake.hold()
        flood = [b.submit(10 + i, 1, client="flood") for i in range(60)]
        single = b.submit(100, 1, client="single")
        assert single.state is JobState.QUEUED
        fake.release()
        for job in (single, *flood):
            await over(job)
        assert len(fake.submits[2].prompt) // 4 == 100


async def test_a_named_client_leaves_places_in_the_queue_to_others() -> None:
    async with bench(slots=1, queue_size=8) as b:
        (fake,) = b.workers
        fake.hold()
        jobs = [b.submit(10, 1, client="flood") for _ in range(7)]
        with pytest.raises(QueueFullError, match="6 requests of this API key"):
            b.submit(10, 1, client="flood")
        jobs += [b.submit(10, 1, client="other"), b.submit(10, 1)]
        with pytest.raises(QueueFullError, match="8 requests are waiting"):
            b.submit(10, 1, client="third")
        fake.release()
        for job in jobs:
            await over(job)
            assert job.error is None


async def test_two_clients_get_the_same_of_a_full_box() -> None:
    async with bench(slots=1, queue_size=200) as b:
        (fake,) = b.workers
        fake.hold()

        def submit(client: str, number: int, tokens: int, output: int) -> Job:
            prompt = wire.pack_tokens([number] * tokens)  # no two begin alike
            asked = msgspec.structs.replace(
                work(tokens, output, ignore_eos=True, client=client), prompt=prompt
            )
            return b.dispatcher.submit(asked, time.monotonic())

        jobs = [submit("long", i, 300, 9) for i in range(20)]
        jobs += [submit("short", 100 + i, 30, 1) for i in range(60)]
        fake.release()
        for job in jobs:
            await over(job)
        sizes = [len(submit.prompt) // 4 for submit in fake.submits]
        last_short = len(sizes) - sizes[::-1].index(30)
        # By the speeds that are assumed a long one costs as much as ten short ones.
        assert 5 <= sizes[:last_short].count(300) <= 9


# --- what cannot be done in time --------------------------------------------------------


async def test_what_cannot_be_done_in_time_is_refused_once_predictions_have_proved_good() -> None:
    script = Script(speeds=(100.0, 0.001, 0.001))
    async with bench(1, script, slots=1, request_timeout_s=100.0, queue_timeout_s=20.0) as b:
        (fake,) = b.workers
        await until(lambda: b.sessions.speeds() == script.speeds, "its speeds are seen")
        endless = {"max_tokens": 1_000_000, "ignore_eos": True}
        fake.hold()
        first = b.submit(10, **endless)
        assert first.state is JobState.RUNNING
        b.dispatcher.cancel(first)
        fake.release()
        for _ in range(prospects.LEAST_SEEN):
            b.sessions.accuracy(0).completion.add(1.0, 1.0)
        with pytest.raises(TooSlowError):
            b.submit(10, **endless)
        assert b.dispatcher.active == 0
        assert await over(b.submit(10)) == "one two three four five"


async def test_the_queue_is_bounded_by_tokens_too() -> None:
    async with bench(slots=1, queue_tokens=1000) as b:
        (fake,) = b.workers
        fake.hold()
        jobs = [b.submit(10, 1)]
        # One that is too long for the limit waits, if nothing else does.
        jobs.append(b.submit(1500, 10))
        with pytest.raises(QueueFullError, match="1510 tokens are waiting") as refused:
            b.submit(10, 1)
        assert refused.value.retry_after_s is not None
        # A named client with nothing waiting comes in; then it has its part.
        jobs.append(b.submit(10, 1, client="other"))
        with pytest.raises(QueueFullError, match="tokens"):
            b.submit(10, 1, client="other")
        fake.release()
        for job in jobs:
            await over(job)
            assert job.error is None


async def test_flex_leaves_tokens_of_the_queue_to_others() -> None:
    async with bench(slots=1, queue_tokens=1000) as b:
        (fake,) = b.workers
        fake.hold()
        jobs = [b.submit(10, 1), b.submit(300, 1, rank=order.FLEX)]
        with pytest.raises(QueueFullError, match="301 tokens"):
            b.submit(300, 1, rank=order.FLEX)
        jobs.append(b.submit(600, 1))
        fake.release()
        for job in jobs:
            await over(job)
            assert job.error is None


async def test_many_answers_to_one_prompt_are_its_work_once() -> None:
    script = Script(speeds=(100.0, 0.001, 0.009))
    async with bench(1, script, slots=1, queue_timeout_s=10.0) as b:
        (fake,) = b.workers
        await until(lambda: b.sessions.measured_speeds() == script.speeds, "its speeds are seen")
        fake.hold()
        running = b.submit(10, 1)
        asked = work(900, 1)
        many = group.submit(b.dispatcher, [asked] * 8, time.monotonic())
        with pytest.raises(QueueFullError, match="9 seconds of work"):
            b.submit(900, 1)
        fake.release()
        await over(running)
        await until(lambda: many.over, "all are done")
        assert many.error is None


async def test_more_work_than_can_begin_in_time_is_refused_as_soon_as_speeds_are_known() -> None:
    script = Script(speeds=(100.0, 0.001, 0.009))
    async with bench(1, script, slots=1, queue_timeout_s=10.0) as b:
        (fake,) = b.workers
        await until(lambda: b.sessions.measured_speeds() == script.speeds, "its speeds are seen")
        fake.hold()
        running = b.submit(10, 1)
        jobs = [b.submit(300, 1) for _ in range(4)]
        with pytest.raises(QueueFullError, match="12 seconds of work are waiting"):
            b.submit(300, 1)
        jobs.append(b.submit(200, 1))
        jobs.append(b.submit(300, 1, rank=order.PRIORITY))  # it does not wait for those
        jobs.append(b.submit(300, 1, rank=order.FLEX))  # and this one may wait for long
        fake.release()
        for job in (running, *jobs):
            await over(job)
            assert job.error is None


async def test_a_queue_that_will_not_be_done_in_time_is_not_joined() -> None:
    slow = TwoSecondsEach()
    async with bench(1, Script(answer=slow.answer), slots=1, queue_timeout_s=20.0, clock=slow) as b:
        (fake,) = b.workers
        for job in [b.submit() for _ in range(10)]:
            await over(job)
        for _ in range(prospects.LEAST_SEEN):
            b.sessions.accuracy(0).completion.add(1.0, 1.0)
        fake.hold()
        # Two seconds each, and half as many again as the margin: 15 may wait, or somewhat more.
        waiting = [b.submit() for _ in range(11)]
        refused: list[TooLateError] = []
        while not refused:
            assert len(waiting) < 40
            try:
                waiting.append(b.submit())
            except TooLateError as error:
                refused.append(error)
        assert refused[0].retry_after_s is not None
        assert 1 <= refused[0].retry_after_s <= 40
        # One that goes before them is in time.
        waiting.append(b.submit(rank=order.PRIORITY))
        for job in waiting:
            b.dispatcher.cancel(job)


# --- cancellation -----------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_without_the_worker_hearing_of_it() -> None:
    async with bench(slots=1) as b:
        (fake,) = b.workers
        fake.hold()
        first, second = b.submit(), b.submit()
        b.dispatcher.cancel(second)
        assert second.cancelled
        assert b.dispatcher.queue_depth == 0
        fake.release()
        await over(first)
        assert len(fake.submits) == 1


async def test_a_running_job_is_cancelled_at_the_worker_and_its_slot_comes_back_once() -> None:
    async with bench(slots=1) as b:
        (fake,) = b.workers
        fake.hold()
        first = b.submit()
        await until(lambda: fake.submits, "the worker has it")
        b.dispatcher.cancel(first)
        b.dispatcher.cancel(first)
        assert first.over
        second = b.submit()
        # The slot is taken until the worker has confirmed.
        assert second.state is JobState.QUEUED
        fake.release()
        assert await over(second) == "one two three four five"
        assert fake.cancels == [fake.submits[0].request]
        assert repr(b.dispatcher) == "Dispatcher(0 in flight, 0 queued)"


async def test_wire_ids_are_never_used_twice() -> None:
    async with bench() as b:
        for _ in range(5):
            await over(b.submit())
        ids = [submit.request for submit in b.workers[0].submits]
        assert len(set(ids)) == len(ids)


# --- failure ----------------------------------------------------------------------------


async def test_a_lost_workers_requests_start_again_elsewhere() -> None:
    async with bench() as b:
        (first,) = b.workers
        first.hold()
        jobs = [b.submit() for _ in range(3)]
        await until(lambda: len(first.submits) == 3, "the worker has them")
        second = await b.add(1)
        first.die()
        for job in jobs:
            assert await over(job) == "one two three four five"
            assert (job.worker, job.attempts) == (1, 2)
        assert len(second.submits) == 3


def numbers(submit: wire.Submit) -> list[str]:
    """An answer of which each piece is another one."""
    return [f"{i} " for i in range(submit.max_tokens)]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_goes_on_elsewhere_where_it_was(stream: bool) -> None:
    async with bench(script=Script(answer=numbers, step_s=0.001)) as b:
        job = b.submit(max_tokens=400, stream=stream)
        text = ""
        for epoch in range(1, 5):
            more = job.completion_tokens + 20
            await until(lambda more=more: job.completion_tokens >= more, "it goes on")  # type: ignore[misc]
            text += text_of(job.take())
            dies = b.workers[-1]
            await b.add(epoch=epoch + 1, script=dies.script)
            dies.die()
            b.dispatcher.worker_ended(0, epoch, by_its_work=False)
        text += await over(job)
        assert text == "".join(numbers(b.workers[0].submits[0]))
        assert (job.completion_tokens, job.attempts) == (400, 5)
        assert job.finish is not None
        assert (job.finish.prompt_tokens, job.finish.completion_tokens) == (10, 400)
        done = [len(fake.submits[0].done) // 4 for fake in b.workers]
        assert done == sorted(done)
        assert 20 <= done[1] < done[4] < 400


async def test_a_moved_request_goes_on_elsewhere_and_costs_no_attempt() -> None:
    script = Script(answer=numbers, step_s=0.001, cached_tokens=3)
    async with bench(script=script) as b:
        (first,) = b.workers
        job = b.submit(max_tokens=400)
        await until(lambda: job.completion_tokens >= 20, "it has begun")
        second = await b.add(1, script=Script(answer=numbers, cached_tokens=9))
        first.set_state(WorkerState.DRAINING)
        b.dispatcher.worker_leaves()
        assert await over(job) == "".join(numbers(first.submits[0]))
        assert (job.worker, job.attempts, first.busy) == (1, 1, 0)
        assert 20 <= len(second.submits[0].done) // 4 < 400
        assert job.finish is not None
        assert job.finish.cached_tokens == 3
        value = b.metrics.registry.get_sample_value
        assert value("lbhost_prompt_tokens_total") == 10.0
        assert value("lbhost_moved_total", {"reason": "drain"}) == 1.0
        assert value("lbhost_queue_wait_seconds_count") == 1.0


async def test_what_a_worker_had_cached_that_never_began_does_not_count() -> None:
    async with bench(script=Script(cached_tokens=3)) as b:
        (first,) = b.workers
        first.hold()
        job = b.submit()
        await until(lambda: first.busy == 1, "it waits there")
        await b.add(1, script=Script(cached_tokens=9))
        first.set_state(WorkerState.DRAINING)
        b.dispatcher.worker_leaves()
        await over(job)
        assert job.finish is not None
        assert job.finish.cached_tokens == 9


async def test_a_draining_workers_requests_go_as_far_as_others_have_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench(2, Script(answer=numbers, step_s=0.001), slots=2) as b:
        for fake in b.workers:
            fake.hold()
        jobs = [b.submit(max_tokens=50) for _ in range(3)]
        queued = [b.submit(max_tokens=51) for _ in range(3)]
        leaves, stays = sorted(b.workers, key=lambda fake: -fake.busy)
        await until(lambda: leaves.busy == stays.busy == 2, "all slots are taken")
        leaves.set_state(WorkerState.DRAINING)
        leaves.script = msgspec.structs.replace(leaves.script, reject=True)
        freed: list[float] = []
        monkeypatch.setattr(b.dispatcher._pace, "freed", freed.append)
        b.dispatcher.worker_leaves()
        stays.release()  # the other one computes nothing any more
        for job in jobs + queued:
            assert await over(job) == "".join(f"{i} " for i in range(job.work.max_tokens))
        assert stays.most_busy == 2
        assert len(leaves.moves) == 2
        assert len(freed) == len(jobs + queued)  # a place that is left for another is none


async def test_a_lone_workers_requests_stay_when_it_drains() -> None:
    async with bench(script=Script(answer=numbers, step_s=0.001)) as b:
        (fake,) = b.workers
        job = b.submit(max_tokens=300)
        await until(lambda: job.completion_tokens >= 20, "it has begun")
        fake.set_state(WorkerState.DRAINING)
        fake.drain()
        b.dispatcher.worker_leaves()
        assert await over(job) == "".join(numbers(fake.submits[0]))
        assert fake.moves == []


async def test_a_priority_request_gets_the_slot_of_the_lowest_that_came_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving, "SETTLED_S", 0.0)
    script = Script(answer=numbers, step_s=0.002)
    async with bench(script=script, slots=3) as b:
        jobs = [b.submit(max_tokens=800, ago_s=age) for age in (20.0, 10.0, 15.0)]
        await until(lambda: all(job.begun for job in jobs), "all run")
        first = b.submit(12, 700, rank=order.PRIORITY)
        await until(lambda: first.begun, "it has a slot")
        assert [job.state for job in jobs] == [
            JobState.RUNNING,
            JobState.QUEUED,
            JobState.RUNNING,
        ]
        second = b.submit(12, 5, rank=order.PRIORITY)
        await over(second)
        for job in [first, *jobs]:
            assert await over(job) == "".join(f"{i} " for i in range(job.work.max_tokens))
        value = b.metrics.registry.get_sample_value
        assert value("lbhost_moved_total", {"reason": "priority"}) == 2.0


async def test_a_stream_goes_to_an_idle_worker_where_it_is_done_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving, "SETTLED_S", 0.0)
    monkeypatch.setattr(moving, "EVERY_S", 0.0)
    # Four at once take four times as long as one.
    script = Script(answer=numbers, step_s=0.005, speeds=(10_000.0, 0.001, 0.05))
    async with bench(1, script) as b:
        jobs = [b.submit(max_tokens=600, ignore_eos=True) for _ in range(4)]
        await until(lambda: all(job.begun for job in jobs), "all run")
        idle = await b.add(1, script=script)
        for job in jobs:
            assert await over(job) == "".join(f"{i} " for i in range(600))
        moved = b.metrics.registry.get_sample_value("lbhost_moved_total", {"reason": "speed"})
        # Three and one are near enough, and nobody goes back and forth.
        assert moved == len(idle.submits) == 1.0


# --- queries of death ---------------------------------------------------------------------


async def test_a_request_that_kills_two_workers_is_a_query_of_death() -> None:
    async with bench() as b:
        b.workers[0].hold()
        job = b.submit(33, stream=False)
        for epoch in (1, 2):
            dies = b.workers[-1]
            await until(partial(bool, dies.submits), "the worker has it")
            await b.add(epoch=epoch + 1, held=True)
            dies.die()
            b.dispatcher.worker_ended(0, epoch, by_its_work=True)
        await over(job)
        assert isinstance(job.error, QueryOfDeathError)
        assert b.workers[-1].submits == []
        with pytest.raises(QueryOfDeathError):
            b.submit(33)
        b.workers[-1].release()
        assert await over(b.submit(34)) == "one two three four five"


async def test_who_was_only_beside_a_query_of_death_is_answered() -> None:
    async with bench(slots=3) as b:
        b.workers[0].hold()
        jobs = [b.submit(tokens) for tokens in (10, 11, 77)]
        for epoch in (1, 2):
            dies = b.workers[-1]
            await until(lambda dies=dies: len(dies.submits) == 3, "it has all three")  # type: ignore[misc]
            last = await b.add(epoch=epoch + 1, slots=3)
            last.hold()
            dies.die()
            b.dispatcher.worker_ended(0, epoch, by_its_work=True)

        def answer(submit: wire.Submit) -> list[str]:
            if len(submit.prompt) // 4 == 77:
                last._dying = True
                last.hold()
            return ["well"]

        last.script.answer = answer
        last.release()
        await until(last.gone.is_set, "it has died of the third")
        await until(lambda: not b.sessions.links(), "that is seen")
        assert last.most_busy == 1
        b.dispatcher.worker_ended(0, 3, by_its_work=True)
        assert [await over(job) for job in jobs] == ["well", "well", ""]
        assert [type(job.error) for job in jobs] == [type(None), type(None), QueryOfDeathError]


async def test_those_who_wait_with_the_prompt_of_a_query_of_death_are_not_tried() -> None:
    async with bench(slots=1) as b:
        b.workers[0].hold()
        jobs = [b.submit(33), b.submit(33), b.submit(34)]
        for epoch in (1, 2):
            dies = b.workers[-1]
            await until(partial(bool, dies.submits), "the worker has it")
            dies.die()
            b.dispatcher.worker_ended(0, epoch, by_its_work=True)
            await until(lambda: not b.sessions.links(), "that is seen")
            await b.add(epoch=epoch + 1, slots=1, held=True)
        b.workers[-1].release()
        assert [await over(job) for job in jobs] == ["", "", "one two three four five"]
        assert [type(job.error) for job in jobs[:2]] == [QueryOfDeathError] * 2
        assert [len(submit.prompt) // 4 for submit in b.workers[-1].submits] == [34]


async def test_who_was_in_a_failed_decode_goes_on_elsewhere() -> None:
    failing = Script(answer=numbers, step_s=0.001)
    async with bench(script=failing, slots=2) as b:
        (first,) = b.workers
        jobs = [b.submit(max_tokens=400) for _ in range(2)]
        await until(lambda: all(job.completion_tokens >= 20 for job in jobs), "both have begun")
        second = await b.add(1, slots=2, script=Script(answer=numbers))
        failing.breaks = lambda submit: True
        for job in jobs:
            assert await over(job) == "".join(numbers(first.submits[0]))
            assert job.error is None
        assert len(second.submits) == 2
        session = b.sessions.current(0)
        assert session is not None
        assert session.error_rate.at(time.monotonic()) > 0


async def test_a_request_whose_decodes_fail_is_given_up_and_those_beside_it_are_answered() -> None:
    def deadly(submit: wire.Submit) -> bool:
        return len(submit.prompt) // 4 == 77

    async with bench(2, script=Script(breaks=deadly), slots=3) as b:
        for fake in b.workers:
            fake.hold()
        jobs = [b.submit(tokens) for tokens in (10, 77, 11, 12, 13, 14)]
        await until(lambda: [fake.busy for fake in b.workers] == [3, 3], "all slots are taken")
        for fake in b.workers:
            fake.release()
        answers = [await over(job) for job in jobs]
        assert answers == [
            "" if job.work.prompt_tokens == 77 else "one two three four five" for job in jobs
        ]
        assert [type(job.error) for job in jobs].count(QueryOfDeathError) == 1
        tried = [len(s.prompt) // 4 for fake in b.workers for s in fake.submits].count(77)
        assert tried <= suspicion.DEATHS + 1


@pytest.mark.parametrize("requests", [1, 2])
async def test_a_lone_worker_that_fails_and_ends_condemns_nobody(requests: int) -> None:
    async with bench(script=Script(step_s=0.001)) as b:
        (fake,) = b.workers
        fake.hold()
        jobs = [b.submit() for _ in range(requests)]
        await until(lambda: fake.busy == requests, "it has them")
        left = MAX_FAILURES

        def breaks(_: wire.Submit) -> bool:
            nonlocal left
            left -= 1
            fake._dying = left == 0
            return True

        fake.script.breaks = breaks
        fake.release()
        await until(lambda: not b.sessions.links(), "it has given up")
        b.dispatcher.worker_ended(0, 1, by_its_work=True)
        await b.add(epoch=2)
        assert [await over(job) for job in jobs] == ["one two three four five"] * requests


async def test_usage_and_timings_are_those_of_the_whole_answer() -> None:
    script = Script(answer=numbers, step_s=0.002, cached_tokens=3)
    async with bench(script=script) as b:
        job = b.submit(max_tokens=100)
        await until(lambda: job.completion_tokens >= 50, "it has begun")
        began = job.first_token
        assert began is not None
        await b.add(1, script=Script(answer=numbers, cached_tokens=10))
        b.workers[0].die()
        await over(job)
        assert job.finish is not None
        assert job.finish.cached_tokens == 3
        # The fake says nothing of its times; what another worker spent on 50 tokens counts.
        assert 50 * script.step_s <= job.finish.decode_s <= time.monotonic() - began
        assert 0 < job.finish.prefill_s <= began - job.arrived
        value = b.metrics.registry.get_sample_value
        assert value("lbhost_cached_prompt_tokens_total") == 3.0


async def test_a_link_that_ends_while_it_is_taken_over_leaves_nothing_behind() -> None:
    async with bench(0) as b:
        b.dispatcher.states = Plane(1 << 20, b.sessions)

        async def ended(fd: int, *args: Any) -> WorkerLink:
            link = await WorkerLink.open(fd, *args)
            theirs.close()
            await until(lambda: not link.alive, "its end is seen")
            return link

        b.dispatcher._open_link = ended
        before = descriptors()
        ours, theirs = socket.socketpair()
        states, states_fd = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await b.dispatcher.attach(ours.detach(), 0, 1, states_fd.detach())
        states.close()
        assert b.sessions.links() == []
        assert b.dispatcher.states._links == {}
        assert descriptors() == before


async def test_killed_workers_say_nothing_about_requests() -> None:
    async with bench() as b:
        b.workers[0].hold()
        job = b.submit()
        for epoch in range(1, 8):
            dies = b.workers[-1]
            await until(partial(bool, dies.submits), "the worker has it")
            new = await b.add(epoch=epoch + 1)
            new.hold()
            dies.die()
            b.dispatcher.worker_ended(0, epoch, by_its_work=False)
        b.workers[-1].release()
        assert await over(job) == "one two three four five"


async def test_a_retried_request_observes_its_time_to_first_token_once() -> None:
    async with bench(script=Script(answer=numbers, step_s=0.001)) as b:
        job = b.submit(max_tokens=2000, stream=False)
        await until(lambda: job.completion_tokens >= 3, "it has begun")
        first = job.first_token
        await b.add(1, script=Script(answer=numbers))
        b.workers[0].die()
        await over(job)
        assert job.attempts == 2
        assert job.first_token == first
        count = b.metrics.registry.get_sample_value("lbhost_time_to_first_token_seconds_count")
        assert count == 1.0


class Failing:
    """An observer of which every word fails."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise OSError(f"{name}: no space left on device")

        return fail


async def test_an_observer_and_a_log_that_fail_leave_no_job_and_no_slot_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with bench() as b:
        b.dispatcher._observer = GuardedObserver(Failing())
        monkeypatch.setattr(log, "get", lambda: Failing())
        (first,) = b.workers
        first.hold()
        jobs = [b.submit() for _ in range(3)]
        await until(lambda: len(first.submits) == 3, "the worker has them")
        await b.add(1)
        first.die()
        for job in jobs:
            assert await over(job) == "one two three four five"
        assert repr(b.dispatcher) == "Dispatcher(0 in flight, 0 queued)"
        assert b.dispatcher.active == 0
        await until(lambda: failed, "the loop heard of what failed")
        monkeypatch.undo()


async def test_a_worker_that_does_not_read_its_link_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lbhost.gateway.scheduling.worker_link.MAX_UNSENT", 1 << 20)
    async with bench(slots=8) as b:
        (deaf,) = b.workers
        deaf.hang()
        # Two of 800 KB: what the socket does not take waits in the gateway.
        jobs = [b.submit(200_000) for _ in range(4)]
        assert all(job.worker == 0 for job in jobs)
        await until(lambda: not b.sessions.links(), "its link is dropped")
        monkeypatch.undo()
        reader = await b.add(1, slots=8)
        for job in jobs:
            assert await over(job) == "one two three four five"
        assert len(reader.submits) == 4


async def test_a_request_whose_workers_are_killed_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "MAX_ATTEMPTS", 3)
    async with bench() as b:
        job: Job | None = None
        for epoch in range(1, dispatch.MAX_ATTEMPTS + 1):
            fake = b.workers[-1] if epoch == 1 else await b.add(0, epoch=epoch)
            fake.hold()
            job = job or b.submit()
            await until(partial(bool, fake.submits), "the worker has it")
            fake.die()
        assert job is not None
        await over(job)
        assert isinstance(job.error, WorkerLostError)
        assert job.attempts == dispatch.MAX_ATTEMPTS


async def test_a_refused_request_goes_elsewhere_and_costs_no_attempt() -> None:
    async with bench() as b:
        (draining,) = b.workers
        draining.drain()
        jobs = [b.submit() for _ in range(4)]
        await b.add(1)
        for job in jobs:
            assert await over(job) == "one two three four five"
            assert (job.worker, job.attempts) == (1, 1)
        assert draining.submits == []


async def test_a_drained_worker_that_resumes_gets_work_again() -> None:
    async with bench() as b:
        (fake,) = b.workers
        fake.set_state(WorkerState.DRAINING)
        fake.drain()
        job = b.submit()
        fake.script.reject = False
        fake.set_state(WorkerState.READY)
        assert await over(job) == "one two three four five"


async def test_engine_errors_reach_the_client_and_spoil_the_workers_record() -> None:
    async with bench(script=Script(fail="no KV room")) as b:
        job = b.submit()
        await over(job)
        assert isinstance(job.error, EngineError)
        assert "no KV room" in job.error.message
        session = b.sessions.current(0)
        assert session is not None
        assert session.error_rate.at(time.monotonic()) > 0
        assert b.sessions.tally(0).errors == 1


async def test_a_grammar_that_cannot_be_followed_is_its_requests_fault_alone() -> None:
    script = Script(fail="too complex", fail_as=wire.FinishReason.GRAMMAR)
    async with bench(script=script) as b:
        job = b.submit()
        await over(job)
        assert isinstance(job.error, UnprocessableError)
        assert "too complex" in job.error.message
        session = b.sessions.current(0)
        assert session is not None
        assert session.error_rate.at(time.monotonic()) == 0
        assert b.sessions.tally(0).errors == 0


async def test_a_worker_that_breaks_the_protocol_is_dropped() -> None:
    async with bench() as b:
        (fake,) = b.workers
        fake._socket.sendall(b"\xff\xff\xff\xff")
        await until(lambda: not b.sessions.links(), "its link is dropped")


async def test_what_a_worker_sent_before_it_died_still_counts() -> None:
    async with bench() as b:
        (old,) = b.workers
        old.hold()
        job = b.submit()
        await until(lambda: old.submits, "the worker has it")
        new = await b.add(0, epoch=2)
        old.release()
        assert await over(job) == "one two three four five"
        assert new.submits == []
        assert await over(b.submit()) == "one two three four five"
        assert len(new.submits) == 1


async def test_a_silent_worker_gets_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbhost.gateway.scheduling.sessions.STALE_NS", 50_000_000)
    async with bench(2) as b:
        for fake in b.workers:
            fake.hold()
        first, second = b.submit(), b.submit()
        silent = b.workers[first.worker or 0]
        silent.hang()
        lively = b.workers[second.worker or 0]
        assert silent is not lively
        lively.release()
        await over(second)

        def usable() -> list[int]:
            return [session.worker for session, _ in b.sessions.usable(time.monotonic_ns())]

        await until(lambda: usable() == [lively.worker], "the silent one is left alone")
        for _ in range(5):
            job = b.submit()
            assert job.worker == lively.worker
            await over(job)


# --- readiness and time -----------------------------------------------------------------


async def test_without_any_worker_requests_are_refused_at_once() -> None:
    async with bench(0) as b:
        assert not b.dispatcher.ready()
        with pytest.raises(NotReadyError) as caught:
            b.submit()
        assert caught.value.retry_after_s == 1


async def test_requests_survive_the_moment_in_which_the_only_worker_is_replaced() -> None:
    async with bench() as b:
        assert await over(b.submit())
        b.workers[0].set_state(WorkerState.BACKOFF)
        b.workers[0].die()
        job = b.submit()
        await b.add(0, epoch=2)
        assert await over(job) == "one two three four five"


async def test_a_worker_whose_link_is_still_on_its_way_is_waited_for() -> None:
    async with bench(0) as b:
        fake = FakeWorker(b.page, 0)
        b.workers.append(fake)
        job = b.submit()
        await b.dispatcher.attach(fake.fd, 0, 1)
        assert await over(job) == "one two three four five"


async def test_queued_requests_are_told_when_no_worker_will_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "NOT_READY_GRACE_S", 0.05)
    async with bench(slots=1) as b:
        (fake,) = b.workers
        fake.hold()
        running, queued = b.submit(), b.submit()
        fake.set_state(WorkerState.FAILED, Wanted.DOWN)
        await over(queued)
        assert isinstance(queued.error, NotReadyError)
        fake.release()
        assert await over(running)


@pytest.mark.parametrize("setting", ["queue_timeout_s", "request_timeout_s"])
async def test_a_queued_request_ends_at_its_deadline(setting: str) -> None:
    async with bench(slots=1) as b:
        b.workers[0].hold()
        running = b.submit()
        b.dispatcher._settings = msgspec.structs.replace(Settings(slots=1), **{setting: 0.05})
        queued = b.submit()
        await over(queued)
        assert isinstance(queued.error, DeadlineError)
        assert not running.over


async def test_a_running_request_ends_at_its_deadline_and_is_cancelled() -> None:
    async with bench(request_timeout_s=0.05) as b:
        (fake,) = b.workers
        fake.hold()
        job = b.submit()
        await over(job)
        assert isinstance(job.error, DeadlineError)
        await until(lambda: fake.cancels, "the worker was told")
        assert b.sessions.tally(0).timeouts == 1


async def test_a_requests_time_counts_from_its_arrival() -> None:
    async with bench(request_timeout_s=1000.0) as b:
        with pytest.raises(DeadlineError):
            b.submit(ago_s=1000.0)
        assert (b.dispatcher.active, b.workers[0].submits) == (0, [])
        b.dispatcher._settings = Settings(request_timeout_s=1000.2)
        b.workers[0].hold()
        late = b.submit(ago_s=1000.0)
        await over(late)
        assert isinstance(late.error, DeadlineError)


async def test_time_to_first_token_counts_from_arrival() -> None:
    async with bench() as b:
        await over(b.submit(ago_s=100.0))
        b.traffic.write(b.dispatcher, 0)
        row = b.page.gateway.read(0)
        assert row is not None
        assert row.ttft_p50_s is not None
        assert row.ttft_p50_s >= 100.0


async def test_draining_lets_running_and_queued_requests_finish() -> None:
    async with bench(slots=1) as b:
        b.workers[0].hold()
        jobs = [b.submit(), b.submit()]
        drained = asyncio.create_task(b.dispatcher.drain(PATIENCE_S))
        await until(lambda: b.dispatcher.stopping, "it drains")
        with pytest.raises(NotReadyError):
            b.submit()
        b.workers[0].release()
        await drained
        assert [job.error for job in jobs] == [None, None]


async def test_what_outlives_the_grace_ends_with_an_error() -> None:
    async with bench(slots=1) as b:
        b.workers[0].hold()
        jobs = [b.submit(), b.submit()]
        await b.dispatcher.drain(0.01)
        assert all(isinstance(job.error, NotReadyError) for job in jobs)


async def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_UNTAKEN", 1000)
    async with bench(script=Script(answer=lambda _: ["x" * 100] * 50)) as b:
        job = b.submit()
        await until(lambda: job.over, "it is cut off")
        assert job.error is not None
        assert job.error.status == 408


async def test_a_plain_answer_may_be_longer_than_what_a_stream_may_leave_untaken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "MAX_UNTAKEN", 1000)
    async with bench(script=Script(answer=lambda _: ["x" * 100] * 50)) as b:
        job = b.submit(stream=False)
        assert await over(job) == "x" * 5000
        assert job.error is None


async def test_random_faults_never_lose_a_slot_or_a_request() -> None:
    """Cancels, refusals and deaths at random moments; every job ends, every slot comes back."""
    async with bench(2, Script(step_s=0.0005), slots=2, queue_size=1000) as b:
        jobs = [b.submit() for _ in range(60)]
        for round_ in range(6):
            for job in jobs[round_::7]:
                b.dispatcher.cancel(job)
            victim = b.workers[-1 - round_ % 2]
            if round_ % 3 == 2:
                victim.drain()
            else:
                victim.die()
                await b.add(victim.worker, epoch=victim.epoch + 1, slots=2)
            await asyncio.sleep(0)
        await b.add(3, slots=2)
        for job in jobs:
            await over(job)
        await until(lambda: b.dispatcher.in_flight == 0, "all slots are free")
        assert all(job.finish or job.error or job.cancelled for job in jobs)
        assert repr(b.dispatcher) == "Dispatcher(0 in flight, 0 queued)"
