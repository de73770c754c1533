"""llama-batched-bench: llama.cpp's engine without a server around it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import BenchError

_TIMEOUT_S = 600

_LEAST_CONTEXT = 2048
"""Tokens of all sequences together."""


class Shape(NamedTuple):
    """What one process computes."""

    cores: tuple[int, ...]
    """CPUs it is pinned to, with a thread on each."""
    batch: int
    """Sequences: first all their prompts, then their outputs together."""
    prompt_tokens: int
    output_tokens: int


class Result(NamedTuple):
    """What it said."""

    prefill_tok_s: float
    decode_tok_s: float
    seconds: float
    """For the whole batch."""


def run(program: Path, model: Path, shapes: Sequence[Shape]) -> list[Result]:
    """A process for each shape, all at once. A stream per sequence and flash attention, as lbhost.

    Raises:
        BenchError: one failed.
    """
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    _command(program, model, shape),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for shape in shapes
        ]
        for process in processes:
            stack.callback(process.kill)
        return [_result(process) for process in processes]


def _command(program: Path, model: Path, shape: Shape) -> list[str]:
    threads = str(len(shape.cores))
    tokens = shape.batch * (shape.prompt_tokens + shape.output_tokens)
    return [
        *("taskset", "-c", ",".join(map(str, shape.cores)), str(program), "-m", str(model)),
        *("-t", threads, "-tb", threads, "-fa", "on", "-no-kvu", "--output-format", "jsonl"),
        *("-c", str(max(_LEAST_CONTEXT, tokens)), "-npl", str(shape.batch)),
        *("-npp", str(shape.prompt_tokens), "-ntg", str(shape.output_tokens)),
    ]


def _result(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=_TIMEOUT_S)
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or len(lines) != 1:
        raise BenchError(f"llama-batched-bench failed: {err.strip()[-300:]}")
    said = json.loads(lines[0])
    return Result(said["speed_pp"], said["speed_tg"], said["t"])
