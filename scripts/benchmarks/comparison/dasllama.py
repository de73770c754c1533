"""dasLLAMA (PyPI), in an environment of its own under the cache folder. Only installs it there."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from benchmarks import machine, peers
from benchmarks.servers import ServerError

INSTALL_TIMEOUT_S = 600


def command(model: Path, ctx_size: int, streams: int) -> list[str]:
    """How it is started; it takes --host and --port.

    Raises:
        ServerError: it cannot be installed here.
    """
    threads = str(len(machine.cores()))
    program = str(_installed() / "bin" / "dasllama-server")
    return [program, "-m", str(model), "--ctx", str(ctx_size), "-s", str(streams), "-t", threads]


def _installed() -> Path:
    folder = peers.cache_folder() / "dasllama"
    with (peers.cache_folder() / "dasllama.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _install(folder)
            (folder / "done").touch()
    return folder


def _install(folder: Path) -> None:
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "dasllama"],
    )
    for step in steps:
        done = subprocess.run(
            step, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise ServerError(f"dasLLAMA cannot be installed: {lines[-1]}")
