"""A dispatcher with a board and fake workers on real links, for its tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fake_worker import FakeWorker, Script
from lbhost import wire
from lbhost.board import Board
from lbhost.config import Settings
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.recorder import Figures, Recorder
from lbhost.gateway.scheduling.deltas import text_of
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.readings import Readings
from lbhost.gateway.scheduling.sessions import Sessions
from running_gateway import PATIENCE_S, until


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
        self.traffic = Recorder(self.metrics, Figures())
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


async def over(job: Job) -> str:
    """The whole text of a job, once it is over."""
    text = ""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await job.wait()
            text += text_of(job.take())
            if job.over:
                return text


def numbers(submit: wire.Submit) -> list[str]:
    """An answer of which each piece is another one."""
    return [f"{i} " for i in range(submit.max_tokens)]
