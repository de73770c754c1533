"""One fault, or several at once, on a server under load: what the clients got, what was leaked."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from faults import breaking, disk
from faults.answers import Answer, Question, Reference, Verdict, open_at, recoveries, verdict
from faults.box import Box, BoxError
from faults.clock import Clock
from faults.scene import Fault, Kind, Scene
from faults.traffic import Client, Traffic

SERVED_AGAIN_S = 1.0
"""A request that comes later than this after a fault of the service may not fail."""

STREAMING_S = 1.0
"""A stream that was silent for longer was waiting for its turn, not for the fault's end."""


class Result(msgspec.Struct, frozen=True):
    """What one episode came to."""

    name: str
    counts: dict[str, int]
    """Answers by Verdict."""
    excused: int
    """Of the failed ones: open when gateway or supervisor went."""
    leaks: list[str]
    broken: list[str]
    """Broken promises, one line each; empty: all were kept."""
    strokes: int
    recovered_s: list[float]
    """From each stroke to the next text of the streams that it hit."""
    different: list[tuple[str, str, float]]
    """(text, undisturbed text, margin) of answers that differ; see Reference.margin."""
    skipped: int = 0
    """Requests that were not sent, as too many were open."""


def judge(
    faults: Sequence[Fault],
    answers: Sequence[Answer],
    references: dict[int, Reference],
    scene: Scene,
    leaks: list[str],
) -> Result:
    """Count, and name the broken promises."""
    verdicts = [verdict(answer, references[answer.question]) for answer in answers]
    counts = {str(kind): verdicts.count(kind) for kind in Verdict}
    failed = [a for a, v in zip(answers, verdicts, strict=True) if v is Verdict.FAILED]
    excused = [a for a in failed if open_at(a, [*scene.moments, *scene.away], SERVED_AGAIN_S)]
    different = [
        (a.text, references[a.question].text, references[a.question].margin(a.text))
        for a, v in zip(answers, verdicts, strict=True)
        if v is Verdict.DIFFERENT
    ]
    broken = [*scene.broken, *leaks]
    if len(failed) > len(excused):
        worst = next(a for a in failed if a not in excused)
        broken.append(f"{len(failed) - len(excused)} failed: {worst.status} {worst.error}")
    if counts[Verdict.TRUNCATED]:
        broken.append(f"{counts[Verdict.TRUNCATED]} ended unfinished without a word")
    if different:
        broken.append(f"{len(different)} got another text than when undisturbed")
    if not counts[Verdict.COMPLETED]:
        broken.append("nothing was answered")
    return Result(
        name=_name(faults),
        counts=counts,
        excused=len(excused),
        leaks=leaks,
        broken=broken,
        strokes=len(scene.struck) + len(scene.moments) + scene.others,
        recovered_s=recoveries(answers, scene.struck, STREAMING_S),
        different=different,
        skipped=scene.traffic.skipped,
    )


def lost(faults: Sequence[Fault], why: str) -> Result:
    """Of an episode that could not be played to its end: nobody knows what its clients got."""
    counts = {str(kind): 0 for kind in Verdict}
    return Result(_name(faults), counts, 0, [], [why], 0, [], [])


def _name(faults: Sequence[Fault]) -> str:
    return "+".join(fault.name for fault in faults)


async def play(
    faults: Sequence[Fault],
    model: Path,
    asked: Sequence[Question],
    references: dict[int, Reference],
    rate: float,
    seconds: float,
    seed: int,
) -> Result:
    """Start a server, put it under load, break it, and see.

    Args:
        references: the undisturbed answers by question; no other question is asked.
        rate: requests per second.

    Raises:
        BoxError: the server did not start, or was not well again after the fault.
    """
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbhost-chaos-")))
        environ: dict[str, str] = {}
        states, log, clock = folder / breaking.STATES, folder / "log", None
        if any(fault.own_model for fault in faults):
            model = Path(shutil.copyfile(model, folder / "model.gguf"))
        if any(fault.heat for fault in faults):
            breaking.make_heat_tree(folder / "sys")
            environ["LBHOST_SYSFS_ROOT"] = str(folder / "sys")
        if any(fault.small_disk for fault in faults):
            small = stack.enter_context(disk.mounted(folder / breaking.DISK))
            states, log = small / breaking.STATES, small / "log"
        if any(fault.own_clock for fault in faults):
            clock = Clock(folder / "clock")
            environ |= clock.environ
        flags = sum(dict.fromkeys(fault.flags for fault in faults), ())
        if any(fault.reloads for fault in faults):
            (folder / breaking.CONFIG).touch()
            flags += ("--config", str(folder / breaking.CONFIG))
        if any(fault.state_dir for fault in faults):
            flags += ("--state-dir", str(states))
        box = Box(folder, model, flags, environ, log)
        client = Client(box.endpoint, asked)
        try:
            await box.start(to_pipe=any(fault.to_pipe for fault in faults))
            before = await asyncio.to_thread(box.holdings)
            traffic = Traffic(client, rate, rng, frozenset(references))
            until = time.monotonic() + seconds
            scene = Scene(box, traffic, rng, until, folder, clock)
            traffic.start()
            try:
                await asyncio.gather(*(fault.run(scene) for fault in faults))
            finally:
                await traffic.stop()
            await client.close()  # its idle connections are none of the server's leaks
            await box.ready()
            leaks = await box.leaks(before)
        except BoxError as error:
            raise BoxError(f"{error}; its log ends: {box.tail()}") from error
        finally:
            await client.close()
            await box.stop()
        leaks += await box.left()
    return judge(faults, traffic.answers, references, scene, leaks)


def mixed(chosen: Sequence[Fault], rng: random.Random) -> list[Fault]:
    """Three faults to run at once."""
    able = [fault for fault in chosen if fault.mixable and fault.kind is Kind.WORKER]
    return rng.sample(able, min(3, len(able)))
