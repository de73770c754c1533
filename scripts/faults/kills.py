"""Many kills, few tokens: how often a greedy answer is what it would have been all the same.

A closed loop of short streams; the worker that has been up longest is killed whenever all are up
and have had a moment. First the same load with no kill: what differs then already turned on the
shape of a batch.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import stats
from faults.answers import (
    Answer,
    Question,
    Reference,
    Verdict,
    open_at,
    parted,
    recoveries,
    verdict,
)
from faults.box import Box
from faults.breaking import kill
from faults.traffic import SCORED, Client, short_questions

STREAMS = 6
TOKENS = 48
LEAST_RUN_S = 1.1
"""So long a worker has been up when it is killed: one that ran for a second has no backoff."""
BETWEEN_S = 1.0
"""From one kill to the next at least…"""
PIECES = 3 * STREAMS
"""…and so many pieces of text: a box that is slow, or has other work, would compute the same tokens
again and again."""
PATIENCE_S = 660.0
"""Longer than the server lets any request take: what fails has failed there. At a load of 14 and a
kill each 2.5 s answers took 29 s at the median of 77, 73 s at most; one of 450 may take 120."""
CALM_S = 20.0
"""With no kill, for comparison."""
STREAMING_S = 1.0
MOST_SHOWN = 12

_FLAGS = ("--restart-budget", "1000", "--ctx-size", "512")


class Turned(msgspec.Struct, frozen=True):
    """Answers to one question that parted from the undisturbed one at the same place."""

    question: int
    character: int
    margin: float
    """By how much the undisturbed token was more likely than the next best, in log-probability."""
    was: str
    became: str
    count: int


class Part(msgspec.Struct, frozen=True):
    """What came of some answers."""

    answers: int
    identical: int
    near_tie: int
    others: dict[str, int]
    """All other verdicts, by name; empty is as it should be."""

    @property
    def rate(self) -> float:
        return self.identical / self.answers if self.answers else 1.0


class Kills(msgspec.Struct, frozen=True):
    """The figures."""

    kills: int
    calm: Part
    """With no kill."""
    disturbed: Part
    """Answers that were under way at one kill or more."""
    between: Part
    """The rest."""
    hit: int
    """Of the disturbed, those whose own worker was surely killed."""
    recovered_s: list[float]
    turned: list[Turned]
    broken: list[str]


def part(answers: Sequence[Answer], known: dict[int, Reference]) -> Part:
    """Count them."""
    counts = Counter(verdict(answer, known[answer.question]) for answer in answers)
    identical, near = counts.pop(Verdict.COMPLETED, 0), counts.pop(Verdict.NEAR_TIE, 0)
    return Part(len(answers), identical, near, {str(kind): n for kind, n in counts.items()})


def turned(answers: Sequence[Answer], known: dict[int, Reference]) -> list[Turned]:
    """Where answers parted from the undisturbed ones, most frequent first."""
    places: Counter[tuple[int, int, float, str]] = Counter()
    for answer in answers:
        reference = known[answer.question]
        if verdict(answer, reference) in (Verdict.NEAR_TIE, Verdict.DIFFERENT):
            at, margin = parted(answer.text, reference.text), reference.margin(answer.text)
            places[answer.question, at, margin, answer.text[at : at + 24]] += 1
    return [
        Turned(question, at, margin, known[question].text[at : at + 24], new, n)
        for (question, at, margin, new), n in places.most_common()
    ]


def judge(
    calm: Sequence[Answer],
    answers: Sequence[Answer],
    known: dict[int, Reference],
    struck: Sequence[tuple[float, int]],
) -> Kills:
    """The figures of a run; `struck`: when which worker was killed."""
    moments = [when for when, _ in struck]
    disturbed = [answer for answer in answers if open_at(answer, moments, 0.0)]
    between = [answer for answer in answers if not open_at(answer, moments, 0.0)]
    found = Kills(
        kills=len(struck),
        calm=part(calm, known),
        disturbed=part(disturbed, known),
        between=part(between, known),
        hit=sum(
            any(worker == a.worker and a.sent <= when < a.ended for when, worker in struck)
            for a in disturbed
        ),
        recovered_s=recoveries(answers, struck, STREAMING_S),
        turned=turned([*calm, *answers], known),
        broken=[],
    )
    for name in ("calm", "disturbed", "between"):
        for kind, count in getattr(found, name).others.items():
            found.broken.append(f"{count} of the {name} answers: {kind}")
    found.broken.extend(f"{why}, of worker {worker}" for worker, why in _failures(calm, answers))
    return found


def _failures(*parts: Sequence[Answer]) -> list[tuple[int | None, str]]:
    """What became of those that failed: (worker, in words)."""
    return [
        (one.worker, f"failed after {one.ended - one.sent:.1f} s: {one.status} {one.error}")
        for answers in parts
        for one in answers
        if one.error is not None or one.cut
    ][:MOST_SHOWN]


async def run(model: Path, count: int, rng: random.Random) -> Kills:
    """Kill `count` workers, or as many as there is time for until SIGINT.

    Raises:
        BoxError: the server did not start, or did not come back.
    """
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, over.set)
    asked = short_questions(TOKENS)
    with tempfile.TemporaryDirectory(prefix="lbhost-chaos-") as folder:
        box = Box(Path(folder), model, _FLAGS)
        client = Client(box.endpoint, asked, patience_s=PATIENCE_S)
        try:
            await box.start()
            known = await undisturbed(client, asked)
            calm = await _load(client, known, rng, asyncio.sleep(CALM_S))
            struck: list[tuple[float, int]] = []
            answers = await _load(client, known, rng, _strike(box, client, count, struck, over))
        finally:
            await client.close()
            await box.stop()
    return judge(calm, answers, known, struck)


async def undisturbed(client: Client, asked: Sequence[Question]) -> dict[int, Reference]:
    """The answers of an idle server, one after the other."""
    alone = [
        await client.ask(i, stream=False, logprobs=SCORED, ignore_eos=True)
        for i in range(len(asked))
    ]
    return {a.question: Reference(a.text, a.choices) for a in alone if a.done}


async def _load(
    client: Client, known: dict[int, Reference], rng: random.Random, what: Coroutine[Any, Any, None]
) -> list[Answer]:
    """The answers to STREAMS clients that ask and ask until `what` has ended."""
    work = asyncio.create_task(what)
    answers: list[Answer] = []

    async def one() -> None:
        while not work.done():
            answers.append(
                await client.ask(rng.choice(sorted(known)), stream=True, ignore_eos=True)
            )

    await asyncio.gather(*(one() for _ in range(STREAMS)))
    await work
    return answers


async def _strike(
    box: Box, client: Client, count: int, struck: list[tuple[float, int]], over: asyncio.Event
) -> None:
    heard = client.pieces
    up_since: dict[tuple[int, int], float] = {}
    while len(struck) < count and not over.is_set():
        status = await box.status()
        now = time.monotonic()
        for worker in status.workers:
            if worker.state == "ready":
                up_since.setdefault((worker.id, worker.epoch), now)
        all_up = all(worker.state == "ready" for worker in status.workers)
        oldest = min(status.workers, key=lambda w: up_since.get((w.id, w.epoch), now))
        since = up_since.get((oldest.id, oldest.epoch), now)
        due = not struck or now - struck[-1][0] >= BETWEEN_S
        due = due and client.pieces - heard >= PIECES
        if all_up and due and now - since >= LEAST_RUN_S and oldest.slots_busy:
            struck.append((time.monotonic(), oldest.id))
            heard = client.pieces
            kill(oldest.pid, signal.SIGKILL)
        await asyncio.sleep(0.1)


def report(found: Kills) -> str:
    """For people."""
    lines = [f"{found.kills} kills; {found.hit} answers lost their worker for sure"]
    for name in ("calm", "disturbed", "between"):
        one: Part = getattr(found, name)
        lines.append(
            f"{name:10} {one.answers} answers, {one.rate:.2%} as undisturbed, "
            f"{one.near_tie} from a near-tie on others"
        )
    if found.recovered_s:
        p50, p99 = (stats.quantile(found.recovered_s, q) for q in (0.5, 0.99))
        lines.append(
            f"next text of {len(found.recovered_s)} streams after {p50 * 1000:.0f} ms (p50), "
            f"{p99 * 1000:.0f} ms (p99), {max(found.recovered_s) * 1000:.0f} ms (max)"
        )
    places = (
        f"  {turn.count} x question {turn.question}, character {turn.character}, "
        f"margin {turn.margin:.3f}: {turn.was!r} became {turn.became!r}"
        for turn in found.turned[:MOST_SHOWN]
    )
    return "\n".join([*lines, *places, *(f"BROKEN {line}" for line in found.broken)])
