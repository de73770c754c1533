"""What happens to the machine or to a server while it is measured. Undone at the end of a block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import machine

QUOTA_CPUS = 1.5
_PERIOD_US = 100_000

_HALF_DUTY = """
import time
while True:
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    time.sleep(0.05)
"""


class DisturbanceError(Exception):
    """This machine does not let itself be disturbed that way; one line."""


@contextmanager
def half_duty(cpu: int) -> Iterator[None]:
    """Another program that computes for 50 ms and sleeps for 50 ms on one core."""
    with subprocess.Popen([sys.executable, "-c", _HALF_DUTY]) as program:
        try:
            os.sched_setaffinity(program.pid, {cpu})
            yield
        finally:
            program.kill()


@contextmanager
def spinning(cpu: int) -> Iterator[None]:
    """Another program that computes all the time on one core."""
    with machine.neighbour(cpu):
        yield


@contextmanager
def stopped_worker(workers: Callable[[], list[int]], after_s: float) -> Iterator[None]:
    """SIGSTOP for the first worker after `after_s`. It goes on at the end, if it still is there.

    Raises:
        DisturbanceError: there is only one, so that nothing could go on.
    """
    pids = workers()
    if len(pids) < 2:
        raise DisturbanceError("it has one worker only: stopped, it does nothing")
    victim = pids[0]
    timer = threading.Timer(after_s, _send, (victim, signal.SIGSTOP))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        _send(victim, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # lbhost has killed and replaced it
        os.kill(pid, number)


@contextmanager
def quota() -> Iterator[tuple[str, ...]]:
    """A cgroup with QUOTA_CPUS; yields what to put before a command that should run in it.

    Raises:
        DisturbanceError: no cgroup can be made here.
    """
    name = f"lbhost-compare-{uuid.uuid4().hex[:8]}"
    try:
        group = _make_group(name)
    except OSError as error:
        raise DisturbanceError(f"no cgroup with a CPU quota can be made here: {error}") from error
    enter = 'echo $$ > "$0" && exec "$@"'
    try:
        yield ("sh", "-c", enter, str(group / "cgroup.procs"))
    finally:
        with suppress(OSError):  # what has just ended may still be counted in it
            group.rmdir()


def _make_group(name: str) -> Path:
    allowed = int(QUOTA_CPUS * _PERIOD_US)
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        group = root / name
        limits = {"cpu.max": f"{allowed} {_PERIOD_US}"}
    else:
        group = root / "cpu" / name
        limits = {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(allowed)}
    group.mkdir()
    try:
        for file, value in limits.items():
            (group / file).write_text(value, encoding="ascii")
    except OSError:
        group.rmdir()
        raise
    return group
