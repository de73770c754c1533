"""What a dispatcher refuses at once: a full queue, and what cannot be done in time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispatching import Bench, bench, over, work
from fake_worker import Script
from lbhost import order, wire
from lbhost.errors import (
    DeadlineError,
    QueueFullError,
    TooLateError,
    TooSlowError,
)
from lbhost.gateway.scheduling import group, prospects
from lbhost.gateway.scheduling.job import JobState
from lbhost.gateway.scheduling.worker_view import Speeds
from running_gateway import until

pytestmark = pytest.mark.anyio


class TwoSecondsEach:
    """A clock that only answers move."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def __call__(self) -> float:
        return self._now

    def answer(self, _: wire.Submit) -> list[str]:
        self._now += 2.0
        return ["word"]


@asynccontextmanager
async def measured(speeds: Speeds, **settings: Any) -> AsyncIterator[Bench]:
    """A worker of one slot, whose speeds are known already."""
    async with bench(1, Script(speeds=speeds), slots=1, **settings) as b:
        await until(lambda: b.sessions.measured_speeds() == speeds, "its speeds are seen")
        yield b


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


# --- what cannot be done in time --------------------------------------------------------


async def test_what_cannot_be_done_in_time_is_refused_once_predictions_have_proved_good() -> None:
    async with measured((100.0, 0.001, 0.001), request_timeout_s=100.0, queue_timeout_s=20.0) as b:
        (fake,) = b.workers
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
    async with measured((100.0, 0.001, 0.009), queue_timeout_s=10.0) as b:
        (fake,) = b.workers
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


async def test_what_waits_for_others_of_its_own_request_is_not_too_late() -> None:
    async with bench(slots=1, queue_timeout_s=0.2) as b:
        (fake,) = b.workers
        fake.hold()
        several = group.submit(b.dispatcher, [work()] * 3, time.monotonic())
        stranger = b.submit()
        await until(lambda: stranger.over, "it has waited for too long")
        assert isinstance(stranger.error, DeadlineError)
        states = [job.state for job in several.jobs]  # whose time would have been over before
        assert states == [JobState.RUNNING, JobState.QUEUED, JobState.QUEUED]
        several.cancel()


async def test_what_no_worker_has_for_the_time_of_the_queue_is_too_late_with_all_its_jobs() -> None:
    async with bench(slots=1, queue_timeout_s=0.2) as b:
        (fake,) = b.workers
        fake.hold()
        several = group.submit(b.dispatcher, [work()] * 2, time.monotonic())
        assert several.jobs[0].state is JobState.RUNNING
        fake.close()
        await until(lambda: several.over, "they have waited for too long")
        assert all(isinstance(job.error, DeadlineError) for job in several.jobs)


async def test_more_work_than_can_begin_in_time_is_refused_as_soon_as_speeds_are_known() -> None:
    async with measured((100.0, 0.001, 0.009), queue_timeout_s=10.0) as b:
        (fake,) = b.workers
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


async def test_what_a_worker_has_of_a_prompt_takes_no_time() -> None:
    async with measured((100.0, 0.001, 0.001), request_timeout_s=10.0) as b:
        await over(b.submit(3200, 1))
        for _ in range(prospects.LEAST_SEEN):
            b.sessions.accuracy(0).completion.add(1.0, 1.0)
        again = b.submit(3200, 1)  # 32 s if it were to be computed
        await over(again)
        assert again.error is None


async def test_what_a_worker_has_of_a_prompt_is_no_work() -> None:
    async with measured((100.0, 0.001, 0.009), queue_timeout_s=10.0) as b:
        (fake,) = b.workers
        await over(b.submit(320, 1))
        fake.hold()
        jobs = [b.submit(320, 1) for _ in range(11)]  # 32 s of work if it were to be computed
        fake.release()
        for job in jobs:
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
