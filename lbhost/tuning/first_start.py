"""The probe at the first start: which shape of workers, measured in seconds and then remembered.

Never endangers a start: whatever goes wrong with it, one thread per worker is what there is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from lbhost import log
from lbhost.errors import TuningError
from lbhost.placement import memory
from lbhost.tuning import shelf
from lbhost.tuning.gauge import Gauge
from lbhost.tuning.identity import Identity
from lbhost.tuning.shapes import (
    SLOT_TOKENS,
    Candidate,
    Rounds,
    Shape,
    Speeds,
    choose,
    contenders,
    speed,
)
from lbhost.tuning.trial import Load, Trial

WINDOW_S = 0.35
"""Of prefill and of decode, per shape and round."""
ROUNDS = 2
PATIENCE_S = 30.0
"""For all rounds together; a box that is busy takes several times what a quiet one does."""
READ_BYTES_S = 100e6
"""A disk that is slower than this is not waited for."""


class Subject(msgspec.Struct, frozen=True):
    """Whom the probe is for."""

    identity: Identity
    load: Load
    weights_bytes: int
    kv_bytes_per_token: int
    available_bytes: int | None
    """Memory that can be taken now."""


def shape(
    subject: Subject,
    found: Sequence[Candidate],
    environ: Mapping[str, str],
    process_environ: Mapping[str, str],
) -> Shape:
    """The shape to start: remembered, or measured now; the narrowest if neither can be.

    Args:
        found: at least one; the narrowest comes first.
        environ: says where the cache is.
        process_environ: what a fork server of this server gets.
    """
    narrowest = found[0].shape
    if len(found) == 1:
        return narrowest
    known = shelf.shape(environ, subject.identity)
    if known is not None and any(known.shape == candidate.shape for candidate in found):
        log.get().debug("workers as measured before", workers=str(known.shape))
        return known.shape
    try:
        rounds = _measure(subject, found, process_environ)
    except TuningError as error:
        log.get().warning("shapes of workers not measured: one thread each", reason=error.message)
        return narrowest
    chosen = choose(rounds)
    speeds = {str(shape): speed(readings) for shape, readings in rounds.items()}
    log.get().info("workers x threads, as measured", chosen=str(chosen), tokens_s=_brief(speeds))
    try:
        record = shelf.MeasuredShape(subject.identity, chosen, speeds)
        shelf.write(shelf.shape_path(environ, subject.identity), record)
    except OSError as error:
        log.get().warning("the measured shape of workers cannot be kept", reason=str(error))
    return chosen


def _measure(
    subject: Subject, found: Sequence[Candidate], process_environ: Mapping[str, str]
) -> Rounds:
    """Every shape once, and those that can still win again."""
    _require_memory(subject, found)
    seconds = len(found) * ROUNDS * 2 * WINDOW_S + subject.weights_bytes / 500e6
    log.get().info(
        "measuring once which shape of workers suits this model and box (--workers N or --no-probe "
        "skips it)",
        shapes=", ".join(str(candidate.shape) for candidate in found),
        seconds=round(seconds + 1),
    )
    within_s = PATIENCE_S + subject.weights_bytes / READ_BYTES_S
    with Gauge(process_environ) as gauge:
        gauge.load(subject.load, within_s)
        return _rounds(gauge, found)


def _rounds(gauge: Gauge, found: Sequence[Candidate]) -> Rounds:
    """Readings by shape. If time runs out after the first round, that must do."""
    rounds: dict[Shape, list[Speeds]] = {}
    left = list(found)
    deadline_s = time.monotonic() + PATIENCE_S
    for number in range(ROUNDS):
        # Back and forth, so that what changes slowly is the same for all.
        order = left if number % 2 == 0 else left[::-1]
        readings: dict[Shape, Speeds] = {}
        for candidate in order:
            trial = Trial(candidate.placements, candidate.slots, WINDOW_S)
            try:
                reading = gauge.measure(trial, deadline_s - time.monotonic())
            except TuningError:
                if not rounds:
                    raise
                return rounds
            readings[candidate.shape] = reading
        for shape, reading in readings.items():
            rounds.setdefault(shape, []).append(reading)
        still = contenders(rounds)
        left = [candidate for candidate in left if candidate.shape in still]
        if len(left) == 1:
            break
    return rounds


def _require_memory(subject: Subject, found: Sequence[Candidate]) -> None:
    sequences = max(len(c.placements) * c.slots for c in found)
    need = memory.need_bytes(
        weights_bytes=subject.weights_bytes,
        kv_bytes_per_token=subject.kv_bytes_per_token,
        workers=max(len(c.placements) for c in found),
        slots=1,
        n_ctx=0,
    )
    need += sequences * SLOT_TOKENS * subject.kv_bytes_per_token
    if subject.available_bytes is not None and need > subject.available_bytes:
        raise TuningError(
            f"{memory.gib(need)} of memory are needed, {memory.gib(subject.available_bytes)} are "
            "available"
        )


def _brief(speeds: Mapping[str, Speeds]) -> str:
    return ", ".join(
        f"{name}: prefill {s.prefill:.0f} decode {s.decode or 0:.0f}" for name, s in speeds.items()
    )
