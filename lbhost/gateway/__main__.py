"""`python -m lbhost.gateway --control-fd N`: started by the supervisor, never by hand."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
from typing import NoReturn

import setproctitle
import uvloop

from lbhost import control, log, stream
from lbhost.errors import LbhostError, ModelFileError
from lbhost.gateway.gateway import Gateway, Start, receive_start
from lbhost.linux import ignore_stop_signals
from lbhost.llama import Vocab
from lbhost.machine import topology
from lbhost.machine.tree import Roots
from lbhost.weights import unchanged


def main() -> int:
    """Run until Stop (0), or until the supervisor is gone (at once)."""
    parser = argparse.ArgumentParser(prog="python -m lbhost.gateway")
    parser.add_argument("--control-fd", type=int, required=True)
    link = socket.socket(fileno=parser.parse_args().control_fd)
    stream.protect()
    ignore_stop_signals()
    setproctitle.setproctitle("lbhost gateway")
    start = receive_start(link)
    if start is None:
        return 0
    settings = start.configure.settings
    log.configure(settings.log_format, settings.log_level, "gateway")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    try:
        with unchanged(start.configure.weights):
            vocab = Vocab.load(start.configure.model_path)
    except ModelFileError as error:
        control.send(link, control.Failed(error.message))
        return 1
    uvloop.run(_serve(link, start, vocab))
    return 0


async def _serve(link: socket.socket, start: Start, vocab: Vocab) -> None:
    siblings = topology.discover(Roots.from_environ(os.environ)).siblings
    gateway = Gateway(start, vocab, siblings=siblings, on_orphaned=_die)
    gc.collect()
    gc.freeze()
    await gateway.run(link)


def _die() -> NoReturn:
    """Without a supervisor there is nothing to serve for, and nothing to tidy up."""
    os._exit(1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LbhostError as error:
        sys.exit(f"lbhost gateway: {error.message}")
