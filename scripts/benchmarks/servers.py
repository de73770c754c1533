"""The two servers under test, started, watched until they answer, and stopped by their pid."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.peers import Peers

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
ALIAS = "bench"


class ServerError(Exception):
    """A server did not start, or does not do what it should."""


class Server(NamedTuple):
    """A running server."""

    name: str
    pid: int
    host: str
    port: int
    admin: Path | None
    """lbhost's admin socket."""
    ready_path: str = "/health"
    """What answers 200 once the server is ready."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("lbhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One call of lbhost's admin API.

    Raises:
        ServerError: it was refused.
        OSError: nobody answers.
    """
    if server.admin is None:
        raise ServerError(f"{server.name} has no admin API")
    connection = _UnixConnection(server.admin, START_TIMEOUT_S)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    if response.status >= 300:
        raise ServerError(f"{method} {path}: {response.status} {text.decode(errors='replace')}")
    return json.loads(text)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def lbhost(
    model: Path, *, ctx_size: int, flags: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> Iterator[Server]:
    """`lbhost serve` with its defaults but for the context, in a runtime dir of its own.

    Args:
        before: what comes before the command, such as a program that executes it.

    Raises:
        ServerError: it ended or was not ready in time; the message has its last words.
    """
    own = ("--model", str(model), "--alias", ALIAS, "--ctx-size", str(ctx_size))
    with _serving((*own, *flags), before) as server:
        yield server


@contextmanager
def lbhost_of(config: str, *, before: tuple[str, ...] = ()) -> Iterator[Server]:
    """`lbhost serve` as an lbhost.toml with this text has it.

    Raises:
        ServerError: as `lbhost`.
    """
    with tempfile.TemporaryDirectory(prefix="lbhost-bench-") as folder:
        file = Path(folder) / "lbhost.toml"
        file.write_text(config, encoding="utf-8")
        with _serving(("--config", str(file)), before) as server:
            yield server


@contextmanager
def _serving(flags: tuple[str, ...], before: tuple[str, ...]) -> Iterator[Server]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="lbhost-bench-") as folder:
        runtime = Path(folder) / "run"
        command = [*before, sys.executable, "-m", "lbhost", "serve", "--port", str(port)]
        command += ["--runtime-dir", str(runtime), "--log-format", "json", *flags]
        with process(command, Path(folder) / "log") as pid:
            server = Server("lbhost", pid, "127.0.0.1", port, runtime / "admin.sock")
            wait(server, Path(folder) / "log")
            yield server


def peer_settings(ctx_size: int, slots: int) -> list[str]:
    """What makes llama-server fastest at this load: all cores, a KV stream per slot (its default
    with -np), flash attention, and no prompt cache in RAM: no prompt comes twice here, and
    keeping each would cost it a copy a request.
    """
    threads = str(len(machine.cores()))
    memory = ["-c", str(slots * ctx_size), "--cache-ram", "0"]
    return ["-t", threads, "-np", str(slots), *memory, "-fa", "on", "--no-webui"]


@contextmanager
def llama_server(peers: Peers, model: Path, *, ctx_size: int, slots: int) -> Iterator[Server]:
    """The peer; see peer_settings.

    Raises:
        ServerError: as lbhost's.
    """
    port = free_port()
    command = [str(peers.server), "--model", str(model), "--alias", ALIAS]
    command += ["--host", "127.0.0.1", "--port", str(port), *peer_settings(ctx_size, slots)]
    with (
        tempfile.TemporaryDirectory(prefix="lbhost-bench-") as folder,
        process(command, Path(folder) / "log") as pid,
    ):
        server = Server("llama-server", pid, "127.0.0.1", port, None)
        wait(server, Path(folder) / "log")
        yield server


@contextmanager
def process(command: list[str], log: Path) -> Iterator[int]:
    """A command with its output in `log`, for as long as the block runs. Yields its pid."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,  # Ctrl-C is for the bench, which then stops its servers
        )
    try:
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait(server: Server, log: Path) -> None:
    """Until a server is ready.

    Raises:
        ServerError: it ended, or START_TIMEOUT_S was not enough.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(server):
        if os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise ServerError(f"{server.name} ended at once: {tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{server.name} was not ready in {START_TIMEOUT_S:g} s: {tail(log)}")
        time.sleep(0.05)


def is_ready(server: Server) -> bool:
    """Answers health checks, and with lbhost: all its workers are up."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    try:
        connection.request("GET", server.ready_path)
        if connection.getresponse().status != 200:
            return False
        return server.admin is None or ask(server, "GET", "/status")["state"] == "ready"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def model_id(server: Server) -> str:
    """What a server calls the first model it serves.

    Raises:
        ServerError: it does not say.
        OSError: nobody answers.
    """
    connection = http.client.HTTPConnection(server.host, server.port, timeout=START_TIMEOUT_S)
    try:
        connection.request("GET", "/v1/models")
        listed = json.loads(connection.getresponse().read())
        return str(listed["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{server.name} names no model: {error!r}") from error
    finally:
        connection.close()


def environment() -> dict[str, str]:
    """Ours without settings of lbhost, which would be its server's too."""
    return {name: value for name, value in os.environ.items() if "LBHOST_" not in name}


def tail(log: Path) -> str:
    """The last words in a server's log."""
    return log.read_text(encoding="utf-8", errors="replace").strip()[-400:]
