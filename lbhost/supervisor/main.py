"""From settings to a running server: claims, binds, prepares, runs, cleans up."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from lbhost import log
from lbhost.config import Settings
from lbhost.errors import LbhostError
from lbhost.folders import default_runtime_dir
from lbhost.linux import (
    STOP_SIGNALS,
    become_subreaper,
    ignore_stop_signals,
    stop_signals_held,
)
from lbhost.source import Source
from lbhost.status import Status
from lbhost.supervisor import exposure, succession
from lbhost.supervisor import listener as listening
from lbhost.supervisor.early import EarlySignals
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.startup import prepare
from lbhost.supervisor.succession import Context, Inheritance, Refused
from lbhost.supervisor.supervisor import Supervisor


def serve(
    settings: Settings,
    environ: Mapping[str, str],
    announce: Callable[[Status], None],
    source: Source | None = None,
    inheritance: Inheritance | None = None,
) -> None:
    """Run a server until it is told to stop.

    Args:
        announce: gets the first status in which requests are answered.
        source: where the settings came from, to be read again.
        inheritance: what another server gives from which this one is to take over.

    Raises:
        StartupError, UsageError: it cannot start; nothing is left behind.
    """
    log.configure(settings.log_format, settings.log_level, "supervisor")
    early = EarlySignals()
    runtime = _runtime_dir(settings, environ, inheritance)
    try:
        with _listener(settings, inheritance) as listener:
            exposure.check(settings, listener)
            if inheritance is None:
                endpoint = listening.url(listener, settings.host)
                contexts: tuple[Context, ...] = ()
                runtime.announce(endpoint)
            else:
                given = inheritance.given
                endpoint = given.endpoint
                contexts = given.contexts or (Context("", given.model_path, given.n_ctx),)
            prepared = prepare(settings, environ, contexts)
            become_subreaper()
            try:
                early.check()
                supervising = partial(
                    Supervisor,
                    prepared,
                    runtime,
                    listener,
                    endpoint,
                    announce,
                    asked=settings,
                    source=source,
                    inheritance=inheritance,
                    orders=early.orders,
                )
                asyncio.run(_run(supervising))
            finally:
                prepared.sampler.close()
                prepared.gpu_reader.close()
    except LbhostError as error:
        if inheritance is not None:
            succession.send(inheritance.link, Refused(error.message))
        raise
    finally:
        ignore_stop_signals()  # we are ending; a second one must not stop the clean-up
        runtime.release()


def _runtime_dir(
    settings: Settings, environ: Mapping[str, str], inheritance: Inheritance | None
) -> RuntimeDir:
    if inheritance is not None:
        return RuntimeDir.inherit(inheritance.runtime_dir, inheritance.folder)
    # It comes first: of two servers that start at once, one knows at once.
    return RuntimeDir.claim(Path(settings.runtime_dir or default_runtime_dir(environ)))


def _listener(settings: Settings, inheritance: Inheritance | None) -> socket.socket:
    if inheritance is not None:
        return inheritance.listener
    return listening.bind(settings.host, settings.port)


async def _run(supervising: Callable[[], Supervisor]) -> None:
    supervisor = supervising()
    try:
        await supervisor.run()
    finally:
        _end_undisturbed()


def _end_undisturbed() -> None:
    """No stop signal counts any more. The loop's own end would give each its default action, by
    which the next one (from a service manager to all processes) ends us before the clean-up.
    """
    with stop_signals_held():
        for number in (*STOP_SIGNALS, signal.SIGUSR2):
            asyncio.get_running_loop().remove_signal_handler(number)
        ignore_stop_signals()
