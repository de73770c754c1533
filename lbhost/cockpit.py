"""`lbhost serve --tui`: the server as a child process, the dashboard in the terminal.

The server's log goes to a file in the runtime dir, since the dashboard owns the screen: it is
appended to and kept, with one older file beside it. When the dashboard ends, the server is
stopped gracefully; if this process dies, so does the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lbhost.client import AdminClient
from lbhost.config import Settings
from lbhost.errors import LbhostError, ServerGoneError, StartupError
from lbhost.folders import default_runtime_dir
from lbhost.linux import die_with_parent
from lbhost.supervisor import runtime

LOG_NAME = "server.log"
OLD_LOG_NAME = "server.log.1"
LOG_LIMIT = 4 * 1024 * 1024
"""A start finds at most so many bytes in the log, or begins a new one and keeps this one."""
POLL_S = 0.1
BEYOND_GRACE_S = 15.0


def _in_child() -> None:
    die_with_parent(signal.SIGTERM)


def run(settings: Settings, arguments: Sequence[str], dashboard: Callable[..., int]) -> int:
    """Start the server, show the dashboard until it is quit, stop the server.

    Args:
        arguments: of `serve`, without `--tui`.
        dashboard: takes the runtime dir; `stops_server` says that its end is the server's.

    Raises:
        StartupError: the server does not start (the last line of its log), or one runs already.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LbhostError("serve --tui needs a terminal; without one, leave --tui out")
    where = settings.runtime_dir or default_runtime_dir(os.environ)
    runtime_dir = runtime.prepare(Path(where))
    runtime.require_free(runtime_dir)  # before its log is touched
    log = runtime_dir / LOG_NAME
    begin = _rotated(log)
    sys.stderr.write(f"starting the server; its log is {log}\n")
    with log.open("ab") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "lbhost", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "LBHOST_TUI": "0"},
            process_group=0,
            preexec_fn=_in_child,
        )
    try:
        _wait_for(server, runtime_dir, log, begin)
        code = dashboard(runtime_dir, stops_server=True)
    finally:
        _stop(server, settings.shutdown_grace_s)
    how = "has stopped" if server.returncode == 0 else f"ended with code {server.returncode}"
    sys.stderr.write(f"the server {how}; its log is {log}\n")
    return code if server.returncode == 0 else 1


def _rotated(log: Path) -> int:
    """Move a log that has grown too long aside; where in the log this start's lines begin."""
    try:
        found = log.stat().st_size
    except FileNotFoundError:
        return 0
    if found <= LOG_LIMIT:
        return found
    log.replace(log.with_name(OLD_LOG_NAME))
    return 0


def _wait_for(server: subprocess.Popen[bytes], runtime_dir: Path, log: Path, begin: int) -> None:
    """Until the server answers on its admin socket; the dashboard shows the rest."""
    while server.poll() is None:
        try:
            with AdminClient(runtime_dir) as client:
                if client.status().pid == server.pid:
                    return
        except ServerGoneError:
            time.sleep(POLL_S)  # not yet
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    raise StartupError(last.removeprefix("lbhost: ") or "the server ended at once")


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> None:
    if server.poll() is None:
        sys.stderr.write(f"stopping; running requests have {grace_s:g} s to finish\n")
        server.terminate()
    try:
        server.wait(grace_s + BEYOND_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        server.send_signal(signal.SIGINT)  # at once; a SIGTERM may count as the first one's echo
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(BEYOND_GRACE_S)
        server.kill()
        server.wait()
