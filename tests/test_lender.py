"""Lending in the gateway: who is told what, and when; a real dispatcher over fake workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dispatching import Bench, bench, over
from fake_worker import FakeWorker, Script
from lbhost.board import CoreRow, HostRow, WorkerState
from lbhost.gateway.scheduling.job import Job
from running_gateway import until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def box(count: int, **settings: Any) -> AsyncIterator[Bench]:
    """A bench whose workers live on cores 0, 1, …, of which the board tells."""
    async with bench(0, **settings) as b:
        for worker in range(count):
            core(b, worker)
            fake = await b.add(worker, slots=4, script=Script())
            fake.set_state(WorkerState.READY, cpus=str(worker))
        yield b


def core(b: Bench, cpu: int, **more: Any) -> None:
    b.page.cores.write(cpu, CoreRow(lead=True, **more))


async def told(fake: FakeWorker, cpus: tuple[int, ...]) -> None:
    await until(lambda: fake.lent[-1:] == [cpus], f"{cpus} is the newest that it was lent")


def lone(b: Bench) -> tuple[Job, FakeWorker, FakeWorker]:
    """A request that goes on until its worker is released; that worker, and the other one."""
    for fake in b.workers:
        fake.hold()
    job = b.submit()
    one, two = b.workers if job.worker == 0 else reversed(b.workers)
    return job, one, two


def sent(b: Bench) -> list[str]:
    """Whom each frame goes to from now on: "to 0", "to 1", …, in their order."""
    order: list[str] = []
    for fake in b.workers:
        session = b.sessions.current(fake.worker)
        assert session is not None
        send = session.link.send

        def noted(frame: bytes, name: str = f"to {fake.worker}", send: Any = send) -> None:
            order.append(name)
            send(frame)

        session.link.send = noted  # type: ignore[method-assign]
    return order


async def test_a_lone_request_gets_every_idle_core_until_another_comes() -> None:
    async with box(3) as b:
        for fake in b.workers:
            fake.hold()
        first = b.submit()
        one = next(fake for fake in b.workers if fake.worker == first.worker)
        others = tuple(w for w in range(3) if w != one.worker)
        await told(one, others)
        second = b.submit()
        two = next(fake for fake in b.workers if fake.worker == second.worker)
        assert two is not one
        left = next(w for w in others if w != two.worker)
        await until(lambda: bool(two.submits), "the second request is there")
        await until(
            lambda: (
                sorted(fake.lent[-1] if fake.lent else () for fake in (one, two)) == [(), (left,)]
            ),
            "the third core is one's or the other's",
        )
        for fake in b.workers:
            fake.release()
        await over(first)
        await over(second)


async def test_a_core_is_asked_back_before_its_owner_gets_the_request() -> None:
    async with box(2) as b:
        first, borrower, owner = lone(b)
        await told(borrower, (owner.worker,))
        order = sent(b)
        second = b.submit()
        assert second.worker == owner.worker
        assert order == [f"to {borrower.worker}", f"to {owner.worker}"]
        await told(borrower, ())
        for fake in b.workers:
            fake.release()
        await over(first)
        await over(second)


async def test_between_two_requests_of_a_lone_client_nothing_is_told() -> None:
    async with bench(0) as b:
        core(b, 0)
        core(b, 1)
        fake = await b.add(0, slots=4, script=Script())
        fake.set_state(WorkerState.READY, cpus="0")
        for _ in range(3):
            await over(b.submit())
        assert fake.lent == [(1,)]


async def test_what_an_idle_worker_keeps_is_asked_back_for_whoever_needs_it() -> None:
    async with box(2) as b:
        first, one, two = lone(b)
        await told(one, (two.worker,))
        one.release()
        await over(first)
        assert one.lent == [(two.worker,)]
        order = sent(b)
        one.hold()
        jobs = [b.submit(), b.submit()]
        assert {job.worker for job in jobs} == {one.worker, two.worker}
        await told(one, ())
        assert order.index(f"to {one.worker}") < order.index(f"to {two.worker}")
        for fake in b.workers:
            fake.release()
        for job in jobs:
            await over(job)


async def test_what_ends_gives_its_core_to_the_one_that_goes_on() -> None:
    async with box(2) as b:
        first, one, two = lone(b)
        second = b.submit()
        await until(
            lambda: bool(two.submits) and one.lent[-1:] in ([], [()]), "each has its own core only"
        )
        assert two.lent == []
        two.release()
        await over(second)
        await told(one, (two.worker,))
        one.release()
        await over(first)


async def test_a_core_that_others_use_is_asked_back_and_lent_again_when_they_are_gone() -> None:
    async with box(2) as b:
        job, one, two = lone(b)
        await told(one, (two.worker,))
        core(b, two.worker, others=1.0)
        await told(one, ())
        core(b, two.worker, others=0.0)
        await told(one, (two.worker,))
        one.release()
        await over(job)


async def test_a_moments_use_by_others_is_no_reason() -> None:
    now = [100.0]
    async with bench(0, clock=lambda: now[0]) as b:
        core(b, 0)
        core(b, 1, others=1.0, lasting=0.18)
        fake = await b.add(0, slots=4, script=Script())
        fake.set_state(WorkerState.READY, cpus="0")
        fake.hold()
        job = b.submit()
        await told(fake, (1,))
        fake.release()
        await over(job)


async def test_the_servers_own_processes_close_no_core() -> None:
    now = [100.0]
    async with bench(0, clock=lambda: now[0]) as b:
        core(b, 0)
        core(b, 1, others=0.5, lasting=0.5, foreign=0.1)
        core(b, 2, others=0.5, lasting=0.5, foreign=0.4)
        fake = await b.add(0, slots=4, script=Script())
        fake.set_state(WorkerState.READY, cpus="0")
        fake.hold()
        job = b.submit()
        await told(fake, (1,))
        fake.release()
        await over(job)


async def test_a_hot_core_is_not_lent_nor_more_than_the_quota() -> None:
    async with box(2) as b:
        core(b, 2, temp_c=94.0)
        core(b, 3)
        b.page.host.write(0, HostRow(quota_cpus=2.5))
        for fake in b.workers:
            fake.hold()
        job = b.submit()
        (fake,) = [fake for fake in b.workers if fake.worker == job.worker]
        await until(lambda: bool(fake.lent), "something is lent")
        assert len(fake.lent[-1]) == 1
        assert 2 not in fake.lent[-1]
        for fake in b.workers:
            fake.release()
        await over(job)


async def test_nothing_is_lent_where_that_is_switched_off() -> None:
    async with box(2, lend=False) as b:
        assert await over(b.submit())
        assert all(fake.lent == [] for fake in b.workers)


async def test_a_worker_that_goes_takes_nothing_with_it() -> None:
    async with box(2) as b:
        job, one, two = lone(b)
        await told(one, (two.worker,))
        one.set_state(WorkerState.BACKOFF, cpus=str(one.worker))
        one.close()
        # The request is the other one's now, and the lost one's core too.
        await told(two, (one.worker,))
        two.release()
        await over(job)


async def test_the_last_request_leaves_no_timer() -> None:
    async with box(1) as b:
        await over(b.submit())
        await until(lambda: b.dispatcher.in_flight == 0, "it has ended")
        assert b.dispatcher._upkeep.rests
        await asyncio.sleep(0)
