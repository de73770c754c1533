"""A worker's first moments: who it is, where it runs, its context; then the loop.

Used by the fork server's children (CPU) and by `python -m lbhost.worker` (GPU) alike.
"""

from __future__ import annotations

import argparse
import os
import socket

import setproctitle

from lbhost import control, log, stream
from lbhost.board import Board
from lbhost.errors import StartupError
from lbhost.guidance import Constraints
from lbhost.linux import die_with_parent, ignore_stop_signals
from lbhost.llama import Model
from lbhost.placement.placement import Placement
from lbhost.worker.context import Context
from lbhost.worker.loop import Loop


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
    return link


def serve(
    link: socket.socket,
    board: Board,
    configure: control.Configure,
    fork: control.Fork,
    model: Model,
    constraints: Constraints,
) -> int:
    """Be worker `fork.worker` until told to stop. Returns the exit code.

    The parent must be the supervisor by now: its death kills this process from here on.
    """
    settings = configure.settings
    die_with_parent()
    setproctitle.setproctitle(f"lbhost worker {fork.worker}")
    log.configure(settings.log_format, settings.log_level, f"worker {fork.worker}")
    try:
        _take_place(fork.placement, settings.nice)
        context = Context(
            model, slots=settings.slots, n_ctx=configure.n_ctx, threads=fork.placement.threads
        )
    except StartupError as error:
        control.send(link, control.Failed(error.message))
        return 1
    return Loop(link, board, settings, fork, context, constraints, configure.weights).run()


def _take_place(placement: Placement, nice: int) -> None:
    """Pin to the CPUs and give way to the gateway. Raises StartupError."""
    try:
        os.sched_setaffinity(0, placement.cpus)
    except OSError as error:
        cpus = ",".join(map(str, placement.cpus))
        raise StartupError(f"cannot pin to CPU {cpus}: {error.strerror}") from error
    os.nice(nice)
