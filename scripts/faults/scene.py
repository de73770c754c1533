"""What a fault is, and what it works on."""

from __future__ import annotations

import asyncio
import enum
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from faults.box import Box
from faults.clock import Clock, compiler
from faults.traffic import Traffic

EVERY_S = 2.0


class Kind(enum.Enum):
    """Who suffers."""

    WORKER = "worker"
    """Nobody: no request may fail."""
    SERVICE = "service"
    """What was open at the moment may fail, and says so."""


class Scene:
    """What a fault works on, and what it notes."""

    def __init__(
        self,
        box: Box,
        traffic: Traffic,
        rng: random.Random,
        until: float,
        folder: Path,
        clock: Clock | None = None,
    ) -> None:
        self.box = box
        self.traffic = traffic
        self.rng = rng
        self.until = until
        """time.monotonic() at which the fault ends."""
        self.folder = folder
        self.clock = clock
        """The server's; None: it has the machine's."""
        self.struck: list[tuple[float, int]] = []
        """When which worker was hit."""
        self.away: list[float] = []
        """Moments, close to each other, at which there was no server on purpose."""
        self.moments: list[float] = []
        """When gateway or supervisor went, or came back."""
        self.broken: list[str] = []
        """Promises that the fault itself saw broken."""
        self.others = 0
        """Strokes beside those: rude clients that came, steps of the clock, a disk that filled."""

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def pause(self, seconds: float = EVERY_S) -> None:
        await asyncio.sleep(max(0.0, min(seconds, self.until - time.monotonic())))


class Fault(msgspec.Struct, frozen=True):
    """One way to break things."""

    name: str
    what: str
    kind: Kind
    run: Callable[[Scene], Awaitable[None]]
    flags: tuple[str, ...] = ()
    """Of the server."""
    to_pipe: bool = False
    """Its output goes to a pipe."""
    own_model: bool = False
    """It serves a copy of the model, which the fault may damage."""
    heat: bool = False
    """It reads its temperatures from a tree that the fault writes."""
    reloads: bool = False
    """It has a configuration file, which the fault changes."""
    state_dir: bool = False
    """It keeps its KV states in a folder, which the fault damages."""
    small_disk: bool = False
    """Its log and its folder of KV states are on a disk that the fault fills."""
    own_clock: bool = False
    """It has a wall clock that the fault steps."""
    mixable: bool = True
    """May run beside others."""

    @property
    def missing(self) -> str | None:
        """What this machine lacks for it."""
        if self.small_disk and os.geteuid() != 0:
            return "only root can mount a small disk"
        if self.own_clock and compiler() is None:
            return "there is no C compiler to build the clock with"
        return None
