"""Who goes next, against fake workers: short before long, classes, clients."""

from __future__ import annotations

import time

import msgspec
import pytest

from dispatching import bench, over, work
from lbhost import order, wire
from lbhost.board import CoreRow, WorkerState
from lbhost.errors import (
    DeadlineError,
    QueueFullError,
)
from lbhost.gateway.scheduling import arrivals
from lbhost.gateway.scheduling.job import Job, JobState
from lbhost.gateway.scheduling.job_queue import LOOKAHEAD
from running_gateway import until

pytestmark = pytest.mark.anyio


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
        long = b.submit(1500, 5000, ago_s=arrivals.MAX_OVERTAKEN_S + 1.0, ignore_eos=True)
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
        old = b.submit(15, 1, ago_s=arrivals.PRIORITY_AHEAD_S + 10.0)
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
