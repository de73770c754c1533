"""Several models under one real supervisor, over stand-ins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import ConflictError, InvalidRequestError, StartupError
from lbhost.source import Source
from lbhost.status import ModelStatus
from lbhost.supervisor import commanded
from supervising import PATIENCE_S, Box, box, refused

pytestmark = pytest.mark.anyio

S = WorkerState
TWO = ("chat", "vectors")
TABLES = """
[[models]]
name = "chat"
path = "/nowhere/fake.gguf"
[[models]]
name = "vectors"
path = "/nowhere/fake.gguf"
memory_limit = "2G"
"""


def model(running: Box, name: str) -> ModelStatus:
    return next(model for model in running.server.status().models if model.name == name)


async def test_every_model_has_workers_of_its_own_over_the_whole_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, models=TWO, workers=2, cores=2) as running:
        await running.until(
            lambda: [m.in_flight for m in running.server.status().models] == [2, 2],
            "the gateway has each worker's link, with its model",
        )
        status = running.server.status()
        assert status.state == "ready"
        assert status.model == "chat"
        assert [(w.id, w.model, w.cores) for w in status.workers] == [
            (0, "chat", [0]),
            (1, "chat", [1]),
            (2, "vectors", [0]),
            (3, "vectors", [1]),
        ]
        assert [(m.name, m.state, m.workers, m.workers_up) for m in status.models] == [
            ("chat", "ready", 2, 2),
            ("vectors", "ready", 2, 2),
        ]
        assert [(core.worker, core.workers) for core in status.cores] == [(0, [0, 2]), (1, [1, 3])]
        assert [server.model for server in status.fork_servers] == ["chat", "vectors"]
        board = running.server.prepared.board
        rows = [board.identity.read(i) for i in range(4)]
        assert [row.model for row in rows if row is not None] == [0, 0, 1, 1]
        assert "worker 3 (vectors): starting -> ready" in running.kinds("worker_state")


async def test_a_worker_of_one_model_is_replaced_while_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, models=TWO, workers=1) as running:
        other = running.pid(0)
        running.kill(running.pid(1))
        await running.until(
            lambda: running.worker(1).epoch == 2 and running.worker(1).state is S.READY,
            "it is back",
        )
        assert (running.pid(0), running.worker(0).epoch) == (other, 1)
        await running.server.drain(0, None)
        assert model(running, "chat").state == "stopped"
        assert model(running, "vectors").state == "ready"
        await running.server.resume(0)


async def test_scaling_needs_a_models_name_and_ids_are_never_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, models=TWO, workers=1) as running:
        message = await refused(running.server.scale(2), InvalidRequestError)
        assert message.endswith("name one (--model): chat, vectors")
        message = await refused(running.server.scale(2, "chta"), InvalidRequestError)
        assert message == "no model is called 'chta'; there are: chat, vectors"
        message = await refused(running.server.scale(9, "chat"), InvalidRequestError)
        assert "at most 4 fit here" in message
        assert await running.server.scale(3, "chat") == "chat: 3 workers"
        assert [(w.id, w.model) for w in running.server.status().workers] == [
            (0, "chat"),
            (1, "vectors"),
            (2, "chat"),
            (3, "chat"),
        ]
        assert await running.server.scale(1, "chat") == "chat: 1 worker"
        # An id that was another model's goes on counting its epochs.
        assert await running.server.scale(2, "vectors") == "vectors: 2 workers"
        assert running.worker(2).of == "vectors"
        assert running.worker(2).epoch == 2


async def test_a_rolling_restart_is_of_one_model_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, models=TWO, workers=2) as running:
        said = await running.server.restart_all()
        assert said == (
            "chat: rolling restart done: 2 workers; vectors: rolling restart done: 2 workers"
        )
        assert [worker.epoch for worker in running.server.fleet.workers.values()] == [2, 2, 2, 2]
        assert running.server.status().rolling is None
        told = running.kinds("rolling")
        assert told.index("chat: rolling restart done: 2 workers") < told.index(
            "vectors: rolling restart of 2 workers"
        )


async def test_a_model_that_cannot_start_leaves_the_others_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = {"fork_server-vectors": "fail"}
    async with box(tmp_path, monkeypatch, models=TWO, workers=1, modes=modes) as running:
        failed = model(running, "vectors")
        assert (failed.state, failed.workers_up) == ("failed", 0)
        assert failed.failure == "fork_server-vectors was told to fail"
        assert model(running, "chat").state == "ready"
        assert running.server.status().state == "degraded"
        assert any(line.startswith("vectors is not served") for line in running.kinds("server"))
        running.tell("fork_server-vectors", "")
        await running.state(1, S.READY)
        assert model(running, "vectors").state == "ready"
        assert model(running, "vectors").failure is None


async def test_no_command_waits_for_a_model_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = {"fork_server-chat": "fail"}
    why = "fork_server-chat was told to fail"
    async with (
        asyncio.timeout(PATIENCE_S),
        box(tmp_path, monkeypatch, models=TWO, workers=1, modes=modes) as running,
    ):
        said = await running.server.restart_all()
        assert said == (f"vectors: rolling restart done: 1 workers; chat: not restarted, {why}")
        for command in (
            running.server.restart(0),
            running.server.resume(0),
            running.server.scale(2, "chat"),
        ):
            message = await refused(command, ConflictError)
            assert message.endswith(f"does not start: {why}")
        assert await running.server.scale(2, "vectors") == "vectors: 2 workers"
        running.tell("fork_server-chat", "")
        await running.state(0, S.READY)


async def another_gateway(running: Box, gone: set[int | None]) -> None:
    gateway = running.server.gateway
    await running.until(
        lambda: gateway.pid not in gone and gateway.state == "ready", "there is another gateway"
    )


async def test_a_model_that_the_gateway_cannot_serve_is_not_called_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, models=TWO, workers=1) as running:
        for mode, state, failure in (("refuse", "failed", "another file"), ("", "ready", None)):
            running.tell("gateway", mode)
            gone = {None, running.server.gateway.pid}
            running.kill(running.server.gateway.pid)
            await another_gateway(running, gone)
            vectors = model(running, "vectors")
            assert (vectors.state, vectors.failure, vectors.workers_up) == (state, failure, 1)
            assert model(running, "chat").state == "ready"
            assert running.server.status().state == ("degraded" if mode else "ready")
        told = "the gateway cannot serve vectors: another file"
        assert running.kinds("gateway").count(told) == 1


async def test_where_no_model_can_start_there_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = {"fork_server": "fail"}
    with pytest.raises(StartupError, match="was told to fail"):
        async with box(
            tmp_path, monkeypatch, models=TWO, workers=1, modes=modes, wait=False
        ) as running:
            await running.ended()


async def test_fewer_cores_are_fewer_workers_of_every_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, models=TWO, workers=2, cores=2) as running:
        running.allowed.difference_update({1})
        for worker in (1, 3):
            await running.state(worker, S.STOPPED)
        assert [running.worker(i).state for i in (0, 2)] == [S.READY, S.READY]
        running.allowed.update({1})
        for worker in (1, 3):
            await running.state(worker, S.READY)


async def test_a_reload_keeps_what_a_model_says_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lbhost.toml"
    file.write_text("workers = 1\n" + TABLES)
    source = Source({"shutdown_grace_s": 5.0}, {}, file)
    async with box(
        tmp_path, monkeypatch, models=TWO, settings=source.load(), source=source, workers=1
    ) as running:
        file.write_text('workers = 2\nmemory_limit = "3G"\n' + TABLES)
        await running.server.reload()
        limits = [m.settings.memory_limit for m in running.server.desired.models.values()]
        assert limits == ["3G", "2G"]
        assert [m.workers_up for m in running.server.status().models] == [2, 2]
        file.write_text("workers = 2\n" + TABLES.replace('"vectors"', '"embed"'))
        monkeypatch.setattr(commanded, "rehearse", AsyncMock(return_value=[]))  # no such files here
        dry = await running.server.reload(dry_run=True)
        assert "models: chat,vectors -> chat,embed (handover)" in dry


async def test_limits_on_workers_hold_for_operators_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(min_workers=2, max_workers=3, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        for count in (1, 4):
            message = await refused(running.server.scale(count), InvalidRequestError)
            assert message.endswith("min_workers and max_workers allow from 2 to 3")
        assert await running.server.scale(3) == "3 workers, until `lbhost scale auto`"
