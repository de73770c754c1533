"""The fork server: `python -m lbhost.worker.fork_server --control-fd N`.

Loads the weights once, repacked for the CPU where that helps, and forks a worker whenever
the supervisor asks for one. The child inherits every page of the weights copy-on-write.
Starts no thread and makes no context: a fork copies only the thread that calls it. What its
libraries and libc read from the environment is the supervisor's to set (supervisor/launcher.py).
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import setproctitle

from lbhost import control, log
from lbhost.board import Board
from lbhost.choices import FlashAttention
from lbhost.errors import LbhostError
from lbhost.guidance import Constraints
from lbhost.linux import anonymous_bytes, bind_memory
from lbhost.llama import Model
from lbhost.machine import cpulist, tree
from lbhost.machine.tree import Roots
from lbhost.sandbox import profiles
from lbhost.weights import parts, unchanged
from lbhost.worker import start


def main() -> int:
    """Serve forks until Stop or until the supervisor is gone."""
    link = start.take_link("lbhost.worker.fork_server")
    setproctitle.setproctitle("lbhost fork server")
    packet = control.receive(link)
    if packet is None:
        return 0
    configure, fds = packet
    if not isinstance(configure, control.Configure):
        raise LbhostError(f"expected Configure, got {type(configure).__name__}")
    settings = configure.settings
    log.configure(settings.log_format, settings.log_level, "fork server")
    return _load_and_fork(link, configure, Board.attach(fds[0]))


def _load_and_fork(link: socket.socket, configure: control.Configure, board: Board) -> int:
    began = time.monotonic()
    if configure.node is not None:
        settle_on(configure.node)
    adapters = [adapter.file.path for adapter in configure.adapters]
    profiles.reader([*parts(Path(configure.model_path)), *adapters], os.environ)
    try:
        with unchanged(configure.files):
            model = Model(configure.model_path, adapters=configure.adapters)
        flash = configure.settings.flash_attention
        if flash is not FlashAttention.AUTO:
            model.flash_attention = flash is FlashAttention.ON
    except LbhostError as error:
        control.send(link, control.Failed(error.message))
        return 1
    # made once here instead of in every child
    constraints = Constraints(model.vocab) if configure.purpose.generates else None
    gc.collect()
    gc.freeze()  # or the children's collections would copy every page that holds an object
    loaded = control.Loaded(
        load_s=time.monotonic() - began,
        weights_bytes=model.weights_bytes,
        n_ctx_train=model.n_ctx_train,
    )
    control.send(link, loaded)
    while True:
        packet = control.receive(link)
        if packet is None:
            return 0
        message, fds = packet
        match message:
            case control.Fork():
                serve = partial(
                    start.serve,
                    board=board,
                    configure=configure,
                    fork=message,
                    model=model,
                    constraints=constraints,
                )
                output = socket.socket(fileno=fds[1]) if message.relayed else None
                _fork_worker(link, socket.socket(fileno=fds[0]), serve, output)
            case control.Stop():
                return 0
            case _:
                log.get().warning("unexpected control message", message=type(message).__name__)


def settle_on(node: int) -> None:
    """Load on the node where the workers will read: memory from there, CPUs from there."""
    bind_memory(node)
    own = cpulist.parse(tree.text(Roots.from_environ(os.environ).node_cpus(node)))
    if cpus := (own or frozenset()) & os.sched_getaffinity(0):
        os.sched_setaffinity(0, cpus)


def _fork_worker(
    link: socket.socket,
    worker_link: socket.socket,
    serve: Callable[[socket.socket], int],
    output: socket.socket | None = None,
) -> None:
    """Fork twice, so that the worker becomes the supervisor's child and waitable there.

    Returns in the fork server only. A fork that the kernel refuses (no memory, too many processes)
    shows at the supervisor as a link that ends without a word; the weights are kept for the next.

    Args:
        output: what its standard output and error are to be; None: ours.
    """
    ours = [worker_link, *([] if output is None else [output])]
    try:
        between = os.fork()
    except OSError as error:
        log.get().error("cannot fork a worker", error=str(error))
        for end in ours:
            end.close()
        return
    if between:
        for end in ours:
            end.close()
        os.waitpid(between, 0)
        return
    code = 1
    try:
        parent = os.getpid()
        if os.fork():
            code = 0
            return
        link.close()
        if output is not None:
            start.write_to(output)
        # Not the supervisor's child yet: it could not wait for us, nor could die_with_parent.
        while os.getppid() == parent:
            time.sleep(0.0002)
        control.send(worker_link, control.Hello(os.getpid(), anonymous_bytes(os.getpid()) or 0))
        code = serve(worker_link)
    except BrokenPipeError:
        code = 0  # the supervisor is gone
    except Exception:  # noqa: BLE001 - a child must never unwind into the fork server's loop
        log.get().exception("worker crashed")
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
