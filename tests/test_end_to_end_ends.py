"""How the real server ends, by itself and otherwise, and what it tells whom meanwhile."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIError, AuthenticationError, OpenAI, RateLimitError

from serving import PATIENCE_S, Server, alive, finished, wait_for

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")
_TWO_A_MINUTE = "requests_per_minute = 2"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server whose streams may end however slow the box is."""
    with Server(tmp_path / "run", *SMALL, "--shutdown-grace", "600") as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT])
def test_nothing_outlives_the_supervisor(own: Server, how: signal.Signals) -> None:
    pids = own.pids()
    assert len(pids) == 5
    stopped = own.worker(0).pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    own.process.send_signal(how)
    own.process.wait(PATIENCE_S)
    wait_for(lambda: not any(alive(pid) for pid in pids), "every process is gone")


def test_sigterm_to_every_process_cuts_no_stream(own: Server) -> None:
    streams = [own.later(own.stream, "A story:", max_tokens=100, ignore_eos=True) for _ in range(4)]
    own.wait(lambda s: s.traffic.in_flight == 4, "all run")
    pids = own.pids()
    for _ in range(2):  # as systemd and scripts do: to the process, then to its group
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    assert all(finished(stream.result()) for stream in streams)
    assert own.process.wait(PATIENCE_S) == 0
    assert not any(alive(pid) for pid in pids)
    assert not (own.runtime_dir / "admin.sock").exists()


def kill_a_worker(server: Server, worker: int) -> None:
    """Which is told, and then made good."""
    before = server.worker(worker)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    server.wait(
        lambda s: (
            s.workers[worker].epoch == before.epoch + 1 and s.workers[worker].state == "ready"
        ),
        "the worker is replaced",
    )
    assert server.complete().status_code == 200


def end(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


def test_a_log_that_nobody_reads_any_more_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with Server(tmp_path / "run", *SMALL, output=writing) as server:
        os.close(writing)
        for _ in range(size // 100):  # a request is a line of the log: more than the pipe holds
            server.complete(max_tokens=1)
        kill_a_worker(server, 0)
        os.close(reading)
        kill_a_worker(server, 1)
        end(server)


def test_a_log_on_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with Server(tmp_path / "run", *SMALL, output=full) as server:
        os.close(full)
        kill_a_worker(server, 0)
        end(server)


def test_the_service_manager_is_told_and_children_know_neither_it_nor_the_api_key(
    tmp_path: Path,
) -> None:
    secret = "0123456789-secret"
    address = str(tmp_path / "notify")
    environ = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "30000000",
        "LBHOST_API_KEY": secret,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(60)
        heard = set[str]()

        def until(line: str) -> None:
            while line not in heard:
                heard.update(manager.recv(4096).decode().splitlines())

        with Server(tmp_path / "run", *SMALL, environ=environ) as server:
            until("READY=1")
            until("WATCHDOG=1")
            assert server.complete().status_code == 401
            for pid in server.pids() - {server.process.pid}:
                inherited = Path(f"/proc/{pid}/environ").read_bytes()
                assert b"NOTIFY_SOCKET" not in inherited
                assert secret.encode() not in inherited
            server.process.send_signal(signal.SIGTERM)
            until("STOPPING=1")
            assert server.process.wait(PATIENCE_S) == 0


def test_a_key_that_was_made_while_the_server_runs_comes_in_and_has_its_limits(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.toml"
    file.touch(mode=0o600)
    environ = {"LBHOST_KEYS_FILE": str(file)}
    with Server(tmp_path / "run", *SMALL, "--host", "0.0.0.0", environ=environ) as server:
        made = subprocess.run(
            [sys.executable, "-m", "lbhost", "keys", "new", "app"],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=True,
        )
        key = made.stdout.strip()
        assert key not in file.read_text()
        file.write_text(file.read_text().replace("# requests_per_minute = 60", _TWO_A_MINUTE))
        base = server.endpoint.replace("0.0.0.0", "127.0.0.1")
        with OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0) as client:

            def left() -> str:
                answer = client.completions.with_raw_response.create(
                    model=server.status().model, prompt="Once", max_tokens=4
                )
                return str(answer.headers["x-ratelimit-remaining-requests"])

            def known() -> bool:
                try:
                    answer = client.models.with_raw_response.list()
                except AuthenticationError:
                    return False
                return "x-ratelimit-limit-requests" in answer.headers

            wait_for(known, "the key and its limit are known")
            assert [left(), left()] == ["1", "0"]
            with pytest.raises(RateLimitError) as refused:
                left()
            assert refused.value.code == "rate_limit_exceeded"
        assert '"key":"app"' in server.log.read_text().replace(": ", ":")


def test_streams_cut_off_after_the_grace_get_an_error_event(tmp_path: Path) -> None:
    with Server(tmp_path / "run", *SMALL, "--shutdown-grace", "0.2") as server:
        with OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model=server.status().model,
                prompt="A story:",
                max_tokens=900,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            next(iter(stream))
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(APIError):
                for _ in stream:
                    pass
        assert server.process.wait(PATIENCE_S) == 0
