"""The engine without gateway and links, in a process of its own, pinned to one core.

Runs as `python -m benchmarks.alone MODEL CORE NICE`: reads one Ask as JSON a line, answers each
with a number on a line. Ends at end of file. `Alone` is the other side of the pipe.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from benchmarks.bench import BenchError
from lbhost.config import Settings
from lbhost.llama import Model
from lbhost.wire import Sampling, Submit, pack_tokens
from lbhost.worker.context import Context
from lbhost.worker.engine import Engine
from lbhost.worker.sampling import Samplers

SLOTS = 8
CTX_SIZE = 256
_FIRST_WORD = 1000
"""Token ids below are control tokens, bytes and fragments."""


class Ask(msgspec.Struct, frozen=True):
    """What to measure: `decode` and `prefill` answer tokens/s, `ttft` seconds."""

    what: str
    sequences: int
    prompt_tokens: int
    output_tokens: int = 1


class Alone:
    """The engine's process, seen from the bench."""

    def __init__(self, to: IO[bytes], answers: IO[bytes]) -> None:
        self._to = to
        self._answers = answers

    def ask(self, ask: Ask) -> float:
        """Measure once.

        Raises:
            BenchError: the process ended.
        """
        self._to.write(msgspec.json.encode(ask) + b"\n")
        self._to.flush()
        line = self._answers.readline()
        if not line:
            raise BenchError("the engine's process ended; see its last words above")
        return float(line)


@contextmanager
def alone(model: Path, core: int, nice: int = 0) -> Iterator[Alone]:
    """The engine on one core, loaded and warm."""
    command = [sys.executable, "-m", "benchmarks.alone", str(model), str(core), str(nice)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            engine = Alone(process.stdin, process.stdout)
            engine.ask(Ask("decode", SLOTS, 128, 16))
            yield engine
        finally:
            process.kill()


class _Bench:
    def __init__(self, model: Model) -> None:
        context = Context(model, slots=SLOTS, n_ctx=CTX_SIZE, threads=1)
        target_s = Settings().inter_token_target_ms / 1000
        samplers = Samplers(model.vocab)
        self._engine = Engine(context, samplers, model.vocab, target_s=target_s)
        self._rng = random.Random(os.getpid())
        self._n_tokens = model.vocab.n_tokens
        self._requests = 0

    def measure(self, ask: Ask) -> float:
        if ask.what == "decode":
            return self._decode(ask)
        seconds = self._until_first_tokens(ask)
        self._stop()
        return ask.sequences * ask.prompt_tokens / seconds if ask.what == "prefill" else seconds

    def _submit(self, prompt_tokens: int, max_tokens: int) -> None:
        prompt = [self._rng.randrange(_FIRST_WORD, self._n_tokens) for _ in range(prompt_tokens)]
        self._requests += 1
        self._engine.submit(
            0,
            Submit(
                self._requests,
                pack_tokens(prompt),
                max_tokens,
                Sampling(temperature=0.0),
                ignore_eos=True,
            ),
        )

    def _until_first_tokens(self, ask: Ask) -> float:
        """Seconds from the first submit until every sequence has its first token."""
        began = time.monotonic()
        for _ in range(ask.sequences):
            self._submit(ask.prompt_tokens, 1 if ask.what == "prefill" else CTX_SIZE)
        started: set[int] = set()
        while len(started) < ask.sequences:
            started.update(delta.request for _, delta in self._engine.step())
        return time.monotonic() - began

    def _decode(self, ask: Ask) -> float:
        """Tokens/s while all sequences decode and none prefills, over `output_tokens` steps."""
        self._until_first_tokens(ask)
        tokens = 0
        began = time.monotonic()
        for _ in range(ask.output_tokens):
            tokens += sum(len(delta.tokens) for _, delta in self._engine.step())
        seconds = time.monotonic() - began
        self._stop()
        return tokens / seconds

    def _stop(self) -> None:
        self._engine.move_all()
        self._engine.take()


def main(model: str, core: str, nice: str) -> None:
    """Answer until end of file."""
    os.sched_setaffinity(0, {int(core)})
    os.nice(int(nice))
    bench = _Bench(Model(model))
    for line in sys.stdin.buffer:
        print(bench.measure(msgspec.json.decode(line, type=Ask)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
