"""A real supervisor over stand-ins reads its configuration anew."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbhost import model
from lbhost.board import GatewayRow, WorkerState
from lbhost.config import Settings
from lbhost.errors import (
    ConflictError,
    InvalidRequestError,
    LbhostError,
    StartupError,
    UsageError,
)
from lbhost.source import Source
from lbhost.supervisor import successor
from supervising import Box, box, gone, refused

pytestmark = pytest.mark.anyio

S = WorkerState


class File:
    """An lbhost.toml that the tests change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()
        self.source = Source({"shutdown_grace_s": 5.0, "port": 1}, {}, path)

    def write(self, *lines: str) -> None:
        self.path.write_text("\n".join(("workers = 2", *lines)))

    @property
    def settings(self) -> Settings:
        return self.source.load()


@pytest.fixture(autouse=True)
def hang_ups_come() -> Iterator[None]:
    """As in a terminal: under nohup they are ignored, and a server leaves that as it is."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "lbhost.toml")


def queue_limit(running: Box) -> int:
    row: Any = running.server.prepared.board.gateway.read(0)
    assert isinstance(row, GatewayRow)
    return row.queue_limit


async def test_limits_change_under_a_running_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    async with box(
        tmp_path, monkeypatch, settings=file.settings, source=file.source, workers=2
    ) as running:
        before = running.server.gateway.pid, running.pid(0), running.pid(1)
        file.write("queue_size = 77", "api_key = 'hush-hush-hush'")
        dry = await running.server.reload(dry_run=True)
        assert "queue_size: 256 -> 77 (live)" in dry
        assert queue_limit(running) == 256
        said = await running.server.reload()
        assert said == "in force: api_key, queue_size"
        await running.until(lambda: queue_limit(running) == 77, "the gateway has the new limit")
        assert (running.server.gateway.pid, running.pid(0), running.pid(1)) == before
        assert not any("hush-hush" in event.message for event in running.server.events.latest(99))
        assert await running.server.reload() == "nothing has changed"
        # A gateway that comes later begins with what is in force now.
        running.kill(running.server.gateway.pid)
        await running.until(lambda: running.server.gateway.pid not in {None, before[0]}, "again")
        await running.until(lambda: running.server.gateway.state == "ready", "it serves")
        await running.until(lambda: queue_limit(running) == 77, "with the new limit")


async def test_a_configuration_that_is_no_good_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        before = running.pid(0)
        for lines, words in (
            (("queue_size = 0", "nice = 1"), ("queue_size", "0")),
            (("quue_size = 9",), ("quue_size", "queue_size")),
            (("queue_size = ",), ("lbhost.toml",)),
            (("host = '0.0.0.0'", "queue_size = 9"), ("host", "restart")),
            (("memory_limit = '1M'", "queue_size = 9"), ("memory-limit", "raise it")),
        ):
            file.write(*lines)
            message = await refused(running.server.reload(), UsageError)
            assert all(word in message for word in words), message
            assert message in running.kinds("reload")[-1]
        file.path.unlink()
        assert "no such" in await refused(running.server.reload(), UsageError)
        os.mkfifo(file.path)
        assert "not a regular file" in await refused(running.server.reload(), UsageError)
        file.path.unlink()
        assert (queue_limit(running), running.pid(0)) == (256, before)
        file.write("port = 2")  # the flag still wins
        assert await running.server.reload() == "nothing has changed"


async def test_a_dry_run_refuses_what_would_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, but no more than that")
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        before = running.server.gateway.pid, running.pid(0), running.pid(1)
        for lines, words in (
            (("model = '/nowhere/x.gguf'", "queue_size = 9"), "model /nowhere/x.gguf does not"),
            ((f"model = '{bad}'",), "bad.gguf: "),
            (("[[models]]", "name = 'a'", "path = '/nowhere/x.gguf'"), "models[0].path: model /no"),
            (("host = '0.0.0.0'",), "restart"),
            (("queue_size = 0",), "queue_size"),
        ):
            file.write(*lines)
            assert words in await refused(running.server.reload(dry_run=True), LbhostError)
        file.path.write_text("workers = 99")
        assert "99" in await refused(running.server.reload(dry_run=True), InvalidRequestError)
        file.write("model = 'hf:somebody/something'")
        dry = await running.server.reload(dry_run=True)
        assert "hf:somebody/something (handover)\nhf:somebody/something may have to be" in dry
        assert not running.kinds("reload")
        assert (running.server.gateway.pid, running.pid(0), running.pid(1)) == before


async def test_a_dry_run_reads_a_model_that_is_there_and_says_how_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    (there,) = model.starter()
    link = tmp_path / "link.gguf"
    link.symlink_to(there.path)
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        file.write(f"model = '{link}'")
        assert await running.server.reload(dry_run=True) == f"model: starter -> {link} (handover)"
        file.write(f"model = '{link}'", "ctx_size = 1048576")
        assert "trained for" in await refused(running.server.reload(dry_run=True), StartupError)


async def test_settings_that_no_gateway_could_begin_with_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    async with box(
        tmp_path, monkeypatch, settings=file.settings, source=file.source, workers=1
    ) as running:
        before = running.server.gateway.pid

        def origins(count: int) -> str:
            return f"allowed_origins = {[f'http://host-{i:034}' for i in range(count)]}"

        file.write(origins(1000))
        await running.server.reload()
        assert running.server.gateway.pid == before, "what fits is told"
        file.write(origins(2000))
        message = await refused(running.server.reload(), UsageError)
        assert "shorten allowed_hosts or allowed_origins" in message
        assert len(running.server.desired.settings.allowed_origins) == 1000


async def test_what_workers_are_made_with_comes_by_a_rolling_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        before = {running.pid(0), running.pid(1)}
        file.write("nice = 0")
        assert await running.server.reload() == "in force: nice"
        assert not before & {running.pid(0), running.pid(1)}
        assert [running.worker(i).epoch for i in (0, 1)] == [2, 2]


async def test_a_rolling_restart_that_failed_is_due_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        running.tell("worker-2", "fail")  # the spare one
        file.write("nice = 0", "queue_size = 77")
        await refused(running.server.reload(), ConflictError)
        await running.until(lambda: queue_limit(running) == 77, "what needs no restart is in force")
        running.tell("worker-2", "")
        assert await running.server.reload() == "in force: nice"
        assert [running.worker(i).epoch for i in (0, 1)] == [2, 2]
        assert await running.server.reload() == "nothing has changed"


async def test_workers_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        file.path.write_text("workers = 3")
        await running.server.reload()
        await running.state(2, S.READY)
        file.path.write_text("workers = 99\nqueue_size = 9")
        assert "99" in await refused(running.server.reload(), InvalidRequestError)
        assert queue_limit(running) == 256, "nothing of it is in force"
        file.path.write_text("workers = 1")
        await running.server.reload()
        assert list(running.server.fleet.workers) == [0]


async def test_a_hang_up_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    monkeypatch.setattr("lbhost.supervisor.signals.has_terminal", lambda: False)
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        file.write("queue_size = 55")
        os.kill(os.getpid(), signal.SIGHUP)
        await running.until(lambda: queue_limit(running) == 55, "the gateway has the new limit")
        file.write("queue_size = -1")
        os.kill(os.getpid(), signal.SIGHUP)
        await running.until(
            lambda: "got -1" in running.kinds("reload")[-1],
            "the bad file is told of",
        )
        assert not running.server.signals


async def test_a_fault_of_ours_is_told_and_the_next_hang_up_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    monkeypatch.setattr("lbhost.supervisor.signals.has_terminal", lambda: False)

    async def fails() -> str:
        raise RuntimeError("not thought of")

    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        with monkeypatch.context() as broken:
            broken.setattr(running.server, "reload", fails)
            os.kill(os.getpid(), signal.SIGHUP)
            told = "SIGHUP was not obeyed: RuntimeError('not thought of')"
            await running.until(
                lambda: any(told in said for said in running.kinds("server")), "it is told"
            )
        file.write("queue_size = 55")
        os.kill(os.getpid(), signal.SIGHUP)
        await running.until(lambda: queue_limit(running) == 55, "the gateway has the new limit")


async def test_a_reload_that_is_asked_for_while_the_server_starts_waits_until_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    monkeypatch.setattr("lbhost.supervisor.signals.has_terminal", lambda: False)
    async with box(
        tmp_path,
        monkeypatch,
        settings=file.settings,
        source=file.source,
        modes={"gateway": "slow"},
        wait=False,
    ) as running:
        await running.until(lambda: running.server.gateway.pid, "the gateway loads")
        file.write("queue_size = 55")
        os.kill(os.getpid(), signal.SIGHUP)
        await running.state(0, S.READY)
        assert running.kinds("reload") == []
        running.tell("gateway", "")
        await running.until(lambda: queue_limit(running) == 55, "the gateway has the new limit")
        assert running.kinds("reload") == ["reload: queue_size: 256 -> 55 (live)"]


async def test_a_hang_up_of_our_terminal_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File
) -> None:
    there = [True]
    monkeypatch.setattr("lbhost.supervisor.signals.has_terminal", lambda: there[0])
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        there[0] = False
        os.kill(os.getpid(), signal.SIGHUP)
        await running.until(lambda: running.server.signals, "a signal is noted")
        assert running.server.signals == [signal.SIGHUP]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(600)", "within 0.5 s"),
    ],
)
async def test_a_new_server_that_does_not_start_leaves_the_old_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File, program: str, words: str
) -> None:
    monkeypatch.setattr(successor, "COMMAND", (sys.executable, "-c", program))
    if "within" in words:
        monkeypatch.setattr(successor, "READY_LIMIT_S", 0.5)
    async with box(tmp_path, monkeypatch, settings=file.settings, source=file.source) as running:
        before = running.server.gateway.pid, running.pid(0), running.pid(1)
        for _ in range(2):
            message = await refused(running.server.upgrade(), ConflictError)
            assert words in message
            assert "this one goes on" in message
        file.write("slots = 8")
        assert words in await refused(running.server.reload(), ConflictError)
        assert (running.server.gateway.pid, running.pid(0), running.pid(1)) == before
        assert running.server.status().state == "ready"
        assert (tmp_path / "run/admin.sock").exists()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        await running.until(
            lambda: all(
                gone(int(pid)) or program not in Path(f"/proc/{pid}/cmdline").read_text()
                for pid in children
            ),
            "the new server is gone",
        )
