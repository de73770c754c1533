"""Queries of death: which requests are given up when workers die, and which are not."""

from __future__ import annotations

import time
from functools import partial

import pytest

from dispatching import Bench, bench, numbers, over
from fake_worker import Script
from lbhost import wire
from lbhost.errors import (
    QueryOfDeathError,
    WorkerLostError,
)
from lbhost.gateway.scheduling import losses, suspicion
from lbhost.gateway.scheduling.job import Job
from lbhost.worker.interfaces import MAX_FAILURES
from running_gateway import until

pytestmark = pytest.mark.anyio


# --- queries of death ---------------------------------------------------------------------


async def two_deaths(b: Bench) -> None:
    """A worker of one slot dies of what it computes, and the one after it; the third answers."""
    for epoch in (1, 2):
        dies = b.workers[-1]
        await until(partial(bool, dies.submits), "the worker has it")
        dies.die()
        b.dispatcher.worker_ended(0, epoch, by_its_work=True)
        await until(lambda: not b.sessions.links(), "that is seen")
        await b.add(epoch=epoch + 1, slots=1, held=True)
    b.workers[-1].release()


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
        await two_deaths(b)
        assert [await over(job) for job in jobs] == ["", "", "one two three four five"]
        assert [type(job.error) for job in jobs[:2]] == [QueryOfDeathError] * 2
        assert [len(submit.prompt) // 4 for submit in b.workers[-1].submits] == [34]


async def test_its_prompt_with_another_adapter_is_no_query_of_death() -> None:
    async with bench(slots=1) as b:
        b.workers[0].hold()
        deadly, other = b.submit(33), b.submit(33, adapter=1, scope=1)
        await two_deaths(b)
        assert [await over(job) for job in (deadly, other)] == ["", "one two three four five"]
        assert isinstance(deadly.error, QueryOfDeathError)


async def test_who_was_in_a_failed_decode_goes_on_elsewhere() -> None:
    failing = Script(answer=numbers, step_s=0.001)
    async with bench(script=failing, slots=2) as b:
        (first,) = b.workers
        # So many that none is done before it breaks, however slow the box is.
        jobs = [b.submit(max_tokens=2000) for _ in range(2)]
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


async def test_who_failed_a_request_does_not_get_it_again_though_nobody_else_is_idle() -> None:
    async with bench(2, slots=1) as b:
        for fake in b.workers:
            fake.hold()
        beside, job = b.submit(5), b.submit(7)
        await until(lambda: all(fake.busy for fake in b.workers), "all slots are taken")
        other, failing = sorted(b.workers, key=lambda fake: len(fake.submits[0].prompt))
        failing.script = Script(fail="no reason", fail_as=wire.FinishReason.FAILED)
        failing.release()
        await until(lambda: job.deaths, "its decode has failed")
        failing.script = Script()
        assert await over(b.submit(6)) == "one two three four five"
        other.release()
        assert [await over(one) for one in (beside, job)] == ["one two three four five"] * 2
        assert [len(submit.prompt) // 4 for submit in failing.submits] == [7, 6]


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


async def test_a_request_whose_workers_are_killed_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "MAX_ATTEMPTS", 3)
    async with bench() as b:
        job: Job | None = None
        for epoch in range(1, losses.MAX_ATTEMPTS + 1):
            fake = b.workers[-1] if epoch == 1 else await b.add(0, epoch=epoch)
            fake.hold()
            job = job or b.submit()
            await until(partial(bool, fake.submits), "the worker has it")
            fake.die()
        assert job is not None
        await over(job)
        assert isinstance(job.error, WorkerLostError)
        assert job.attempts == losses.MAX_ATTEMPTS
