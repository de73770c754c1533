"""Requests go on elsewhere: workers that are lost, drain, are busier, or break the protocol."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dispatching import bench, numbers, over
from fake_worker import Script
from lbhost import log, order
from lbhost.board import WorkerState
from lbhost.gateway.scheduling import moving
from lbhost.gateway.scheduling.deltas import text_of
from lbhost.gateway.scheduling.job import JobState
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse
from running_gateway import until

pytestmark = pytest.mark.anyio


LONG = 2000
"""Tokens of an answer that no worker with a millisecond between two steps gets to the end of before
the test has done what it does meanwhile, however slow the box is; the worker after it is fast."""


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


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


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_goes_on_elsewhere_where_it_was(stream: bool) -> None:
    slow, fast = Script(answer=numbers, step_s=0.001), Script(answer=numbers)
    async with bench(script=slow) as b:
        job = b.submit(max_tokens=LONG, stream=stream)
        text = ""
        for epoch in range(1, 5):
            more = job.completion_tokens + 20
            await until(lambda more=more: job.completion_tokens >= more, "it goes on")  # type: ignore[misc]
            text += text_of(job.take())
            dies = b.workers[-1]
            await b.add(epoch=epoch + 1, script=slow if epoch < 4 else fast)
            dies.die()
            b.dispatcher.worker_ended(0, epoch, by_its_work=False)
        text += await over(job)
        assert text == "".join(numbers(b.workers[0].submits[0]))
        assert (job.completion_tokens, job.attempts) == (LONG, 5)
        assert job.finish is not None
        assert (job.finish.prompt_tokens, job.finish.completion_tokens) == (10, LONG)
        done = [len(fake.submits[0].done) // 4 for fake in b.workers]
        assert done == sorted(done)
        assert 20 <= done[1] < done[4] < LONG


async def test_a_moved_request_goes_on_elsewhere_and_costs_no_attempt() -> None:
    script = Script(answer=numbers, step_s=0.001, cached_tokens=3)
    async with bench(script=script) as b:
        (first,) = b.workers
        job = b.submit(max_tokens=LONG)
        await until(lambda: job.completion_tokens >= 20, "it has begun")
        second = await b.add(1, script=Script(answer=numbers, cached_tokens=9))
        first.set_state(WorkerState.DRAINING)
        b.dispatcher.worker_leaves()
        assert await over(job) == "".join(numbers(first.submits[0]))
        assert (job.worker, job.attempts, first.busy) == (1, 1, 0)
        assert 20 <= len(second.submits[0].done) // 4 < LONG
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


async def test_a_priority_request_gets_a_slot_beside_a_worker_that_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving, "SETTLED_S", 0.0)
    async with bench(2, Script(answer=numbers, step_s=0.001), slots=1) as b:
        jobs = [b.submit(max_tokens=LONG) for _ in range(2)]
        await until(lambda: all(job.begun for job in jobs), "both run")
        leaves, stays = b.workers
        leaves.set_state(WorkerState.RESTING)
        leaves.script = msgspec.structs.replace(leaves.script, reject=True)
        b.dispatcher.worker_leaves()
        assert await over(b.submit(12, 5, rank=order.PRIORITY)) == "0 1 2 3 4 "
        assert (len(leaves.moves), len(stays.moves)) == (0, 1)
        assert not any(job.over for job in jobs)
        stays.script = Script(answer=numbers)
        for job in jobs:
            assert await over(job) == "".join(f"{i} " for i in range(LONG))


async def test_a_stream_goes_to_an_idle_worker_where_it_is_done_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving, "SETTLED_S", 0.0)
    monkeypatch.setattr(moving, "EVERY_S", 0.0)
    # Four at once take four times as long as one.
    script = Script(answer=numbers, step_s=0.005, speeds=(10_000.0, 0.001, 0.05))
    async with bench(1, script) as b:
        (full,) = b.workers
        jobs = [b.submit(max_tokens=600, ignore_eos=True) for _ in range(4)]
        await until(lambda: all(job.begun for job in jobs), "all run")
        idle = await b.add(1, script=script)
        for job in jobs:
            assert await over(job) == "".join(f"{i} " for i in range(600))
        moved = b.metrics.registry.get_sample_value("lbhost_moved_total", {"reason": "speed"})
        # One, and nobody goes back; a second one only where this box has been slow in between.
        assert moved == len(idle.submits)
        assert len(idle.submits) in (1, 2)
        assert len(full.submits) == 4


async def test_usage_and_timings_are_those_of_the_whole_answer() -> None:
    script = Script(answer=numbers, step_s=0.002, cached_tokens=3)
    async with bench(script=script) as b:
        job = b.submit(max_tokens=LONG)
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
        b.dispatcher.states = Plane(Purse(1 << 20), b.sessions)

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
        b.dispatcher._observer._observer = Failing()
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
