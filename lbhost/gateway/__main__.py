"""`python -m lbhost.gateway --control-fd N`: started by the supervisor, never by hand."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import setproctitle
import uvloop

from lbhost import control, log, stream
from lbhost.errors import LbhostError, ModelFileError
from lbhost.gateway.gateway import Gateway, Start, receive_start
from lbhost.linux import ignore_stop_signals, oom_score
from lbhost.llama import Vocab
from lbhost.machine import niceness, topology
from lbhost.machine.tree import Roots
from lbhost.sandbox import profiles
from lbhost.tuning import shelf
from lbhost.weights import parts, unchanged


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
    settings = start.settings
    log.configure(settings.log_format, settings.log_level, "gateway")
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    model_files = [file for one in start.models for file in parts(Path(one.model_path))]
    oom_score()  # opened while it may be
    # Before it reads a byte of anybody else's.
    keys_file, writes = settings.keys_file, _written(start)
    profiles.gateway(model_files, os.environ, keys_file=keys_file, writes=writes)
    vocabs, refused = _vocabs(start)
    if all(vocab is None for vocab in vocabs):
        control.send(link, control.Failed(refused[0]))
        return 1
    uvloop.run(_serve(link, start, vocabs, refused))
    return 0


def _vocabs(start: Start) -> tuple[list[Vocab | None], dict[int, str]]:
    """Each model's, and why some are missing: the others are served all the same."""
    found: list[Vocab | None] = []
    refused: dict[int, str] = {}
    for number, model in enumerate(start.models):
        try:
            with unchanged(model.weights):
                found.append(Vocab.load(model.model_path))
        except ModelFileError as error:
            found.append(None)
            refused[number] = error.message
            log.get().error("cannot serve a model", model=model.model_alias, reason=error.message)
    return found, refused


def _written(start: Start) -> list[Path]:
    """The only folders that a gateway writes in: of states, and of vectors of earlier requests."""
    folders = {
        Path(one.settings.state_dir)
        for one in start.models
        if one.purpose.generates and one.settings.state_dir is not None
    }
    keeps = not all(one.purpose.generates for one in start.models)
    if keeps and start.settings.embedding_cache_bytes:
        folder = shelf.folder(os.environ)
        with contextlib.suppress(OSError):  # the cache itself says what is wrong there
            folder.mkdir(parents=True, exist_ok=True)
        folders.add(folder)
    return sorted(folders)


async def _serve(
    link: socket.socket, start: Start, vocabs: list[Vocab | None], refused: dict[int, str]
) -> None:
    roots = Roots.from_environ(os.environ)
    gateway = Gateway(
        start,
        vocabs,
        refused,
        siblings=topology.discover(roots).siblings,
        nice_counts=niceness.counts(roots),
        on_orphaned=_die,
    )
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
