"""Thousands of rude clients, kind after kind, and an honest one beside them.

They have one API key and the honest one has another: what the fair sharing between keys is for.
While they come it asks one short question after the other; the gateway's connections, descriptors
and RSS are looked at meanwhile, and must be as before when they have gone.
"""

from __future__ import annotations

import asyncio
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import stats
from faults import rude
from faults.answers import Answer, Reference, Verdict, verdict
from faults.box import Box, BoxError
from faults.kills import undisturbed
from faults.traffic import Client, short_questions
from lbhost import keys

KINDS: dict[str, rude.Client] = {
    "vanish": rude.vanish,
    "read-nothing": rude.read_nothing,
    "creep": rude.creep,
    "babble": rude.babble,
}
AT_ONCE = 256
"""Of the 1,024 connections that a gateway lets in unless told otherwise."""

TOKENS = 24
"""Of an honest answer."""
ALONE_S = 15.0
"""So long the honest client is alone, for comparison."""
PAUSE_S = 0.2
"""From the end of an honest answer to the next question."""
LOOK_S = 0.5

MOST_KEPT = 32e6
"""Bytes that the gateway may be larger afterwards than before, …"""
MOST_KEPT_EACH = 4096
"""…or so many for each client that came, if that is more: RSS is no exact measure of a leak."""


class Service(msgspec.Struct, frozen=True):
    """What the honest client got."""

    answers: dict[str, int]
    """By Verdict."""
    ttft_s: list[float]
    total_s: list[float]
    """Of the complete ones."""


class Crowd(msgspec.Struct, frozen=True):
    """What one kind of clients came to."""

    kind: str
    clients: int
    seconds: float
    service: Service
    descriptors: tuple[int, int, int]
    """The gateway's: before, most, after."""
    rss: tuple[int, int, int]
    """Bytes, likewise."""
    connections: int
    """Open at once, at most."""
    queued: int
    """Requests that waited, at most."""
    broken: list[str]


class Crowds(msgspec.Struct, frozen=True):
    """The figures."""

    alone: Service
    crowds: list[Crowd]

    @property
    def broken(self) -> list[str]:
        return [f"{crowd.kind}: {line}" for crowd in self.crowds for line in crowd.broken]


class _Look(msgspec.Struct, frozen=True):
    pid: int
    descriptors: int
    rss: int
    connections: int = 0
    queued: int = 0


def service(answers: Sequence[Answer], known: dict[int, Reference]) -> Service:
    """Count and time an honest client's streams."""
    verdicts = [verdict(answer, known[answer.question]) for answer in answers]
    good = [
        answer
        for answer, kind in zip(answers, verdicts, strict=True)
        if kind in (Verdict.COMPLETED, Verdict.NEAR_TIE) and answer.texts
    ]
    return Service(
        answers={str(kind): n for kind, n in Counter(verdicts).items()},
        ttft_s=[answer.texts[0] - answer.sent for answer in good],
        total_s=[answer.ended - answer.sent for answer in good],
    )


def judge(
    clients: int, served: Service, rss: tuple[int, int, int], leaks: Sequence[str]
) -> list[str]:
    """The promises that so many clients have broken, a line each."""
    broken = list(leaks)
    grown = rss[2] - rss[0]
    if grown > max(MOST_KEPT, clients * MOST_KEPT_EACH):
        broken.append(f"the gateway is {grown / 1e6:.0f} MB larger than before")
    broken += [
        f"{served.answers[kind]} of the honest client's answers: {kind}"
        for kind in (Verdict.DIFFERENT, Verdict.TRUNCATED, Verdict.FAILED, Verdict.REFUSED)
        if kind in served.answers
    ]
    if not served.ttft_s:
        broken.append("the honest client got nothing")
    return broken


async def run(model: Path, clients: int, at_once: int, rng: random.Random) -> Crowds:
    """So many clients of each kind, `at_once` of them at a time.

    Raises:
        BoxError: the server did not start, or did not come to rest again.
    """
    _allow(at_once + 256)
    asked = short_questions(TOKENS)
    with tempfile.TemporaryDirectory(prefix="lbhost-chaos-") as name:
        folder = Path(name)
        file = folder / "keys.toml"
        for who in ("honest", "rude"):
            keys.add(file, who, f"key of the {who}")
        box = Box(folder, model, ("--keys-file", str(file), "--ctx-size", "512"))
        client = Client(box.endpoint, asked, key="key of the honest")
        try:
            await box.start()
            known = await undisturbed(client, asked)
            if not known:
                raise BoxError("no question was answered")
            alone = await _honest(client, known, rng, asyncio.create_task(asyncio.sleep(ALONE_S)))
            door = rude.Door(box.admin.host, box.admin.port, "key of the rude")
            found = [
                await _crowd(box, client, known, rng, door, kind, clients, at_once)
                for kind in KINDS
            ]
        finally:
            await client.close()
            await box.stop()
    return Crowds(service(alone, known), found)


def _allow(descriptors: int) -> None:
    """So many may be open here. Raises BoxError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < descriptors:
        if hard < descriptors:
            raise BoxError(f"--at-once needs {descriptors} open files, and {hard} are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


async def _crowd(
    box: Box,
    client: Client,
    known: dict[int, Reference],
    rng: random.Random,
    door: rude.Door,
    kind: str,
    clients: int,
    at_once: int,
) -> Crowd:
    holdings = await asyncio.to_thread(box.holdings)
    before, began = await _look(box), time.monotonic()
    left = iter(range(clients))

    async def one() -> None:
        for _ in left:
            await rude.knock(KINDS[kind], door, rng)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, clients)):
                group.create_task(one())

    coming = asyncio.create_task(all_of_them())
    looking = asyncio.create_task(_watch(box, coming))
    try:
        answers = await _honest(client, known, rng, coming)
        looks = [before, *await looking]
    finally:
        for task in (coming, looking):
            task.cancel()
        await asyncio.gather(coming, looking, return_exceptions=True)
    took_s = time.monotonic() - began
    leaks = await box.leaks(holdings)
    after = await _look(box)
    if after.pid != before.pid:
        leaks.append("the gateway was replaced")
    served = service(answers, known)
    rss = (before.rss, max(look.rss for look in looks), after.rss)
    most = max(look.descriptors for look in looks)
    return Crowd(
        kind=kind,
        clients=clients,
        seconds=took_s,
        service=served,
        descriptors=(before.descriptors, most, after.descriptors),
        rss=rss,
        connections=max(look.connections for look in looks),
        queued=max(look.queued for look in looks),
        broken=judge(clients, served, rss, leaks),
    )


async def _honest(
    client: Client, known: dict[int, Reference], rng: random.Random, until: asyncio.Task[None]
) -> list[Answer]:
    """One question after the other until then."""
    answers: list[Answer] = []
    while not until.done():
        question = rng.choice(sorted(known))
        answers.append(await client.ask(question, stream=True, ignore_eos=True))
        await asyncio.sleep(PAUSE_S)
    until.result()
    return answers


async def _watch(box: Box, until: asyncio.Task[None]) -> list[_Look]:
    looks: list[_Look] = []
    while not until.done():
        looks.append(await _look(box))
        await asyncio.sleep(LOOK_S)
    return looks


async def _look(box: Box) -> _Look:
    """At the gateway. Raises BoxError when nobody tells of it."""
    status = await box.status()
    sizes = await asyncio.to_thread(box.sizes)
    for _, pid, rss, descriptors in sizes:
        if pid == status.gateway.pid:
            traffic = status.traffic
            return _Look(pid, descriptors, rss, traffic.connections, traffic.queue_depth)
    raise BoxError("there is no gateway")


def report(found: Crowds) -> str:
    """For people."""
    lines = [f"alone: {_served(found.alone)}"]
    for crowd in found.crowds:
        rss = " -> ".join(f"{size / 1e6:.0f}" for size in crowd.rss)
        lines += [
            f"{crowd.kind}: {crowd.clients} clients in {crowd.seconds:.0f} s, "
            f"at most {crowd.connections} connections and {crowd.queued} requests waiting",
            f"  the gateway before -> at most -> after: descriptors "
            f"{' -> '.join(map(str, crowd.descriptors))}, RSS {rss} MB",
            f"  the honest client: {_served(crowd.service)}",
        ]
    return "\n".join([*lines, *(f"BROKEN {line}" for line in found.broken)])


def _served(found: Service) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(found.answers.items())) or "no answers"
    if not found.ttft_s:
        return counts
    times = [
        f"{stats.quantile(values, q) * 1000:.0f}"
        for values in (found.ttft_s, found.total_s)
        for q in (0.5, 0.99)
    ]
    return (
        f"{counts}; first text after {times[0]} ms (p50), {times[1]} (p99), "
        f"the last after {times[2]}, {times[3]}"
    )
