"""Folds a worker's chain of states into the one line that a person wants to read. Pure.

A restart is five events: draining, stopping, stopped, starting, ready. While it runs, its last
line stands for all; when it is over, one line says how long the worker was away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from lbhost.status import Event

_NAME = re.compile(r"^worker \d+(?: \(.{1,200}?\))?: ")

AWAY = ("draining", "stopping", "stopped")


@dataclass
class _Chain:
    """A worker's events from its leaving on; `at` is where its line stands in the output."""

    at: int
    left_s: float
    starting: bool = False


def fold(events: Iterable[Event]) -> list[Event]:
    """The same story in fewer lines, oldest first. What is no plain change of state stays."""
    out: list[Event | None] = []
    chains: dict[int, _Chain] = {}
    steps: dict[int, int] = {}
    """Where a rolling restart said that it is this worker's turn."""
    for event in events:
        worker = event.worker
        if worker is None or event.kind != "worker_state" or event.level != "info":
            if worker is not None and event.kind != "rolling":
                chains.pop(worker, None)  # not the plain story: let its lines stand
            elif worker is not None:
                steps[worker] = len(out)
            out.append(event)
            continue
        state = state_of(event)
        chain = chains.get(worker)
        if chain is None:
            if state in AWAY:
                chains[worker] = _Chain(len(out), event.time)
            out.append(event)
            continue
        out[chain.at] = None
        chain.at = len(out)
        chain.starting = chain.starting or state == "starting"
        if state == "ready":
            del chains[worker]
            if chain.starting:
                took = f"up again after {max(0.0, event.time - chain.left_s):.1f} s"
                event = msgspec.structs.replace(event, message=took)
                if worker in steps:
                    out[steps.pop(worker)] = None
        out.append(event)
    return [event for event in out if event is not None]


def state_of(event: Event) -> str:
    """The state that a worker_state event ends in: "worker 1: draining -> stopping (note)".

    Of several models the name stands there as well: "worker 1 (chat): …".
    """
    text = without_name(event.message).partition(" (")[0]
    return text.rpartition("-> ")[2].rpartition(": ")[2].strip().partition(" ")[0]


def without_name(message: str) -> str:
    """A message about a worker without the worker's name before it."""
    return _NAME.sub("", message, count=1)
