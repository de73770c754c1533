"""From settings to a running server: claims, binds, prepares, runs, cleans up."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from lbhost import config, log
from lbhost.config import Settings
from lbhost.linux import become_subreaper
from lbhost.status import Status
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
    # Until the loop takes over, SIGTERM ends us like Ctrl-C does: by way of the clean-up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The socket comes first: of two servers that start at once, one knows at once.
    path = Path(settings.runtime_dir or config.default_runtime_dir(environ))
    runtime = RuntimeDir.claim(path)
    try:
        with listening.bind(settings.host, settings.port) as listener:
            endpoint = listening.url(listener, settings.host)
            runtime.announce(endpoint)
            prepared = prepare(settings, environ)
            become_subreaper()
            try:
                asyncio.run(_run(prepared, runtime, listener, endpoint, announce))
            finally:
                prepared.sampler.close()
                prepared.gpu_reader.close()
    finally:
        runtime.release()


async def _run(
    prepared: Prepared,
    runtime: RuntimeDir,
    listener: socket.socket,
    endpoint: str,
    announce: Callable[[Status], None],
) -> None:
    supervisor = Supervisor(prepared, runtime, listener, endpoint, announce)
    await supervisor.run()
