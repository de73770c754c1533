"""A model without workers on purpose: requests wait for one, and the work that comes is counted."""

from __future__ import annotations

import asyncio
import time

import pytest

from dispatching import Bench, bench, over
from lbhost import control
from lbhost.board import ScaleRow
from lbhost.errors import DeadlineError, NotReadyError
from lbhost.gateway.scheduling.sleep import AGAIN_S, Sleep
from running_gateway import PATIENCE_S, running_gateway, until

pytestmark = pytest.mark.anyio


class Sleeper:
    """What the board says of the model, and how often the supervisor was told."""

    def __init__(self, b: Bench) -> None:
        self.asleep = True
        self.told = 0
        b.sessions.sleep = Sleep(lambda: self.asleep, self._wake)

    async def is_told_again(self) -> None:
        before = self.told
        await until(lambda: self.told > before, "the supervisor is told again")

    def _wake(self) -> None:
        self.told += 1


async def test_requests_for_a_sleeping_model_wait_for_its_worker() -> None:
    async with bench(0) as b:
        sleeper = Sleeper(b)
        b.dispatcher.check_open()
        assert b.dispatcher.ready()
        jobs = [b.submit() for _ in range(5)]
        assert sleeper.told == 1
        await until(lambda: sleeper.told >= 2, "the supervisor is told again")
        await b.add(0)
        assert await asyncio.gather(*map(over, jobs)) == ["one two three four five"] * 5


async def test_a_model_that_does_not_sleep_and_has_no_worker_refuses() -> None:
    async with bench(0) as b:
        sleeper = Sleeper(b)
        sleeper.asleep = False
        assert not b.dispatcher.ready()
        with pytest.raises(NotReadyError):
            b.submit()
        assert sleeper.told == 0


async def test_nobody_is_woken_as_long_as_nobody_waits() -> None:
    async with bench(1) as b:
        sleeper = Sleeper(b)
        assert await over(b.submit())
        assert sleeper.told == 0


def test_a_sleeper_is_woken_again_but_not_all_the_time() -> None:
    told: list[float] = []
    now = 10.0
    sleep = Sleep(lambda: True, lambda: told.append(now))
    for _ in range(100):
        now += AGAIN_S / 10
        sleep.look(now)
    assert 10 <= len(told) <= 11


def test_a_wait_counts_from_when_the_model_was_last_seen_asleep() -> None:
    asleep = True
    sleep = Sleep(lambda: asleep)
    assert sleep.awake_since(10.0, 10.5) == 10.5, "it has not begun yet"
    sleep.look(11.0)
    asleep = False
    sleep.look(12.0)
    assert sleep.awake_since(10.0, 12.0) == 11.0
    assert sleep.awake_since(11.5, 12.0) == 11.5, "who came later has not waited for it"


async def test_the_queue_timeout_does_not_run_while_the_model_wakes() -> None:
    now = time.monotonic()
    async with bench(0, clock=lambda: now, queue_timeout_s=0.02, request_timeout_s=30) as b:
        sleeper = Sleeper(b)
        job = b.submit()
        for _ in range(4):
            now += 1.1 * AGAIN_S  # past the queue timeout by far
            await sleeper.is_told_again()
            assert not job.over
        sleeper.asleep = False
        now += 0.05  # all within NOT_READY_GRACE_S: nobody is given up as hopeless
        await over(job)
        assert isinstance(job.error, DeadlineError), "no worker came within it once it was awake"


async def test_the_request_timeout_runs_while_the_model_wakes() -> None:
    now = time.monotonic()
    async with bench(0, clock=lambda: now, queue_timeout_s=0.02, request_timeout_s=30) as b:
        Sleeper(b)
        job = b.submit()
        now += 1000.0
        await over(job)
        assert isinstance(job.error, DeadlineError)


async def test_work_is_counted_when_it_comes_and_put_right_when_it_ends() -> None:
    async with bench(slots=1) as b:
        b.workers[0].hold()
        first, second = b.submit(100, 2000), b.submit(100, 2000)
        await until(lambda: b.dispatcher.in_flight == 1, "one is with the worker")
        believed = first.cost_s
        assert b.dispatcher.backlog_s == pytest.approx(second.cost_s)
        assert b.dispatcher.work_s == pytest.approx(believed + second.cost_s)
        b.dispatcher.cancel(second)
        assert b.dispatcher.backlog_s == 0.0
        assert b.dispatcher.work_s == pytest.approx(believed)
        b.workers[0].release()
        await over(first)
        assert 0.0 < b.dispatcher.work_s < believed, "five tokens came, and not 2000"
        assert b.dispatcher.work_s == pytest.approx(b.dispatcher._router.spent_s(first))


async def test_a_request_that_never_began_was_no_work() -> None:
    async with bench(0, request_timeout_s=0.05) as b:
        Sleeper(b)
        job = b.submit()
        await over(job)
        assert job.error is not None
        assert b.dispatcher.work_s == pytest.approx(0.0)


async def test_the_board_says_who_sleeps_and_the_supervisor_is_told_of_the_request() -> None:
    async with running_gateway(workers=0) as g:
        assert (await g.client.get("/readyz")).status_code == 503
        assert (await g.chat()).status_code == 503
        g.page.scale.write(0, ScaleRow(asleep=True))
        assert (await g.client.get("/readyz")).status_code == 200
        answer = asyncio.create_task(g.chat())
        g.supervisor.settimeout(PATIENCE_S)
        while True:
            packet = await asyncio.to_thread(control.receive, g.supervisor)
            assert packet is not None
            if packet[0] == control.Wake(0):
                break
        await g.add(0)
        assert (await answer).status_code == 200
