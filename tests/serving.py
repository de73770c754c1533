"""Runs the real `lbhost serve` for the end-to-end tests and cleans up after it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx2
import msgspec
import psutil

from lbhost.status import Status, WorkerStatus

T = TypeVar("T")
PATIENCE_S = 300.0
"""Generous: the machines that run the tests are shared and slow. Nothing waits this long."""
KV_BYTES = 23_040
"""Of a token of the starter model."""


def wait_for(probe: Callable[[], T], what: str, *, within_s: float = PATIENCE_S) -> T:
    """The first truthy answer of `probe`, asked until then.

    Raises:
        AssertionError: there was none in time.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if answer := probe():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cpu_affinity(pid: int) -> set[int]:
    return os.sched_getaffinity(pid)


class Server:
    """A running `lbhost serve` with its endpoint, admin socket and process tree."""

    def __init__(
        self,
        runtime_dir: Path,
        *args: str,
        environ: dict[str, str] | None = None,
        output: int | None = None,
        before: Sequence[str] = (),
    ):
        """
        Args:
            output: a descriptor for stdout and stderr instead of a log file.
            before: a command that runs the server, such as one that sets limits.
        """
        self.runtime_dir = runtime_dir
        self.log = runtime_dir.with_name(runtime_dir.name + ".log")
        command = [
            *before,
            *(sys.executable, "-m", "lbhost", "serve"),
            *("--port", "0", "--runtime-dir", str(runtime_dir), "--log-format", "json"),
            *args,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=log if output is None else output,
                env={**os.environ, **(environ or {})},
            )
        self.admin = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(runtime_dir / "admin.sock")),
            base_url="http://lbhost",
            timeout=PATIENCE_S,
        )
        self._pool = ThreadPoolExecutor(32)
        self.endpoint = ""

    def __enter__(self) -> Server:
        try:
            self.wait(lambda status: status.state == "ready", "the server is ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.endpoint = self.status().endpoint
        self.http = httpx2.Client(base_url=self.endpoint, timeout=PATIENCE_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.admin.close()
        if self.endpoint:
            self.http.close()
        self._pool.shutdown(cancel_futures=True)
        if kind is not None:
            print(self.log.read_text()[-8000:])  # noqa: T201 - pytest shows it with the failure

    # --- looking -------------------------------------------------------------------------

    def status(self) -> Status:
        answer = self.admin.get("/status")
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=Status)

    def try_status(self) -> Status | None:
        if not self._listens():
            # httpcore leaves a socket open when it cannot connect, and warnings are errors.
            assert self.process.poll() is None, f"serve ended: {self.log.read_text()[-4000:]}"
            return None
        try:
            return self.status()
        except httpx2.TransportError:
            assert self.process.poll() is None, f"serve ended: {self.log.read_text()[-4000:]}"
            return None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.runtime_dir / "admin.sock"))
            except OSError:
                return False
        return True

    def wait(self, condition: Callable[[Status], object], what: str) -> Status:
        def probe() -> Status | None:
            status = self.try_status()
            return status if status is not None and condition(status) else None

        answer = wait_for(probe, what)
        assert answer is not None
        return answer

    def worker(self, worker: int) -> WorkerStatus:
        return next(w for w in self.status().workers if w.id == worker)

    def pids(self) -> set[int]:
        """The supervisor and every process it has started that still runs."""
        status = self.status()
        found = {status.pid, status.gateway.pid}
        found |= {status.template.pid} if status.template else set()
        found |= {w.pid for w in status.workers}
        return {pid for pid in found if pid}

    # --- asking --------------------------------------------------------------------------

    def complete(self, prompt: str = "Once upon a time", **fields: Any) -> httpx2.Response:
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, **fields}
        return self.http.post("/v1/completions", json=body)

    def later(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        return self._pool.submit(call, *args, **kwargs)

    def stream(self, prompt: str = "Once upon a time", **fields: Any) -> list[dict[str, Any]]:
        """All events of a streamed completion. A last one `{"done": True}` stands for [DONE]."""
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "stream": True, **fields}
        events: list[dict[str, Any]] = []
        with self.http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return [{"status": answer.status_code, **msgspec.json.decode(answer.read())}]
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    events.append({"done": True})
                elif line.startswith("data: "):
                    events.append(msgspec.json.decode(line[6:]))
        return events

    def cli(self, *args: str, within_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """`lbhost ARGS` against this server."""
        return subprocess.run(
            [sys.executable, "-m", "lbhost", *args, "--runtime-dir", str(self.runtime_dir)],
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )


@contextmanager
def spinning(cpu: int) -> Iterator[None]:
    """Another program that uses all of one CPU that it can get."""
    burner = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"]
    )
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


def text_of(events: list[dict[str, Any]]) -> str:
    """The text that a completion stream carried."""
    return "".join(choice["text"] for event in events for choice in event.get("choices", ()))


def finished(events: list[dict[str, Any]]) -> bool:
    """Whether a stream ended as it should: a finish reason, then [DONE], and no error."""
    reasons = [c["finish_reason"] for e in events for c in e.get("choices", ())]
    return (
        bool(reasons)
        and reasons[-1] is not None
        and events[-1] == {"done": True}
        and not any("error" in event for event in events)
    )
