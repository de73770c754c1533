"""The dispatcher's jobs, cancellation, readiness and deadlines, with fake workers on real links."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from dispatching import bench, over
from fake_worker import FakeWorker, Script
from lbhost import wire
from lbhost.board import Wanted, WorkerState
from lbhost.config import Settings
from lbhost.errors import (
    DeadlineError,
    EngineError,
    NotReadyError,
    UnprocessableError,
)
from lbhost.gateway.scheduling import readiness, reports
from lbhost.gateway.scheduling.deltas import TextDelta
from lbhost.gateway.scheduling.job import JobState
from running_gateway import PATIENCE_S, until

pytestmark = pytest.mark.anyio


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
    monkeypatch.setattr(readiness, "NOT_READY_GRACE_S", 0.05)
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
        b.dispatcher.adopt(msgspec.structs.replace(Settings(slots=1), **{setting: 0.05}))
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
        b.dispatcher.adopt(Settings(request_timeout_s=1000.2))
        b.workers[0].hold()
        late = b.submit(ago_s=1000.0)
        await over(late)
        assert isinstance(late.error, DeadlineError)


async def test_time_to_first_token_counts_from_arrival() -> None:
    async with bench() as b:
        await over(b.submit(ago_s=100.0))
        p50, _ = b.traffic.figures.ttfts.at(time.monotonic())
        assert p50 is not None
        assert p50 >= 100.0


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
    monkeypatch.setattr(reports, "MAX_UNTAKEN", 1000)
    async with bench(script=Script(answer=lambda _: ["x" * 100] * 50)) as b:
        job = b.submit()
        await until(lambda: job.over, "it is cut off")
        assert job.error is not None
        assert job.error.status == 408


async def test_a_plain_answer_may_be_longer_than_what_a_stream_may_leave_untaken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reports, "MAX_UNTAKEN", 1000)
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
