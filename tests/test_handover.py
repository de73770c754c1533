"""One real server takes over from another: new limits, another shape, another lbhost."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lbhost.client import AdminClient
from lbhost.status import Status
from serving import KV_BYTES, PATIENCE_S, Server, alive, wait_for

KEY = "the-first-key"
LONG = {"max_tokens": 150, "ignore_eos": True}


class Callers:
    """Clients of a server, while something is done to it; what went wrong for them."""

    def __init__(self, endpoint: str) -> None:
        self.failures: list[str] = []
        self.connected = 0
        self.answered = 0
        self._endpoint = endpoint
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._connect),
            threading.Thread(target=self._ask),
        ]

    @contextmanager
    def calling(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(PATIENCE_S)

    def _connect(self) -> None:
        """New connections, one after the other."""
        host, port = self._endpoint.removeprefix("http://").split(":")
        request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        while not self._over.is_set():
            try:
                with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
                    connection.sendall(request)
                    answer = b""
                    while chunk := connection.recv(65536):
                        answer += chunk
                if b" 200 " not in answer.partition(b"\r\n")[0]:
                    self.failures.append(f"livez: {answer[:100]!r}")
                self.connected += 1
            except OSError as error:
                self.failures.append(f"connection: {error!r}")
            time.sleep(0.01)

    def _ask(self) -> None:
        """Requests on a connection that is kept alive."""
        with httpx2.Client(base_url=self._endpoint, timeout=PATIENCE_S) as client:
            while not self._over.is_set():
                body = {"prompt": "One two three", "max_tokens": 4, "temperature": 0}
                headers = {"authorization": f"Bearer {KEY}"}
                try:
                    answer = client.post("/v1/completions", json=body, headers=headers)
                    if answer.status_code != 200:
                        self.failures.append(f"completion: {answer.status_code} {answer.text}")
                    self.answered += 1
                except httpx2.TransportError as error:
                    self.failures.append(f"completion: {error!r}")


def stream(server: Server, **fields: Any) -> list[dict[str, Any]]:
    return server.stream("Tell me a long story.", **{**LONG, **fields})


def anchored(server: Server, pid: int) -> bool:
    """Whether the first server has ended all but the one that took over."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return children.read_text().split() == [str(pid)]


def cached(server: Server) -> int:
    """Tokens of always the same prompt that nobody had to compute."""
    answer = server.complete(prompt="The river and the clock. " * 30, max_tokens=1, temperature=0)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


CACHED = 100
"""Tokens of that prompt."""


def whole(status: Status) -> bool:
    """Whether the store has so many: on a slow box what it gets first is the prompt's beginning."""
    return status.states.bytes >= CACHED * KV_BYTES


FIRST = "slots = 2\nqueue_size = 50\n"


def begin(server: Server, config: Path) -> None:
    """Every test begins with the same settings, whichever came before."""
    config.write_text(FIRST)
    done = server.cli("reload")
    assert done.returncode == 0, done.stderr
    server.http.headers.pop("authorization", None)
    pid = server.status().pid
    wait_for(lambda: pid == server.process.pid or anchored(server, pid), "one server is left")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("handover")
    config = folder / "lbhost.toml"
    config.write_text(FIRST)
    newer = folder / "newer"
    newer.mkdir()
    server = Server(
        folder / "run",
        *("--config", str(config), "--ctx-size", "512", "--workers", "2"),
        environ={"PYTHONPATH": str(newer)},
    )
    with server:
        yield server, config
    said = server.log.read_text()  # of all servers that have been
    assert "Traceback" not in said
    assert "gateway ended: exit code 0" not in said, "who has retired is not missed"


def test_a_key_and_limits_change_under_streams_and_open_connections(
    shared: tuple[Server, Path],
) -> None:
    server, config = shared
    begin(server, config)
    pids = server.pids()
    running = [server.later(stream, server) for _ in range(2)]
    server.wait(lambda status: sum(w.slots_busy for w in status.workers) == 2, "streams run")
    assert server.complete(max_tokens=1).status_code == 200  # a connection that stays open
    config.write_text(f"slots = 2\nqueue_size = 60\nmax_body_bytes = 2000\napi_key = '{KEY}'\n")
    dry = server.cli("reload", "--dry-run")
    assert (dry.returncode, "queue_size: 50 -> 60 (live)" in dry.stdout) == (0, True), dry.stderr
    done = server.cli("reload")
    assert (done.returncode, done.stdout.strip()) == (
        0,
        "in force: api_key, queue_size, max_body_bytes",
    ), done.stderr
    assert KEY not in done.stdout + dry.stdout + server.log.read_text()
    assert server.complete(max_tokens=1).status_code == 401
    server.http.headers["authorization"] = f"Bearer {KEY}"
    assert server.complete(max_tokens=1).status_code == 200
    assert server.complete("x" * 3000).status_code == 413
    for events in running:
        assert events.result(PATIENCE_S)[-1] == {"done": True}
    assert server.pids() == pids
    config.write_text("slots = many\n")
    refused = server.cli("reload")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert server.complete(max_tokens=1).status_code == 200


def test_another_shape_takes_over_without_a_lost_request(shared: tuple[Server, Path]) -> None:
    server, config = shared
    begin(server, config)
    before = server.status()
    callers = Callers(server.endpoint)
    with callers.calling(), AdminClient(server.runtime_dir) as admin:
        running = server.later(stream, server)
        server.wait(lambda status: sum(w.slots_busy for w in status.workers) >= 1, "it runs")
        following = admin.events(backlog=1, follow=True)
        next(following)
        config.write_text(f"slots = 3\nalias = 'other'\napi_key = '{KEY}'\n")
        done = server.cli("reload")
        assert done.returncode == 0, done.stderr
        after = server.status()
        assert (after.model, after.workers[0].slots, after.endpoint) == (
            "other",
            3,
            before.endpoint,
        )
        assert after.workers[0].ctx_size == 512
        # The open connection is the old one's, which takes the old key no more, and closes it.
        server.http.headers["authorization"] = f"Bearer {KEY}"
        wait_for(
            lambda: server.complete(max_tokens=1).json()["model"] == "other",
            "a connection of the new one",
        )
        events = running.result(PATIENCE_S)
        told = [event.message for event in following]
        assert any("has taken over" in message for message in told), "why the events end"
        assert events[-1] == {"done": True}
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        wait_for(lambda: anchored(server, after.pid), "the old server has ended what it had")
    assert callers.failures == []
    assert callers.connected > 20
    assert callers.answered > 2
    for pid in (before.gateway.pid, *(w.pid for w in before.workers)):
        assert pid is not None
        assert not alive(pid)


def test_bounds_of_workers_come_by_reload_and_a_pin_goes_along(
    shared: tuple[Server, Path],
) -> None:
    server, config = shared
    begin(server, config)
    callers = Callers(server.endpoint)
    with callers.calling():
        config.write_text(f"{FIRST}min_workers = 1\nmax_workers = 2\n")
        assert "max_workers: default -> 2 (handover)" in server.cli("reload", "--dry-run").stdout
        done = server.cli("reload")
        assert done.returncode == 0, done.stderr
        (model,) = server.status().models
        assert (model.scaling, model.min_workers, model.max_workers) == ("auto", 1, 2)
        assert (model.workers, model.workers_up) == (2, 2), "as many as before"
        for command in (("scale", "1"), ("upgrade",)):
            done = server.cli(*command)
            assert done.returncode == 0, done.stderr
            (model,) = server.status().models
            assert (model.scaling, model.workers, model.workers_up) == ("pinned", 1, 1)
    assert callers.failures == []
    assert callers.answered > 2


def test_a_version_that_does_not_start_leaves_the_old_one_serving(
    shared: tuple[Server, Path], tmp_path: Path
) -> None:
    server, config = shared
    begin(server, config)
    pids = server.pids()
    broken = config.parent / "newer" / "lbhost"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise SystemExit('a broken build')\n")
    try:
        refused = server.cli("upgrade")
        assert refused.returncode == 1
        assert "this one goes on" in refused.stderr
    finally:
        (broken / "__init__.py").unlink()
        broken.rmdir()
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but no more than that")
    config.write_text(f"model = '{tmp_path}/bad.gguf'\n")
    refused = server.cli("reload")
    assert refused.returncode == 1
    assert "bad.gguf" in refused.stderr
    assert server.pids() == pids
    assert server.complete(max_tokens=1).status_code == 200


def test_the_installed_lbhost_takes_over_and_the_first_process_stands_for_it(
    tmp_path: Path,
) -> None:
    with Server(tmp_path / "run", "--ctx-size", "256", "--workers", "1") as server:
        first = server.process.pid
        assert cached(server) == 0
        server.wait(whole, "its KV state is kept")
        # The second time the signal is passed on; the third one's server before has ended, too.
        for _ in range(3):
            before = server.status().pid
            callers = Callers(server.endpoint)
            with callers.calling():
                server.process.send_signal(signal.SIGUSR2)
                server.wait(lambda status, old=before: status.pid != old, "another one serves")  # type: ignore[misc]
                server.wait(lambda status: status.state == "ready", "it is ready")
                wait_for(lambda: anchored(server, server.status().pid), "the one before is gone")
            assert callers.failures == []
            server.wait(whole, "KV states have come along")
            assert cached(server) >= CACHED  # by a worker that has computed nothing of it
        assert "starting it again" not in server.log.read_text(), "an end as it should be"
        pids = server.pids()
        assert first not in pids
        running = server.later(stream, server, max_tokens=20)
        server.wait(lambda status: sum(w.slots_busy for w in status.workers) >= 1, "it runs")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
        assert running.result(PATIENCE_S)[-1] == {"done": True}
        assert not any(alive(pid) for pid in pids)
        assert not server.runtime_dir.exists()


def test_what_takes_over_dies_with_the_process_that_stands_for_it(tmp_path: Path) -> None:
    with Server(tmp_path / "run", "--ctx-size", "256", "--workers", "1") as server:
        for _ in range(2):  # the second one's parent is the server before it for a while
            assert server.cli("upgrade").returncode == 0
            pids = server.pids()
            assert server.process.pid not in pids
            wait_for(lambda: anchored(server, server.status().pid), "the one before is gone")
        server.process.kill()
        server.process.wait(PATIENCE_S)
        wait_for(lambda: not any(alive(pid) for pid in pids), "all are gone")
