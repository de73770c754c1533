"""Runs a real Supervisor in this process, over the stand-ins of fake_child.py."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbhost.board import Board, WorkerState
from lbhost.config import Settings
from lbhost.errors import LbhostError
from lbhost.linux import become_subreaper
from lbhost.llama import ModelInfo
from lbhost.machine import topology
from lbhost.machine.gpu import GpuReader
from lbhost.machine.sampler import Sampler
from lbhost.machine.tree import Roots
from lbhost.model import ModelFile
from lbhost.model_entry import ModelEntry
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan
from lbhost.sandbox import environment
from lbhost.source import Source
from lbhost.status import Status
from lbhost.supervisor import building, launcher, listener, peers
from lbhost.supervisor.model_startup import PreparedModel
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.startup import Prepared
from lbhost.supervisor.succession import Context
from lbhost.supervisor.supervisor import Supervisor
from lbhost.supervisor.worker import Worker

PATIENCE_S = 60.0

INFO = ModelInfo(
    path="/nowhere/fake.gguf",
    name="fake",
    architecture="fake",
    weights_bytes=1,
    n_ctx_train=1024,
    n_vocab=2,
    n_layer=1,
    n_embd=1,
    n_head=1,
    kv_bytes_per_token=1,
    recurrent=False,
)


def write_box(root: Path, cores: int) -> Roots:
    """A /sys with so many cores; /proc is the machine's own."""
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (cpus / "online").write_text(f"0-{cores - 1}\n")
    return Roots(sysfs=root / "sys", procfs=Path("/proc"))


class Box:
    """A supervisor that runs, and what the tests do to it."""

    def __init__(self, server: Supervisor, folder: Path, allowed: set[int]) -> None:
        self.server = server
        self.folder = folder
        self.allowed = allowed
        """CPUs that the supervisor finds when it looks again; tests change it."""
        self.announced: list[Status] = []

    def tell(self, name: str, mode: str) -> None:
        """Let a stand-in misbehave from now on; "" ends that."""
        path = self.folder / name
        if mode:
            path.with_suffix(".new").write_text(mode)
            path.with_suffix(".new").replace(path)
        else:
            path.unlink(missing_ok=True)

    def worker(self, worker: int = 0) -> Worker:
        return self.server.fleet.workers[worker]

    def pid(self, worker: int = 0) -> int:
        pid = self.worker(worker).pid
        assert pid is not None
        return pid

    def kill(self, pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
        assert pid is not None
        os.kill(pid, number)

    def kinds(self, kind: str) -> list[str]:
        return [event.message for event in self.server.events.latest(1000) if event.kind == kind]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition, looking every 10 ms."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {what}"
            await asyncio.sleep(0.01)

    async def state(self, worker: int, state: WorkerState) -> None:
        await self.until(
            lambda: worker in self.server.fleet.workers and self.worker(worker).state is state,
            f"worker {worker} is {state.name}",
        )

    async def ended(self) -> None:
        await self.until(lambda: self.server.events.closed, "the server has ended")

    async def serving(self) -> None:
        await self.until(lambda: self.announced, "the server serves")


@asynccontextmanager
async def box(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    settings: Settings | None = None,
    models: Sequence[str] = ("fake",),
    workers: int = 2,
    cores: int = 4,
    modes: dict[str, str] | None = None,
    wait: bool = True,
    placements: Sequence[Placement] | None = None,
    source: Source | None = None,
    before: Context | None = None,
) -> AsyncIterator[Box]:
    """A running supervisor; it is stopped, and everything below it is gone, at the end.

    Args:
        models: names; each has so many workers, and all the same file that there is none of.
        wait: for the server to serve.
        placements: other than the plan's for so many workers.
        source: where a reload reads the settings.
        before: how a server before this one had each model.
    """
    settings = settings or Settings(shutdown_grace_s=5)
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setattr(building, "FORK_SERVER_MODULE", "fake_fork_server")
    monkeypatch.setattr(building, "GATEWAY_MODULE", "fake_gateway")
    monkeypatch.setattr(launcher, "WORKER_MODULE", "fake_gpu_worker")
    monkeypatch.setattr(environment, "KEPT", environment.KEPT | {"FAKE_DIR", "FAKE_TICK_S"})
    monkeypatch.setenv("FAKE_DIR", str(folder))
    monkeypatch.setattr(peers, "is_ours", lambda pid: False)  # a test's commands are our children
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    become_subreaper()
    roots = write_box(tmp_path, cores)
    allowed = set(range(cores))
    found = topology.discover(roots, allowed)
    cards = sum(place.gpu is not None for place in placements or ())
    rows = max(8, 2 * len(placements or ()), 2 * len(models) * workers)
    page = Board.create(workers=rows, cores=found.rows, gpus=cards)
    reader = GpuReader(roots)
    sampler = Sampler(page, found, roots, reader)
    placed = placements or plan(found, workers)
    if len(models) > 1 and not settings.models:
        entries = tuple(ModelEntry(name=name, path="/nowhere/fake.gguf") for name in models)
        settings = msgspec.structs.replace(settings, models=entries)
    prepared = Prepared(
        settings=settings,
        models=[
            PreparedModel(
                own, ModelFile("/nowhere/fake.gguf", name), INFO, placed, 512, before=before
            )
            for name, own in zip(models, settings.served(), strict=True)
        ],
        topology=found,
        gpus=(),
        gpu_capable=False,
        board=page,
        sampler=sampler,
        gpu_reader=reader,
        reread=topology.Reread(roots, lambda: allowed),
    )
    claimed = RuntimeDir.claim(tmp_path / "run")
    with listener.bind("127.0.0.1", 0) as listening:
        announced: list[Status] = []
        made = Supervisor(
            prepared, claimed, listening, "http://127.0.0.1:1", announced.append, source=source
        )
        running = Box(made, folder, allowed)
        running.announced = announced
        for name, mode in (modes or {}).items():
            running.tell(name, mode)
        task = asyncio.create_task(made.run())
        try:
            if wait:
                await running.serving()
            yield running
        finally:
            made.request_stop(signal.SIGTERM)
            if wait:
                made.request_stop(signal.SIGINT)
            try:
                await asyncio.wait_for(task, PATIENCE_S)
            finally:
                sampler.close()
                reader.close()
                page.close()
                claimed.release()


def gone(pid: int) -> bool:
    """Whether there is no such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


async def refused(command: Coroutine[Any, Any, str], error: type[LbhostError]) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(error) as caught:
        await command
    assert "\n" not in caught.value.message
    return caught.value.message
