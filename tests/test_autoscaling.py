"""The autoscaler in a real supervisor, over stand-ins: workers follow the load that a fake gateway
tells of, models sleep and wake."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import ConflictError
from lbhost.model_entry import ModelEntry
from lbhost.placement.placement import Placement
from lbhost.status import ModelStatus
from lbhost.supervisor import autoscale, autoscaling
from lbhost.supervisor.succession import Context
from supervising import Box, box, refused

pytestmark = pytest.mark.anyio

ONE = Placement((1,), 1)
IDLE: dict[str, Any] = {"requests": 1}
FLOOD: dict[str, Any] = {"requests": 9, "queue_depth": 8, "in_flight": 4, "backlog_s": 60.0}


def load(running: Box, model: int = 0, **figures: Any) -> None:
    """What the gateway says of a model from now on."""
    running.tell(f"load-{model}", msgspec.json.encode(figures or IDLE).decode())


def model(running: Box, number: int = 0) -> ModelStatus:
    return running.server.status().models[number]


def modes(*models: int) -> dict[str, str]:
    return {f"load-{model}": msgspec.json.encode(IDLE).decode() for model in models or (0,)}


def told_asleep(running: Box, number: int = 0) -> bool:
    row = running.server.prepared.board.scale.read(number)
    return row is not None and row.asleep


async def asleep(running: Box, number: int = 0) -> None:
    await running.until(
        lambda: (
            model(running, number).state == "sleeping"
            and not running.server.fleet.models[number].pool.workers
        ),
        "the model sleeps",
    )


async def up(running: Box, count: int, number: int = 0) -> None:
    await running.until(
        lambda: (
            (model(running, number).workers, model(running, number).workers_up) == (count, count)
        ),
        f"{count} workers are up",
    )


def box_of_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    chat: dict[str, Any],
    vectors: dict[str, Any],
) -> AbstractAsyncContextManager[Box]:
    """Two models on two cores, each with what its table says."""
    path = "/nowhere/fake.gguf"
    tables = (
        ModelEntry(name="chat", path=path, **chat),
        ModelEntry(name="vectors", path=path, **vectors),
    )
    return box(
        tmp_path,
        monkeypatch,
        settings=Settings(models=tables, shutdown_grace_s=5),
        models=("chat", "vectors"),
        cores=2,
        modes=modes(0, 1),
    )


async def ticks(running: Box) -> None:
    """A second passes: some ticks."""
    since_s = running.server.status().uptime_s
    await running.until(lambda: running.server.status().uptime_s > since_s + 1, "ticks have passed")


async def test_an_idle_model_sleeps_and_wakes_from_the_weights_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(idle_timeout_s=0.3, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        await asleep(running)
        assert running.server.status().state == "ready"
        assert told_asleep(running)
        (held,) = running.server.fleet.fork_servers()
        pid = held.pid
        load(running, requests=1, in_flight=1)
        running.tell("wake-0", "now")
        await up(running, 1)
        running.tell("wake-0", "")
        await running.until(lambda: not told_asleep(running), "the gateway knows")
        assert held.pid == pid
        load(running)
        await asleep(running)
        told = running.kinds("autoscale")
        assert told[0] == "sleeps, workers 1 -> 0: no request for 0.3 s"
        assert told[1] == "wakes, workers 0 -> 1: a request has come"


async def test_no_request_waits_for_a_model_that_is_taken_down_while_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(idle_timeout_s=0.3, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        await asleep(running)
        running.tell("worker-0", "mute")
        load(running, requests=2, in_flight=1)
        running.tell("wake-0", "now")
        await running.until(lambda: running.server.fleet.workers, "it wakes")
        running.tell("wake-0", "")
        assert told_asleep(running)
        await running.server.drain(0, None)
        await running.until(lambda: not told_asleep(running), "nobody is told to wait")


async def test_a_retiring_server_wakes_a_model_for_a_request_that_it_still_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(idle_timeout_s=0.3, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        await asleep(running)
        running.server.operations.stopping = True
        running.tell("wake-0", "now")
        await up(running, 1)


async def test_figures_that_no_gateway_counts_do_not_end_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(min_workers=1, max_workers=2, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        load(running, requests=2, work_s=1e308, backlog_s=1e308)
        await ticks(running)
        load(running, **FLOOD)
        await up(running, 2)


async def test_what_an_operator_has_taken_down_stays_so_and_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscale, "COOLDOWN_S", 0.3)
    settings = Settings(max_workers=3, min_workers=0, idle_timeout_s=3600, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, workers=3, modes=modes()) as running:
        server = running.server
        load(running, **FLOOD)
        await up(running, 3)
        await server.drain(0, None)
        load(running, requests=9)
        await running.until(lambda: model(running).workers == 2, "one goes that was up")
        pool = server.fleet.models[0].pool
        assert [(i, want.up) for i, want in pool.desired.members().items()] == [
            (0, False),
            (1, True),
        ]
        await server.drain(1, None)
        pool.desired.settings = msgspec.structs.replace(settings, idle_timeout_s=0.2)
        seen = running.kinds("autoscale")
        await ticks(running)
        assert running.kinds("autoscale") == seen


async def test_a_model_sleeps_beside_a_worker_that_is_taken_down_until_that_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(min_workers=0, idle_timeout_s=1.0, idle_unload=True, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        load(running, **FLOOD)
        await up(running, 2)
        await running.server.drain(0, None)
        load(running)
        await running.until(lambda: told_asleep(running), "it sleeps")
        await running.until(lambda: not running.server.fleet.fork_servers(), "it unloads")
        await running.until(lambda: list(running.server.fleet.workers) == [0], "it stays")
        assert (await running.server.resume(0)) == "worker 0 is up"
        await running.until(lambda: not told_asleep(running), "the gateway knows")


async def test_a_reload_says_how_many_workers_there_may_be_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(workers=1, min_workers=1, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, workers=1, modes=modes()) as running:
        pool = running.server.fleet.models[0].pool
        pool.desired.settings = msgspec.structs.replace(settings, workers=2)
        load(running, **FLOOD)
        await up(running, 2)


async def test_a_gateway_that_was_silent_is_not_taken_to_have_got_all_its_work_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"requests": 900, "work_s": 5000.0, "in_flight": 2}
    started = {"load-0": msgspec.json.encode(figures).decode()}
    settings = Settings(max_workers=2, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=started) as running:
        await ticks(running)
        fresh_ns = autoscaling.FRESH_NS
        for heard_ns in (0, fresh_ns):
            monkeypatch.setattr(autoscaling, "FRESH_NS", heard_ns)
            await ticks(running)
        assert running.kinds("autoscale") == []


async def test_a_model_that_unloads_loads_its_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(idle_timeout_s=0.3, idle_unload=True, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        await asleep(running)
        await running.until(
            lambda: not running.server.fleet.fork_servers(), "the weights are given up"
        )
        assert running.server.status().state == "ready"
        load(running, requests=2, queue_depth=1)
        await up(running, 1)
        assert model(running).state == "ready"


async def test_workers_follow_the_load_until_an_operator_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(max_workers=3, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, workers=3, modes=modes()) as running:
        server = running.server
        assert (model(running).workers, model(running).scaling) == (1, "auto")
        load(running, **FLOOD)
        await up(running, 3)
        assert "workers 1 -> 3: 8 requests wait, 60.0 s of work" in running.kinds("autoscale")
        said = await server.scale(2)
        assert said == "2 workers, until `lbhost scale auto`"
        assert (model(running).workers, model(running).scaling) == (2, "pinned")
        seen = len(running.kinds("autoscale"))
        load(running, **{**FLOOD, "requests": 50, "work_s": 900.0})
        assert (await server.restart(1)) == "worker 1 is up again"  # some ticks have passed
        assert len(running.kinds("autoscale")) == seen
        await server.scale("auto")
        await up(running, 3)
        assert model(running).scaling == "auto"


async def test_a_fixed_number_of_workers_cannot_be_given_to_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        assert model(running).scaling == "fixed"
        message = await refused(running.server.scale("auto"), ConflictError)
        assert "set min_workers or max_workers" in message


async def test_models_trade_cores_and_do_not_crowd_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box_of_two(
        tmp_path, monkeypatch, chat={"min_workers": 1}, vectors={"idle_timeout_s": 0.5}
    ) as running:
        cores = [worker.cores for worker in running.server.status().workers]
        assert sorted(cores) == [[0], [1]]
        load(running, 0, **FLOOD)
        await asleep(running, 1)
        await up(running, 2, 0)
        load(running, 1, requests=2, queue_depth=1)
        await up(running, 1, 1)
        await up(running, 1, 0)
        told = running.kinds("autoscale")
        assert "chat: workers 2 -> 1: another model needs the core more" in told
        assert running.server.status().state == "ready"


async def test_a_model_that_fixed_ones_hold_back_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box_of_two(
        tmp_path,
        monkeypatch,
        chat={"min_workers": 1, "weight": 3.0},
        vectors={"workers": 1},
    ) as running:
        assert [one.pool.desired.weight for one in running.server.fleet] == [3.0, 1.0]
        load(running, 0, **FLOOD)
        await running.until(lambda: running.kinds("autoscale"), "it is told")
        await ticks(running)
        (told,) = running.kinds("autoscale")
        assert told.startswith("chat: it would have more workers, but the cores belong to vectors")
        assert (model(running).workers, model(running).min_workers) == (1, 1)


async def test_what_has_no_room_is_told_once_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(more: int) -> None:
        if more > 0:
            raise ConflictError("no memory for that")

    settings = Settings(max_workers=2, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        monkeypatch.setattr(running.server.fleet.models[0], "room", full)
        load(running, **FLOOD)
        await running.until(lambda: running.kinds("autoscale"), "the autoscaler has tried")
        await running.server.restart(0)
        assert running.kinds("autoscale") == ["no more workers: no memory for that"]
        assert model(running).workers == 1


async def test_a_sleeping_model_is_reloaded_and_restarted_like_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(idle_timeout_s=0.3, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        await asleep(running)
        message = await refused(running.server.restart_all(), ConflictError)
        assert "nothing to restart" in message
        assert await running.server.scale(1) == "1 worker, until `lbhost scale auto`"
        assert model(running).state == "ready"
        await running.until(lambda: not told_asleep(running), "the gateway knows")


async def test_nothing_changes_while_the_gateway_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(idle_timeout_s=1.0, max_workers=2, shutdown_grace_s=5)
    async with box(tmp_path, monkeypatch, settings=settings, modes=modes()) as running:
        load(running, **FLOOD)
        await up(running, 2)
        fresh_ns = autoscaling.FRESH_NS
        monkeypatch.setattr(autoscaling, "FRESH_NS", 0)
        load(running)
        seen = len(running.kinds("autoscale"))
        for _ in range(3):
            await running.server.restart(0)
        assert len(running.kinds("autoscale")) == seen
        monkeypatch.setattr(autoscaling, "FRESH_NS", fresh_ns)
        await asleep(running)


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        (
            Settings(max_workers=3, shutdown_grace_s=5),
            Context("fake", "/nowhere/fake.gguf", 512, pinned=True, down=(ONE,)),
        ),
        (
            Settings(workers=2, shutdown_grace_s=5),
            Context("fake", "/nowhere/fake.gguf", 512, workers=1, down=(ONE,)),
        ),
    ],
)
async def test_what_an_operator_has_taken_down_stays_so_in_a_server_that_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, before: Context
) -> None:
    async with box(
        tmp_path, monkeypatch, settings=settings, modes=modes(), before=before
    ) as running:
        fleet = running.server.fleet
        assert fleet.contexts()[0].workers == before.workers
        assert len(fleet.contexts()[0].down) == 1
        assert fleet.contexts()[0].pinned == before.pinned
        down = next(i for i, want in fleet.models[0].pool.desired.members().items() if not want.up)
        await ticks(running)
        assert fleet.workers[down].state is WorkerState.STOPPED
        assert await running.server.resume(down) == f"worker {down} is up"
