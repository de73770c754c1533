"""A whole gateway in the test's event loop, with fake workers and a real listening socket."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from fake_worker import FakeWorker, Script
from lbhost import control
from lbhost.adapters import AdapterFile
from lbhost.board import Board, WorkerState
from lbhost.config import Settings
from lbhost.gateway.gateway import Gateway, Start, receive_start
from lbhost.gateway.served_model import ServedModel
from lbhost.purpose import GENERATES, Purpose
from toy_vocab import ToyVocab

PATIENCE_S = 60.0
N_CTX = 2048
MODEL = "toy"
HELPER = (sys.executable, str(Path(__file__).with_name("toy_helper.py")))
CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


async def until(probe: Callable[[], Any], what: str) -> None:
    """Wait until `probe` is true. Raises AssertionError if it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not probe():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.005)


class RunningGateway:
    """The gateway, the supervisor's ends of its links, and an HTTP client."""

    def __init__(self, gateway: Gateway, page: Board, supervisor: socket.socket, port: int) -> None:
        self.gateway = gateway
        self.page = page
        self.supervisor = supervisor
        self.port = port
        self.workers: list[FakeWorker] = []
        self.orphaned = asyncio.Event()
        self.task: asyncio.Task[None]
        self.client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False
        )

    @property
    def served(self) -> ServedModel:
        """The first of its models."""
        return self.model(0)

    def model(self, number: int) -> ServedModel:
        return next(one for one in self.gateway.models if one.number == number)

    async def add(
        self,
        worker: int = 0,
        *,
        epoch: int = 1,
        slots: int = 4,
        script: Script | None = None,
        state: WorkerState = WorkerState.READY,
        model: int = 0,
    ) -> FakeWorker:
        """A fake worker, linked the way the supervisor does it."""
        fake = FakeWorker(
            self.page,
            worker,
            epoch=epoch,
            slots=slots,
            n_ctx=N_CTX,
            script=script,
            state=state,
            model=model,
        )
        self.workers.append(fake)
        control.send(self.supervisor, control.Link(worker, epoch, model), [fake.fd])
        os.close(fake.fd)

        def joined() -> bool:
            session = self.model(model).sessions.current(worker)
            return session is not None and session.epoch == epoch

        await until(joined, "the link has come")
        return fake

    def stop(self, grace_s: float) -> None:
        control.send(self.supervisor, control.Stop(grace_s))

    async def chat(self, **fields: Any) -> httpx2.Response:
        return await self.client.post(CHAT, json={**HELLO, **fields})

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; all that comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(PATIENCE_S):
                return await reader.read()
        finally:
            writer.close()


async def said(g: RunningGateway, path: str = CHAT, **fields: Any) -> tuple[str, str]:
    """What an answer says, and of which model it says to be."""
    answer = await g.client.post(path, json={**HELLO, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0]["message"]["content"], body["model"]


def refusal(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """The error that an answer of this status holds."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@asynccontextmanager
async def running_gateway(
    *,
    vocab: ToyVocab | None = None,
    workers: int = 1,
    script: Script | None = None,
    purpose: Purpose = GENERATES,
    more: Mapping[str, Purpose] | None = None,
    aliases: tuple[str, ...] = (),
    adapters: tuple[AdapterFile, ...] = (),
    broken: Sequence[str] = (),
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """A gateway with so many workers, all cleaned up afterwards.

    Args:
        more: models beside the first one, by name.
        aliases, adapters: of the first one. broken: those of `more` that cannot be loaded.
    """
    page = Board.create(workers=8, cores=4, gpus=0)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    ours, theirs = control.socketpair()
    usual = {"prompt_helpers": 1, "embedding_cache": 0}
    made = Settings(**{**usual, **settings})
    models = (
        control.Configure(
            made, "toy.gguf", MODEL, N_CTX, purpose=purpose, aliases=aliases, adapters=adapters
        ),
        *(
            control.Configure(made, f"{name}.gguf", name, N_CTX, purpose=one)
            for name, one in (more or {}).items()
        ),
    )
    control.send(ours, control.Serve(made, models), [page.fd, listener.fileno()])
    listener.close()
    start = receive_start(theirs)
    assert isinstance(start, Start)
    gateway = Gateway(
        start,
        [None if one.model_alias in broken else vocab or ToyVocab() for one in models],
        on_orphaned=lambda: running.orphaned.set(),
        helper_command=HELPER,
    )
    running = RunningGateway(gateway, page, ours, port)
    running.task = asyncio.create_task(gateway.run(theirs))
    try:
        await until(lambda: gateway.server.started, "the gateway listens")
        for worker in range(workers):
            await running.add(worker, script=script)
        try:
            yield running
        finally:  # also after a failure: a loop cannot be closed on a listener that is open
            if not running.task.done():
                running.stop(0.0)
            async with asyncio.timeout(PATIENCE_S):
                await running.task
    finally:
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)
        await running.client.aclose()
        for fake in running.workers:
            fake.close()
        ours.close()
        theirs.close()
        start.page.close()
        page.close()
