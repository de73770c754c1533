"""A long time of ordinary work: does any process grow?

Nothing is broken on purpose. Streams and plain requests at a steady rate, vectors of ever new
texts, clients that vanish, on a server of two models. Every process's RSS and descriptors are
looked at again and again; after a warm-up a line is laid through each one's RSS.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx2
import msgspec

from faults import rude
from faults.answers import Answer, Reference, Verdict, verdict
from faults.box import Box
from faults.traffic import Client, Traffic, capacity, questions, references

EVERY_S = 10.0
"""From one look at the processes to the next."""

MOST_MB_MIN = 1.0
"""By which a process's RSS may grow."""

WARM_UP = 0.25
"""So much of the time counts for nothing: caches and pools fill, …"""
MOST_WARM_UP_S = 300.0
"""…but no longer."""

LEAST_LOOKS = 6
"""At a process, after the warm-up: a line through fewer says nothing."""

LEAST_MINUTES = 2.0
"""In which there are that many, on a slow box too."""

_TEXTS = 8
"""Of a request for vectors."""
_EMBED_EVERY_S = 0.5
_VANISH_EVERY_S = 1.0
_CLIENTS = 8
_CAPACITY_S = 8.0

_FLAGS = ("--state-cache", "64M", "--embedding-cache", "16M", "--no-probe")
"""What is kept on purpose is full after the warm-up."""


class Look(msgspec.Struct, frozen=True):
    """A process at a moment."""

    at: float
    """Seconds since the load began."""
    role: str
    pid: int
    rss: int
    """Bytes, what it shares with others included."""
    descriptors: int


class Growth(msgspec.Struct, frozen=True):
    """What became of a process after the warm-up."""

    role: str
    pid: int
    looks: int
    first: int
    """RSS in bytes."""
    last: int
    most: int
    mb_min: float | None
    """Of the line, in MB (10^6 bytes) a minute; None: LEAST_LOOKS were not to be had."""
    descriptors: tuple[int, int]
    """First and last."""


class Soak(msgspec.Struct, frozen=True):
    """The figures."""

    seconds: float
    """After the warm-up."""
    growths: list[Growth]
    answers: dict[str, int]
    """By Verdict."""
    vectors: dict[str, int]
    """Requests for vectors by status, or by what went wrong."""
    vanished: int
    """Clients."""
    broken: list[str]


def warm_up_s(seconds: float) -> float:
    """How much of so long a run counts for nothing."""
    return min(WARM_UP * seconds, MOST_WARM_UP_S)


def growths(looks: Sequence[Look], warm_up: float) -> list[Growth]:
    """By process, what grows most first.

    Args:
        warm_up: seconds; what was looked at before does not count.
    """
    kept = sorted(
        (look for look in looks if look.at >= warm_up),
        key=lambda look: (look.role, look.pid, look.at),
    )
    found: list[Growth] = []
    for (role, pid), group in itertools.groupby(kept, lambda look: (look.role, look.pid)):
        mine = list(group)
        found.append(
            Growth(
                role=role,
                pid=pid,
                looks=len(mine),
                first=mine[0].rss,
                last=mine[-1].rss,
                most=max(look.rss for look in mine),
                mb_min=_slope(mine) if len(mine) >= LEAST_LOOKS else None,
                descriptors=(mine[0].descriptors, mine[-1].descriptors),
            )
        )
    return sorted(found, key=lambda one: -math.inf if one.mb_min is None else one.mb_min)[::-1]


def ended(looks: Sequence[Look], warm_up: float) -> list[str]:
    """The processes that were there after the warm-up and are not at the last look.

    In ordinary work none is replaced, and one that is again and again does not live to grow.
    """
    kept = [look for look in looks if look.at >= warm_up]
    last_s = max((look.at for look in kept), default=0.0)
    there = {(look.role, look.pid) for look in kept if look.at == last_s}
    gone = {(look.role, look.pid) for look in kept} - there
    return [f"{role} ({pid}) has ended" for role, pid in sorted(gone)]


def _slope(looks: Sequence[Look]) -> float:
    """Of the least-squares line, in MB a minute."""
    minutes = [look.at / 60 for look in looks]
    return statistics.linear_regression(minutes, [look.rss / 1e6 for look in looks]).slope


def judge(
    looks: Sequence[Look],
    seconds: float,
    answers: Sequence[Answer],
    known: dict[int, Reference],
    vectors: Counter[str],
    vanished: int,
    leaks: Sequence[str],
) -> Soak:
    """The figures of a run of so many seconds, and the promises that it broke."""
    warm_up = warm_up_s(seconds)
    grown = growths(looks, warm_up)
    counts = Counter(verdict(answer, known[answer.question]) for answer in answers)
    broken = [*leaks, *ended(looks, warm_up)]
    broken += [
        f"{one.role} ({one.pid}) grows by {one.mb_min:.2f} MB a minute"
        for one in grown
        if one.mb_min is not None and one.mb_min >= MOST_MB_MIN
    ]
    if not any(one.mb_min is not None for one in grown):
        broken.append(f"no process was there for {LEAST_LOOKS} looks after the warm-up")
    broken += [
        f"{counts[kind]} answers: {kind}"
        for kind in (Verdict.DIFFERENT, Verdict.TRUNCATED, Verdict.FAILED)
        if counts[kind]
    ]
    if not counts[Verdict.COMPLETED]:
        broken.append("nothing was answered")
    if odd := {what: n for what, n in vectors.items() if what not in ("200", "429", "503")}:
        broken.append(f"requests for vectors: {odd}")
    if not vectors["200"]:
        broken.append("there were no vectors")
    return Soak(
        seconds=seconds - warm_up,
        growths=grown,
        answers={str(kind): n for kind, n in counts.items()},
        vectors=dict(vectors),
        vanished=vanished,
        broken=broken,
    )


async def run(
    model: Path, embedding_model: Path | None, minutes: float, load: float, rng: random.Random
) -> Soak:
    """Let a server work for so long.

    Args:
        embedding_model: None: the vectors are `model`'s.
        load: part of what the box can do in text.

    Raises:
        BoxError: the server did not start.
    """
    asked = questions(rng)
    with tempfile.TemporaryDirectory(prefix="lbhost-chaos-") as name:
        folder = Path(name)
        config = folder / "lbhost.toml"
        config.write_text(configuration(model, embedding_model or model), encoding="utf-8")
        flags = ("--config", str(config), *_FLAGS)
        cache = {"XDG_CACHE_HOME": str(folder / "cache")}
        box = Box(folder, None, flags, cache)
        client = Client(box.endpoint, asked)
        try:
            await box.start()
            known = await references(client)
            rate = load * await capacity(client, _CLIENTS, _CAPACITY_S, rng)
            before = await asyncio.to_thread(box.holdings)
            work = _Work(box, Traffic(client, rate, rng, frozenset(known)), rng)
            await work.go_on(60 * minutes)
            await client.close()
            leaks = await box.leaks(before)
        finally:
            await client.close()
            await box.stop()
    return judge(
        work.looks, 60 * minutes, work.traffic.answers, known, work.vectors, work.vanished, leaks
    )


def configuration(model: Path, embedding_model: Path) -> str:
    """A file for --config: text from one model, vectors from one worker of another."""
    tables = (("text", model, ""), ("vectors", embedding_model, 'kind = "embedding"\nworkers = 1'))
    return "".join(
        f"[[models]]\nname = {json.dumps(name)}\npath = {json.dumps(str(path))}\n{more}\n"
        for name, path, more in tables
    )


class _Work:
    """What the server is given to do, and what is seen of it."""

    def __init__(self, box: Box, traffic: Traffic, rng: random.Random) -> None:
        self._box = box
        self._rng = rng
        self.traffic = traffic
        self.looks: list[Look] = []
        self.vectors: Counter[str] = Counter()
        self.vanished = 0

    async def go_on(self, seconds: float) -> None:
        """Return when all that was asked has ended."""
        began = time.monotonic()
        self.traffic.start()
        others = [asyncio.create_task(self._embed()), asyncio.create_task(self._vanish())]
        try:
            while (at := time.monotonic() - began) < seconds:
                self.looks += await asyncio.to_thread(self._look, at)
                await asyncio.sleep(EVERY_S)
                for task in others:
                    if task.done():
                        task.result()  # raises: nothing else ends it
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self.traffic.stop()

    def _look(self, at: float) -> list[Look]:
        return [Look(at, *one) for one in self._box.sizes()]

    async def _embed(self) -> None:
        async with httpx2.AsyncClient(base_url=self._box.endpoint, timeout=60.0) as http:
            for number in itertools.count():
                texts = [f"Note {number} of page {page}" for page in range(_TEXTS)]
                texts[0] = "The same every time"
                try:
                    body = {"model": "vectors", "input": texts}
                    answer = await http.post("/v1/embeddings", json=body)
                    self.vectors[str(answer.status_code)] += 1
                except httpx2.TransportError as error:
                    self.vectors[type(error).__name__] += 1
                await asyncio.sleep(_EMBED_EVERY_S)

    async def _vanish(self) -> None:
        door = rude.Door(self._box.admin.host, self._box.admin.port)
        while True:
            await rude.knock(rude.vanish, door, self._rng)
            self.vanished += 1
            await asyncio.sleep(_VANISH_EVERY_S)


def report(found: Soak) -> str:
    """For people."""
    lines = [
        f"{found.seconds / 60:.1f} minutes after the warm-up; answers: {_counted(found.answers)}; "
        f"vectors: {_counted(found.vectors)}; {found.vanished} clients vanished"
    ]
    for one in found.growths:
        slope = "(too short)" if one.mb_min is None else f"{one.mb_min:+.3f} MB/min"
        sizes = " ".join(f"{size / 1e6:7.1f}" for size in (one.first, one.last, one.most))
        first, last = one.descriptors
        lines.append(
            f"{one.role:22} {one.pid:>8}  {slope:>15}  MB first, last, most: {sizes}  "
            f"descriptors {first} -> {last}"
        )
    return "\n".join([*lines, *(f"BROKEN {line}" for line in found.broken)])


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "none"
