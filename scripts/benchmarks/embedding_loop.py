"""A plain loop over llama_cpp, as one without a server writes it: a text at a time, one thread.

Runs as a process of its own, pinned to one core (`python -m benchmarks.embedding_loop MODEL CPU`):
says "ready", then reads a JSON list of texts a line and answers each with a Lap.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy

from benchmarks.bench import BenchError
from lbhost.llama import Vocab
from lbhost.llamacpp import api

TOKENS = 512
"""Of the context: the longest text."""


class Lap(msgspec.Struct, frozen=True):
    """What a list of texts took."""

    texts: int
    elapsed_s: float
    cpu_s: float


class PlainLoop:
    """llama_cpp's defaults but for what embeds: one thread, a context for a text at a time."""

    def __init__(self, model: Path) -> None:
        params = api.llama_model_default_params()
        self._model = api.llama_model_load_from_file(os.fsencode(model), params)
        self._vocab = Vocab(self._model, owned=False)
        context = api.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = TOKENS
        context.n_threads = context.n_threads_batch = 1
        context.embeddings = True
        self._ctx = api.llama_init_from_model(self._model, context)
        self._memory = api.llama_get_memory(self._ctx)
        self._width = int(api.llama_model_n_embd_out(self._model))

    def vector(self, text: str) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]:
        """Of length 1."""
        tokens = self._vocab.tokenize(text, add_bos=True, parse_special=True)
        held = (api.llama_token * len(tokens))(*tokens)  # the batch only points to it
        batch = api.llama_batch_get_one(held, len(tokens))
        if self._memory:
            api.llama_memory_clear(self._memory, False)
        failed = (api.llama_decode if self._memory else api.llama_encode)(self._ctx, batch)
        if failed:
            raise SystemExit(f"llama.cpp cannot compute a text of {len(tokens)} tokens")
        found = numpy.ctypeslib.as_array(api.llama_get_embeddings_seq(self._ctx, 0), (self._width,))
        vector: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]
        vector = found / numpy.linalg.norm(found)
        return vector


def serve(model: Path) -> None:
    """Until stdin ends."""
    loop = PlainLoop(model)
    loop.vector("ready?")
    print("ready", flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        began, cpu = time.monotonic(), time.process_time()
        for text in texts:
            loop.vector(text)
        lap = Lap(len(texts), time.monotonic() - began, time.process_time() - cpu)
        print(msgspec.json.encode(lap).decode(), flush=True)


class Loops:
    """A loop on each core, all at once."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def run(self, texts: Sequence[str]) -> list[Lap]:
        """Every process has an equal part of the texts.

        Raises:
            BenchError: one has ended.
        """
        count = len(self._processes)
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps(texts[number::count]) + "\n")
            process.stdin.flush()
        return [msgspec.json.decode(_line(process), type=Lap) for process in self._processes]


@contextmanager
def loops(model: Path, cores: Sequence[int]) -> Iterator[Loops]:
    """Processes for as long as the block runs.

    Raises:
        BenchError: one did not start.
    """
    with ExitStack() as stack:
        processes: list[subprocess.Popen[str]] = []
        for core in cores:
            command = [sys.executable, "-m", "benchmarks.embedding_loop", str(model), str(core)]
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    cwd=Path(__file__).parent.parent,
                )
            )
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            _line(process)
        yield Loops(processes)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError("a plain loop over llama_cpp has ended")
    return line


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[2])})
    serve(Path(sys.argv[1]))
