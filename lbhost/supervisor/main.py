"""From settings to a running server: claims, binds, prepares, runs, cleans up."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from lbhost import config, log
from lbhost.config import Settings
from lbhost.linux import (
    STOP_SIGNALS,
    become_subreaper,
    ignore_stop_signals,
    stop_signals_held,
)
from lbhost.status import Status
from lbhost.supervisor import exposure
from lbhost.supervisor import listener as listening
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.startup import Prepared, prepare
from lbhost.supervisor.supervisor import Supervisor


def serve(
    settings: Settings, environ: Mapping[str, str], announce: Callable[[Status], None]
) -> None:
    """Run a server until it is told to stop.

    Args:
        announce: gets the first status in which requests are answered.

    Raises:
        StartupError, UsageError: it cannot start; nothing is left behind.
    """
    log.configure(settings.log_format, settings.log_level, "supervisor")
    stop = _EarlyStop()
    # The socket comes first: of two servers that start at once, one knows at once.
    path = Path(settings.runtime_dir or config.default_runtime_dir(environ))
    runtime = RuntimeDir.claim(path)
    try:
        with listening.bind(settings.host, settings.port) as listener:
            exposure.check(settings, listener)
            endpoint = listening.url(listener, settings.host)
            runtime.announce(endpoint)
            prepared = prepare(settings, environ)
            become_subreaper()
            try:
                stop.check()
                asyncio.run(_run(prepared, runtime, listener, endpoint, announce))
            finally:
                prepared.sampler.close()
                prepared.gpu_reader.close()
    finally:
        ignore_stop_signals()  # we are ending; a second one must not stop the clean-up
        runtime.release()


class _EarlyStop:
    """Until the loop takes over, stop signals end us like Ctrl-C does: by way of the clean-up.

    What a handler raises is dropped where C code calls Python: llama.cpp's log, while a model is
    read. So the signal is noted as well.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has come."""
        if self._asked:
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt


async def _run(
    prepared: Prepared,
    runtime: RuntimeDir,
    listener: socket.socket,
    endpoint: str,
    announce: Callable[[Status], None],
) -> None:
    supervisor = Supervisor(prepared, runtime, listener, endpoint, announce)
    try:
        await supervisor.run()
    finally:
        _end_undisturbed()


def _end_undisturbed() -> None:
    """No stop signal counts any more. The loop's own end would give each its default action, by
    which the next one (from a service manager to all processes) ends us before the clean-up.
    """
    with stop_signals_held():
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
        ignore_stop_signals()
