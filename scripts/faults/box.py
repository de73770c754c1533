"""The server under test: started, looked into, broken, started again; and what it must not leak."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from benchmarks import servers
from lbhost.status import Status, WorkerStatus

READY_S = 120.0
SETTLE_S = 30.0
ORPHANS_S = 1.0
"""After which nothing of a killed server may be left."""

_SPARE_FDS = 4
"""Descriptors that a process may have more than at first: a connection that is just closing."""

_STATES = "/memfd:lbhost-state"
"""What the prefix store holds on purpose, under its own budget."""


class BoxError(Exception):
    """The server does not start, or does not answer. One line."""


class Holdings(NamedTuple):
    """What the server's processes hold."""

    processes: int
    states: int
    """Of the prefix store, in shared memory."""
    descriptors: dict[str, int]
    """By role; the most that one process of the role has."""


class Box:
    """`lbhost serve` on one port and one runtime directory."""

    def __init__(
        self,
        folder: Path,
        model: Path | None,
        flags: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """
        Args:
            model: None: the flags name a configuration that has models.
            environ: beside ours.
            log: where its output goes, if not to a file in `folder`.
        """
        self._environ = environ or {}
        self._folder = folder
        self.log = log or folder / "log"
        self._model = model
        self._flags = flags
        self._port = servers.free_port()
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self.seen: set[int] = set()
        """Every process that was found."""
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.admin = servers.Server(
            "lbhost", 0, "127.0.0.1", self._port, folder / "run" / "admin.sock"
        )

    @property
    def pid(self) -> int:
        if self._child is None:
            raise BoxError("the server was not started")
        return self._child.pid

    async def start(self, *, to_pipe: bool = False) -> None:
        """Start it and wait until it is ready.

        Args:
            to_pipe: stdout and stderr go to a pipe, which `close_pipe` closes.

        Raises:
            BoxError: it ended, or was not ready in READY_S.
        """
        command = [sys.executable, "-m", "lbhost", "serve"]
        if self._model is not None:
            command += ["--model", str(self._model)]
        command += ["--port", str(self._port), "--runtime-dir", str(self._folder / "run")]
        command += ["--log-format", "json", *self._flags]
        with self.log.open("ab") as log:
            output = log.fileno()
            if to_pipe:
                self._pipe, output = os.pipe()
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**servers.environment(), **self._environ},
                start_new_session=True,
            )
            if to_pipe:
                os.close(output)
        await self.ready()

    async def ready(self) -> None:
        """Raises BoxError."""
        await self.until(lambda status: status.state == "ready", "it is ready", READY_S)

    async def stop(self) -> None:
        """End it, by force if need be."""
        if self._child is not None:
            # not SIGINT, which a shell has its background jobs ignore, and the server with them
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                if self._child.poll() is None:
                    self._child.send_signal(number)
                    await asyncio.to_thread(_wait, self._child, 10.0)
        self.close_pipe()

    async def killed(self) -> None:
        """Wait for the end of the server after a signal."""
        if self._child is not None:
            await asyncio.to_thread(_wait, self._child, READY_S)

    def close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    # --- looking ------------------------------------------------------------------------------

    def try_status(self) -> Status | None:
        try:
            answer = servers.ask(self.admin, "GET", "/status")
        except (OSError, servers.ServerError, ValueError):
            return None
        status = msgspec.convert(answer, Status, strict=False)
        self.seen |= {process.pid for process in self._processes()}
        return status

    async def status(self) -> Status:
        """Raises BoxError when nobody answers."""
        status = await asyncio.to_thread(self.try_status)
        if status is None:
            raise BoxError("the admin socket does not answer")
        return status

    async def until(
        self, condition: Callable[[Status], bool], what: str, within_s: float
    ) -> Status:
        """Raises BoxError unless it comes true in time."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            status = await asyncio.to_thread(self.try_status)
            if status is not None and condition(status):
                return status
            if self._child is not None and self._child.poll() is not None:
                raise BoxError(f"the server ended: {self.tail()}")
            await asyncio.sleep(0.05)
        raise BoxError(f"not within {within_s:g} s: {what}")

    async def up(self) -> list[WorkerStatus]:
        """The workers that take work."""
        return [worker for worker in (await self.status()).workers if worker.state == "ready"]

    async def post(self, path: str, body: dict[str, object] | None = None) -> str | None:
        """An operator's command; None when it was done, else why not."""
        try:
            await asyncio.to_thread(servers.ask, self.admin, "POST", path, body or {})
        except (OSError, servers.ServerError) as error:
            return str(error)
        return None

    def tail(self) -> str:
        return servers.tail(self.log)

    async def settled(self) -> None:
        """Wait until a server that another has taken over from has ended what it had.

        Raises:
            BoxError: it did not in READY_S.
        """
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            pid = (await self.status()).pid
            if pid == self.pid:
                return
            if [child.pid for child in psutil.Process(self.pid).children()] == [pid]:
                return
            await asyncio.sleep(0.1)
        raise BoxError(f"not within {READY_S:g} s: the former server has ended")

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    # --- leaks --------------------------------------------------------------------------------

    def sizes(self) -> list[tuple[str, int, int, int]]:
        """(role, pid, RSS in bytes, descriptors but for states) of each process."""
        found: list[tuple[str, int, int, int]] = []
        for process in self._processes():
            try:
                role = "supervisor" if process.pid == self.pid else process.name()
                count, _ = _descriptors(process.pid)
                found.append((role, process.pid, process.memory_info().rss, count))
            except (psutil.NoSuchProcess, OSError):
                continue  # it has just ended
        return found

    def holdings(self) -> Holdings:
        processes = self._processes()
        if any(process.ppid() == self.pid and _serves(process) for process in processes):
            processes = processes[1:]  # the first server only waits for who took over from it
        most: dict[str, int] = {}
        states: set[int] = set()
        for process in processes:
            try:
                role = process.name()
                count, found = _descriptors(process.pid)
            except (psutil.NoSuchProcess, OSError):
                continue
            most[role] = max(most.get(role, 0), count)
            states |= found
        return Holdings(len(processes), len(states), most)

    async def leaks(self, before: Holdings) -> list[str]:
        """What has not come back to where it was, after SETTLE_S at most. One line each."""
        end = time.monotonic() + SETTLE_S
        while True:
            found = await self._leaks(before)
            if not found or time.monotonic() > end:
                return found
            await asyncio.sleep(0.2)

    async def _leaks(self, before: Holdings) -> list[str]:
        status = await self.status()
        found = [f"worker {w.id}: a slot is busy" for w in status.workers if w.slots_busy]
        if status.traffic.in_flight or status.traffic.queue_depth:
            found.append(f"{status.traffic.in_flight} requests are in flight")
        now = await asyncio.to_thread(self.holdings)
        if now.processes > before.processes:
            found.append(f"{now.processes} processes, {before.processes} before")
        if now.states > status.states.entries:
            found.append(f"{now.states} states in memory, and {status.states.entries} in the store")
        for role, count in now.descriptors.items():
            had = before.descriptors.get(role)
            if had is not None and count > had + _SPARE_FDS:
                found.append(f"{role}: {count} descriptors, {had} before")
        return found + self.orphans()

    async def left(self) -> list[str]:
        """Orphans that are there after ORPHANS_S, too."""
        end = time.monotonic() + ORPHANS_S
        while (found := await asyncio.to_thread(self.orphans)) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return found

    def orphans(self) -> list[str]:
        """Processes that were the server's, and live without it."""
        own = {process.pid for process in self._processes()}
        return [f"process {pid} lives on" for pid in self.seen - own if _is_ours(pid)]


def _descriptors(pid: int) -> tuple[int, set[int]]:
    """How many a process has open, but for the states of the prefix store; and those, by inode.

    Raises:
        OSError: it has ended.
    """
    count = 0
    states: set[int] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(entry.readlink()).startswith(_STATES):
                states.add(entry.stat().st_ino)
            else:
                count += 1
        except FileNotFoundError:
            continue
    return count, states


def _serves(process: psutil.Process) -> bool:
    """Whether it is a server that has taken over."""
    try:
        return bool(process.cmdline()[1:5] == ["-P", "-m", "lbhost", "serve"])
    except psutil.NoSuchProcess:
        return False


def _is_ours(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(
            process.name().startswith("lbhost") and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return
