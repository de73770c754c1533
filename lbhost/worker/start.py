"""A worker's first moments: who it is, where it runs, its context; then the loop.

Used by the fork server's children (CPU) and by `python -m lbhost.worker` (GPU) alike.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable

import setproctitle

from lbhost import control, llamacpp, log, stream
from lbhost.board import Board
from lbhost.choices import LogFormat, LogLevel
from lbhost.config import Settings
from lbhost.errors import StartupError
from lbhost.guidance import Constraints
from lbhost.linux import die_with_parent, end_sooner, ignore_stop_signals
from lbhost.llama import Model
from lbhost.placement.placement import Placement
from lbhost.sandbox import profiles
from lbhost.worker.context import Context
from lbhost.worker.crew import Crew
from lbhost.worker.embedding_context import EmbeddingContext
from lbhost.worker.embedding_engine import EmbeddingEngine
from lbhost.worker.engine import Engine
from lbhost.worker.loop import Loop
from lbhost.worker.sampling import Samplers
from lbhost.worker.states import States, identity_of

OOM_SCORE = 200
"""When memory runs out, the kernel should end a worker, whose requests go on in another one, or the
fork server before the gateway or the supervisor; a prompt helper first (helper_process.py)."""


def take_link(prog: str) -> socket.socket:
    """What a process of this folder does first: its control link, from the command line.

    From here on its output cannot stop it, and stop signals are the supervisor's.
    """
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--control-fd", type=int, required=True)
    link = socket.socket(fileno=parser.parse_args().control_fd)
    link.set_inheritable(False)
    stream.protect()
    ignore_stop_signals()
    end_sooner(OOM_SCORE)
    return link


def write_to(output: socket.socket) -> None:
    """Standard output and error lead there from now on."""
    for standard in (1, 2):
        os.dup2(output.fileno(), standard)
    output.close()


def configure_log(settings: Settings, fork: control.Fork) -> None:
    """The log of this worker: what the supervisor reads holds everything, llama.cpp's lines too."""
    form, level = settings.log_format, settings.log_level
    if fork.relayed:
        form, level = LogFormat.JSON, LogLevel.DEBUG
        llamacpp.tell_all()
    log.configure(form, level, f"worker {fork.worker}")


def serve(
    link: socket.socket,
    board: Board,
    configure: control.Configure,
    fork: control.Fork,
    model: Model,
    constraints: Constraints | None,
) -> int:
    """Be worker `fork.worker` until told to stop. Returns the exit code.

    `constraints` are of a model that generates.

    The parent must be the supervisor by now: its death kills this process from here on.
    """
    settings = fork.settings or configure.settings
    die_with_parent()
    setproctitle.setproctitle(f"lbhost worker {fork.worker}")
    configure_log(settings, fork)
    try:
        _take_place(fork.placement, settings.nice)
        if constraints is not None:
            loop = _generating(link, board, configure, fork, model, constraints)
        else:
            loop = _embedding(link, board, configure, fork, model)
    except StartupError as error:
        control.send(link, control.Failed(error.message))
        return 1
    profiles.worker(os.environ, gpu=model.gpu)  # before the first stranger's request
    return loop.run()


def _generating(
    link: socket.socket,
    board: Board,
    configure: control.Configure,
    fork: control.Fork,
    model: Model,
    constraints: Constraints,
) -> Loop:
    settings, threads = configure.settings, fork.placement.threads
    context = Context(model, slots=settings.slots, n_ctx=configure.n_ctx, threads=threads)

    def engine(before_step: Callable[[float], None]) -> Engine:
        return Engine(
            context,
            Samplers(model.vocab, constraints),
            model.vocab,
            target_s=settings.inter_token_target_ms / 1000,
            cpu_clock=_cpu_clock(model),
            before_step=before_step,
            fallback_token_s=_fallback_token_s(model),
            crew=Crew(threads, context.set_threads),
            states=States(context, identity_of(model, configure.weights, context.slots)),
            gains=configure.gains,
        )

    return Loop(link, board, fork, context, engine)


def _embedding(
    link: socket.socket,
    board: Board,
    configure: control.Configure,
    fork: control.Fork,
    model: Model,
) -> Loop:
    pooling, threads = configure.purpose.pooling, fork.placement.threads
    assert pooling is not None
    context = EmbeddingContext(model, pooling=pooling, n_ctx=configure.n_ctx, threads=threads)

    def engine(before_step: Callable[[float], None]) -> EmbeddingEngine:
        return EmbeddingEngine(
            context,
            cpu_clock=_cpu_clock(model),
            before_step=before_step,
            fallback_token_s=_fallback_token_s(model),
            crew=Crew(threads, context.set_threads),
        )

    return Loop(link, board, fork, context, engine)


def _cpu_clock(model: Model) -> Callable[[], float]:
    return time.monotonic if model.gpu else time.thread_time


def _fallback_token_s(model: Model) -> float:
    """A token's expected seconds while nothing is measured."""
    return model.weights_bytes / 1e10


def _take_place(placement: Placement, nice: int) -> None:
    """Pin to the CPUs and give way to the gateway. Raises StartupError."""
    try:
        os.sched_setaffinity(0, placement.cpus)
    except OSError as error:
        cpus = ",".join(map(str, placement.cpus))
        raise StartupError(f"cannot pin to CPU {cpus}: {error.strerror}") from error
    os.nice(nice)
    _take_session()


def _take_session() -> None:
    """Have a session of its own.

    Where the kernel shares cores out by session (autogroup), one session's weight is split over the
    cores that its processes compute on. With all workers in the server's, the one beside a busy
    program got a third of its core, and less the more workers computed elsewhere; so it gets half.
    """
    if os.getpgrp() != os.getpid():  # a GPU's worker leads a group already, and may not
        os.setsid()
