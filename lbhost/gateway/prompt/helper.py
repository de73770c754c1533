"""`python -m lbhost.gateway.prompt.helper --fd N`: a process that parses strangers' long bodies.

One job at a time, in a thread whose stack is large enough for honest long texts and under limits
that the kernel holds: memory, CPU time. What goes over them ends this process, and the gateway
answers for it. Started by the gateway, with neither its descriptors nor its environment.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import setproctitle

from lbhost import log, stream
from lbhost.errors import LbhostError, ModelFileError, PromptError
from lbhost.gateway.prompt.grammars import Grammars
from lbhost.gateway.prompt.helper_messages import (
    LENGTH,
    Answer,
    Begun,
    Failed,
    Prepared,
    Ready,
    Refused,
    Setup,
    Task,
    frame,
)
from lbhost.gateway.prompt.preparation import Preparation
from lbhost.gateway.prompt.prompter import IN_HELPER, Vocabulary
from lbhost.grammar import Grammar
from lbhost.linux import die_with_parent
from lbhost.llama import Vocab
from lbhost.sandbox import profiles
from lbhost.weights import parts

STACK_BYTES = 256 * 1024 * 1024
"""Of the thread that works; only what is touched becomes memory."""

MEMORY_BYTES = 768 * 1024 * 1024
"""Address space that one job may add, beside the stack."""


def main(load: Callable[[str], Vocabulary] = Vocab.load) -> int:
    """Work until the gateway closes the link, or is gone."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m lbhost.gateway.prompt.helper")
    parser.add_argument("--fd", type=int, required=True)
    link = socket.socket(fileno=parser.parse_args().fd)
    stream.protect()
    setproctitle.setproctitle("lbhost prompt helper")
    data = _receive(link)
    if data is None:
        return 0
    setup = msgspec.msgpack.decode(data, type=Setup)
    os.nice(setup.nice)
    log.configure(setup.log_format, setup.log_level, "prompt helper")
    profiles.reader(parts(Path(setup.model_path)), os.environ)
    try:
        vocab = load(setup.model_path)
    except ModelFileError as error:
        link.sendall(frame(Failed(error.message)))
        return 1
    preparation = Preparation(
        vocab,
        setup.n_ctx,
        setup.alias,
        IN_HELPER,
        Grammars(_compile),
        setup.purpose,
        setup.aliases,
    )
    _limit_memory()
    threading.stack_size(STACK_BYTES)
    link.sendall(frame(Ready()))
    while (data := _receive(link)) is not None:
        task = msgspec.msgpack.decode(data, type=Task)
        _limit_cpu(task.cpu_s)
        link.sendall(frame(Begun()))
        link.sendall(frame(_in_thread(preparation, task)))
    return 0


def _compile(grammar: Grammar) -> str:
    from lbhost import guidance  # 4 MB that most helpers never need

    return guidance.check(grammar)


def _in_thread(preparation: Preparation, task: Task) -> Answer:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(_work(preparation, task)))
    thread.start()
    thread.join()
    if not answers:
        raise RuntimeError("the thread that worked on a body ended without an answer")
    return answers[0]


def _work(preparation: Preparation, task: Task) -> Answer:
    try:
        return Prepared(preparation.prepare(task.body, task.kind))
    except LbhostError as error:
        return Refused(type(error).__name__, error.message, error.param)
    except MemoryError:
        return Refused(PromptError.__name__, "this prompt takes too much memory to parse", None)


def _limit_memory() -> None:
    """From here on: a limit on address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + STACK_BYTES + MEMORY_BYTES)


def _limit_cpu(seconds: int) -> None:
    _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + seconds)


def _lower(which: int, value: int) -> None:
    """Set the soft limit; the hard one stays, since the next job's limit may be higher."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard < 0 else min(value, hard), hard))


def _receive(link: socket.socket) -> bytes | None:
    """One frame from the gateway, which is trusted; None at the end."""
    head = _exactly(link, LENGTH.size)
    return None if head is None else _exactly(link, LENGTH.unpack(head)[0])


def _exactly(link: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    got = 0
    while got < size:
        count = link.recv_into(view[got:])
        if count == 0:
            return None
        got += count
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
