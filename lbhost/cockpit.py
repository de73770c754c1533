"""`lbhost serve --tui`: the server as a child process, the dashboard in the terminal.

The server's log goes to a file in the runtime dir, since the dashboard owns the screen. When
the dashboard ends, the server is stopped gracefully; if this process dies, so does the server.
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

from lbhost import config
from lbhost.client import AdminClient
from lbhost.config import Settings
from lbhost.errors import LbhostError, ServerGoneError, StartupError
from lbhost.linux import die_with_parent
from lbhost.supervisor import runtime

LOG_NAME = "server.log"
POLL_S = 0.1
BEYOND_GRACE_S = 15.0


def _in_child() -> None:
    die_with_parent(signal.SIGTERM)


def run(settings: Settings, arguments: Sequence[str], tui: Callable[..., int]) -> int:
    """Start the server, show the dashboard until it is quit, stop the server.

    Args:
        arguments: of `serve`, without `--tui`.
        tui: lbhost_tui's `run`.

    Raises:
        StartupError: the server does not start; the last line of its log.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LbhostError("serve --tui needs a terminal; without one, leave --tui out")
    where = settings.runtime_dir or config.default_runtime_dir(os.environ)
    runtime_dir = runtime.prepare(Path(where))
    log = runtime_dir / LOG_NAME
    sys.stderr.write(f"starting the server; its log is {log}\n")
    with log.open("wb") as output:
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
        _wait_for(server, runtime_dir, log)
        code = tui(runtime_dir)
    finally:
        _stop(server, settings.shutdown_grace_s)
    log.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        runtime_dir.rmdir()
    return code if server.returncode == 0 else 1


def _wait_for(server: subprocess.Popen[bytes], runtime_dir: Path, log: Path) -> None:
    """Until the server answers on its admin socket; the dashboard shows the rest."""
    while server.poll() is None:
        try:
            with AdminClient(runtime_dir) as client:
                if client.status().pid == server.pid:
                    return
        except ServerGoneError:
            time.sleep(POLL_S)
    lines = log.read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    log.unlink(missing_ok=True)
    raise StartupError(last.removeprefix("lbhost: ") or "the server ended at once")


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> None:
    if server.poll() is None:
        sys.stderr.write(f"stopping; running requests have {grace_s:g} s to finish\n")
        server.terminate()
    try:
        server.wait(grace_s + BEYOND_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        server.terminate()  # a second time: at once
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(BEYOND_GRACE_S)
        server.kill()
        server.wait()
