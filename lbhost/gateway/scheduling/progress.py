"""How far a job is, and when it will be done, for people. Pure: nothing is decided by it."""

from __future__ import annotations

import enum

import msgspec

from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.sessions import Attempt

LEAST_GAPS = 4
"""Gaps between its own tokens from which a job's end is told by them, not by what was predicted."""


class Phase(enum.IntEnum):
    """Where it is; the further the greater."""

    QUEUED = 0
    PREFILL = 1
    DECODE = 2


class Progress(msgspec.Struct, frozen=True):
    """A job that is not over."""

    phase: Phase
    worker: int | None
    prompt_done: int
    """Prompt tokens that are computed, or were cached."""
    tokens_s: float | None
    """Output tokens per second since its first; None before the second."""
    starts_in_s: float | None
    """While it is queued."""
    ends_in_s: float | None


def queued(job: Job, starts_in_s: float, alone_s: float, now: float) -> Progress:
    """One that waits for a worker. `alone_s` is what it takes on an idle one."""
    return Progress(
        Phase.QUEUED, None, 0, _speed(job, now), starts_in_s, starts_in_s + max(0.0, alone_s)
    )


def running(attempt: Attempt, left: int | None, now: float) -> Progress:
    """One that a worker has. `left` are the prompt tokens still to compute, None: none."""
    job, forecast = attempt.job, attempt.forecast
    if attempt.first_token is None:
        done = max(0, job.work.prompt_tokens - (left or 0))
        ends = None
        if forecast is not None and job.started is not None:
            ends = max(0.0, forecast.ttft_s - (now - job.started))
            ends += max(0, forecast.tokens - 1) * forecast.output_s
        return Progress(Phase.PREFILL, job.worker, done, _speed(job, now), None, ends)
    gap_s = _gap_s(attempt)
    if gap_s is None and forecast is not None:
        gap_s = forecast.output_s
    ends = None if gap_s is None else attempt.left * gap_s
    prompt = job.work.prompt_tokens
    return Progress(Phase.DECODE, job.worker, prompt, _speed(job, now), None, ends)


def _gap_s(attempt: Attempt) -> float | None:
    """Between its tokens from this worker, once there are some."""
    gaps = attempt.job.completion_tokens - attempt.done_tokens - 1
    if gaps < LEAST_GAPS or attempt.first_token is None or attempt.last_token is None:
        return None
    return (attempt.last_token - attempt.first_token) / gaps


def _speed(job: Job, now: float) -> float | None:
    if job.first_token is None or job.completion_tokens < 2 or now <= job.first_token:
        return None
    return (job.completion_tokens - 1) / (now - job.first_token)
