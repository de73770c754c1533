"""Two models whose workers share cores: where a request goes, and when a core is lent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fake_worker import FakeWorker, Script
from lbhost.board import CoreRow, WorkerState
from lbhost.purpose import GENERATES
from running_gateway import RunningGateway, running_gateway, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def two_cores() -> AsyncIterator[tuple[RunningGateway, list[FakeWorker]]]:
    """Two models with workers 0, 1 and 2, 3 on cores 0 and 1, which are twice somebody's home."""
    async with running_gateway(workers=0, more={"second": GENERATES}) as g:
        for cpu in range(2):
            g.page.cores.write(cpu, CoreRow(lead=True))
        for worker in range(4):
            fake = await g.add(worker, model=worker // 2, script=Script(speeds=(500.0, 0.01, 0.01)))
            fake.set_state(WorkerState.READY, cpus=str(worker % 2))
        yield g, g.workers


async def test_a_request_goes_where_no_other_model_computes() -> None:
    async with two_cores() as (g, fakes):
        for _ in range(5):  # which of two equal cores is a matter of chance
            for fake in fakes:
                fake.hold()
            first = asyncio.create_task(g.chat(model="second"))
            await until(lambda: any(fake.busy for fake in fakes), "it runs")
            (core,) = [fake.worker % 2 for fake in fakes if fake.busy]
            second = asyncio.create_task(g.chat())
            await until(lambda: fakes[0].busy + fakes[1].busy, "it runs, too")
            assert fakes[1 - core].busy, "beside the first one"
            for fake in fakes:
                fake.release()
            assert [(await one).status_code for one in (first, second)] == [200, 200]


async def test_a_core_is_lent_only_while_nobody_at_home_there_computes() -> None:
    async with two_cores() as (g, fakes):
        for fake in fakes:
            fake.hold()
        first = asyncio.create_task(g.chat())
        await until(lambda: any(fake.busy for fake in fakes), "it runs")
        (borrower,) = [fake.worker for fake in fakes if fake.busy]
        other = 1 - borrower
        await until(lambda: fakes[borrower].lent[-1:] == [(other,)], "it is lent the other core")
        second = asyncio.create_task(g.chat(model="second"))
        owner = fakes[2 + other]
        await until(lambda: owner.submits, "the other model's request is on that core")
        await until(lambda: fakes[borrower].lent[-1:] == [()], "it was asked back")
        assert not owner.lent or owner.lent[-1] == ()
        owner.release()
        assert (await second).status_code == 200
        await until(lambda: fakes[borrower].lent[-1:] == [(other,)], "and lent again")
        fakes[borrower].release()
        assert (await first).status_code == 200
