"""Workers for the time of one trial: forked with the weights in them, pinned, started together.

Runs in the measuring process only. They are what `serve` starts in all that costs time (fork, CPUs,
context, batch sizes), and nothing of what serves. They are not nice: beside a busy program the
barriers of several threads take seconds then, and what is compared is what the box can do alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import time
from collections.abc import Iterator
from signal import SIGKILL

import msgspec

from lbhost.errors import LbhostError, TuningError
from lbhost.linux import die_with_parent, threads, waited_s
from lbhost.llama import Model
from lbhost.placement.placement import Placement
from lbhost.tuning.shapes import PROMPT_TOKENS, SLOT_TOKENS, Speeds
from lbhost.tuning.trial import MAX_PACKET, Trial
from lbhost.worker.context import CPU_CHUNK, Context, Decoded
from lbhost.worker.embedding_context import EmbeddingContext

TEXT_TOKENS = 32
"""Of a text that an embedding model is measured by."""
_LEAST_CPU = 0.05
"""A worker that got less of its CPUs than this has measured nothing."""


class Window(msgspec.Struct, frozen=True):
    """To a worker: do this for so long, from now on."""

    prefill: bool
    seconds: float


class Done(msgspec.Struct, frozen=True):
    """From a worker: what it did; nothing, for being ready."""

    tokens: int = 0
    elapsed_s: float = 0.0
    waited_s: float = 0.0
    failed: str | None = None


def run(model: Model, trial: Trial) -> Speeds:
    """Prefill and decode, or vectors of texts, with all workers of a trial at once.

    Raises:
        TuningError: a worker could not, and why.
    """
    with _workers(model, trial) as links:
        for link in links:
            _answer(link)
        prefill, waited = _together(links, Window(prefill=True, seconds=trial.window_s))
        if trial.pooling is not None:
            return Speeds(prefill, None, waited)
        decode, also = _together(links, Window(prefill=False, seconds=trial.window_s))
    return Speeds(prefill, decode, max(waited, also))


@contextlib.contextmanager
def _workers(model: Model, trial: Trial) -> Iterator[list[socket.socket]]:
    links: list[socket.socket] = []
    pids: list[int] = []
    gc.freeze()
    try:
        for place in trial.placements:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                links.append(ours)
                pids.append(_fork(theirs, links, model, trial, place))
        yield links
    finally:
        for link in links:
            link.close()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)


def _fork(
    link: socket.socket,
    others: list[socket.socket],
    model: Model,
    trial: Trial,
    place: Placement,
) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent()
        if os.getppid() == parent:
            for other in others:  # or end of file would not reach the workers before
                other.close()
            _work(link, model, trial, place)
    except (OSError, LbhostError) as error:
        with contextlib.suppress(OSError):
            link.send(msgspec.msgpack.encode(Done(failed=str(error))))
    finally:
        os._exit(0)


def _together(links: list[socket.socket], window: Window) -> tuple[float, float]:
    """Tokens a second of all workers, and the part of the time that the worst-off had no CPU."""
    for link in links:
        link.send(msgspec.msgpack.encode(window))
    done = [_answer(link) for link in links]
    total, worst = 0.0, 0.0
    for one in done:
        waited = min(one.waited_s, (1 - _LEAST_CPU) * one.elapsed_s)
        total += one.tokens / (one.elapsed_s - waited)
        worst = max(worst, waited / one.elapsed_s)
    return total, worst


def _answer(link: socket.socket) -> Done:
    data = link.recv(MAX_PACKET)
    if not data:
        raise TuningError("a measured worker has ended")
    done = msgspec.msgpack.decode(data, type=Done)
    if done.failed is not None:
        raise TuningError(done.failed)
    return done


# --- in the worker ------------------------------------------------------------------------


def _work(link: socket.socket, model: Model, trial: Trial, place: Placement) -> None:
    os.sched_setaffinity(0, place.cpus)
    load: _Load | _TextsLoad
    if trial.pooling is None:
        context = Context(model, slots=trial.slots, n_ctx=SLOT_TOKENS, threads=place.threads)
        load = _Load(context)
    else:
        load = _TextsLoad(
            EmbeddingContext(model, pooling=trial.pooling, n_ctx=SLOT_TOKENS, threads=place.threads)
        )
    load.decode()  # touches every weight, and makes the threads
    link.send(msgspec.msgpack.encode(Done()))
    while data := link.recv(MAX_PACKET):
        window = msgspec.msgpack.decode(data, type=Window)
        step = load.prefill if window.prefill else load.decode
        tokens, began_s, waited = 0, time.monotonic(), _waited_s()
        while not tokens or time.monotonic() < began_s + window.seconds:
            tokens += step()
        done = Done(tokens, time.monotonic() - began_s, max(0.0, _waited_s() - waited))
        link.send(msgspec.msgpack.encode(done))


def _waited_s() -> float:
    """Time that this process was ready and had no CPU: its most unlucky thread's, since the others
    wait for that one."""
    return max((waited_s(thread) or 0.0 for thread in threads(os.getpid())), default=0.0)


class _TextsLoad:
    """Batches as the embedding engine makes them: short texts."""

    def __init__(self, context: EmbeddingContext) -> None:
        self._context = context
        self._done = 0

    def prefill(self) -> int:
        """A batch of texts."""
        count = self._context.usual_tokens // TEXT_TOKENS
        texts = [
            _tokens(self._done + TEXT_TOKENS * i, TEXT_TOKENS, self._context.n_vocab)
            for i in range(count)
        ]
        result, _ = self._context.compute(texts)
        if result is not Decoded.OK:
            raise TuningError("llama.cpp cannot compute a batch of this model")
        self._done += TEXT_TOKENS * count
        return TEXT_TOKENS * count

    def decode(self) -> int:
        """The same: there is nothing else to do."""
        return self.prefill()


def _tokens(at: int, count: int, n_vocab: int) -> bytes:
    """Different ones: a mixture of experts must not always ask the same experts."""
    ids = ((7919 * (at + i) + 13) % n_vocab for i in range(count))
    return struct.pack(f"={count}i", *ids)


class _Load:
    """Steps as the engine makes them: a chunk of one prompt, or a token of every slot."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._slot = 0
        self._lengths = [0] * context.slots

    def prefill(self) -> int:
        """A chunk of a prompt; the next slot's when it is whole."""
        slot = self._slot
        if self._lengths[slot] + CPU_CHUNK > PROMPT_TOKENS:
            slot = self._slot = (slot + 1) % self._context.slots
            self._empty(slot)
        self._context.clear()
        self._context.add(slot, self._lengths[slot], self._tokens(CPU_CHUNK), output=True)
        self._decode()
        self._lengths[slot] += CPU_CHUNK
        return CPU_CHUNK

    def decode(self) -> int:
        """One token of every slot."""
        self._context.clear()
        for slot, length in enumerate(self._lengths):
            if length >= SLOT_TOKENS:
                self._empty(slot)
            self._context.add(slot, self._lengths[slot], self._tokens(1), output=True)
        self._decode()
        self._lengths = [length + 1 for length in self._lengths]
        return len(self._lengths)

    def _empty(self, slot: int) -> None:
        self._context.truncate(slot, 0)
        self._lengths[slot] = 0

    def _tokens(self, count: int) -> bytes:
        return _tokens(sum(self._lengths), count, self._context.n_vocab)

    def _decode(self) -> None:
        if self._context.decode() is not Decoded.OK:
            raise TuningError("llama.cpp cannot compute a batch of this model")
