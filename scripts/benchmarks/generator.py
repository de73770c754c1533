"""A load comes from a process of its own, so that it holds up nobody who measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks.servers import ServerError

_Outcome = TypeVar("_Outcome", bound=msgspec.Struct)


def generate(module: str, plan: msgspec.Struct, kind: type[_Outcome], within_s: float) -> _Outcome:
    """What came of a plan.

    Args:
        module: the program that carries it out: benchmarks.load or benchmarks.embedding_load.
        kind: of what it answers.

    Raises:
        ServerError: the program failed, or took longer. Requests that fail are in what it answers.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=msgspec.json.encode(plan),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"the load generator took over {within_s:.0f} s") from error
    if done.returncode:
        raise ServerError("the load generator failed")
    return msgspec.json.decode(done.stdout, type=kind)
