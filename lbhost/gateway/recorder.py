"""Counts what happens to requests, and publishes it: to Prometheus, and on the board.

Owns the board's traffic rows and gateway row (this process is their one writer). Watches the
dispatcher; influences nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from lbhost import board, wire
from lbhost.config import Settings
from lbhost.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    LbhostError,
    NotReadyError,
    QueueFullError,
    RateLimitError,
    WorkerLostError,
)
from lbhost.gateway.metrics import Load, Metrics
from lbhost.gateway.rolling import Growth, Part, Quantiles, Rate
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.sessions import Attempt, Sessions
from lbhost.gateway.states.plane import Counts, Plane

WRITE_S = 0.25
"""Between two writes of the board's rows."""

_RATE_S = 1.0
"""Rates are taken over so long."""

_PROMPT_RATE_S = 5.0
"""The rate of prompt tokens over longer: a step of nothing but prefill may take seconds."""

_QUIET_AFTER = 24
"""Writes without any traffic after which all rates have fallen to 0."""

_QUIET_EVERY = 4
"""From then on the workers' rows are looked at once in so many writes."""

_WINDOW_S = 60
"""Quantiles and the error rate look back so far."""

_TTFT_KEPT = 1000

_FAILED = frozenset({"timeout", "worker_lost", "engine_error", "error"})
_TAKEN_IN = _FAILED | {"ok", "cancelled"}
OUTCOMES = _TAKEN_IN | {"queue_full", "not_ready", "rate_limited", "invalid"}
"""All values of the `outcome` label."""


def outcome(error: LbhostError | None) -> str:
    """The `outcome` label of an ended request."""
    named: tuple[tuple[type[LbhostError], str], ...] = (
        (QueueFullError, "queue_full"),
        (RateLimitError, "rate_limited"),
        (NotReadyError, "not_ready"),
        (DeadlineError, "timeout"),
        (WorkerLostError, "worker_lost"),
        (CancelledError, "cancelled"),
        (EngineError, "engine_error"),
    )
    if error is None:
        return "ok"
    for kind, name in named:
        if isinstance(error, kind):
            return name
    return "invalid" if error.status < 500 else "error"


def _parts(attempt: Attempt, ttft: float, now: float) -> tuple[float, float, float]:
    """What a time to first token was spent on: waiting, the prompt, the step that made the token.

    All three are seconds, and `ttft` in sum. Waiting is what came before its last worker.
    """
    there = ttft if attempt.job.started is None else min(ttft, now - attempt.job.started)
    step = min(there, attempt.step_s or 0.0)
    return ttft - there, there - step, step


class _WorkerRates:
    """How fast one worker id is."""

    def __init__(self) -> None:
        self.out = Rate(_RATE_S)
        self.prompt = Rate(_PROMPT_RATE_S)
        self.computed = Growth()


class Recorder:
    """Implements observer.Observer."""

    def __init__(
        self,
        page: board.Board,
        settings: Settings,
        sessions: Sessions,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._board = page
        self.settings = settings
        self._sessions = sessions
        self._metrics = metrics
        self._requests = 0
        self._errors = 0
        self._rejected = 0
        self._tokens_out = 0
        self._request_rate = Rate(_RATE_S)
        self._token_rate = Rate(_RATE_S)
        self._prompt_rate = Rate(_PROMPT_RATE_S)
        self._workers: dict[int, _WorkerRates] = {}
        self._written: dict[int, board.TrafficRow] = {}
        self._requests_written = 0
        self._quiet_writes = 0
        self._ttfts = Quantiles(_WINDOW_S, _TTFT_KEPT)
        self._failures = Part(_WINDOW_S)

    # --- dispatch.Observer -----------------------------------------------------------

    def sent(self, attempt: Attempt, now: float) -> None:
        tally = attempt.session.tally
        tally.requests += 1
        tally.tokens_in += attempt.job.work.prompt_tokens
        if attempt.job.given == 1:
            self._metrics.queue_wait.observe(now - attempt.job.arrived)

    def tokens(self, attempt: Attempt, count: int, now: float) -> None:
        tally = attempt.session.tally
        tally.tokens_out += count
        self._tokens_out += count
        self._metrics.completion_tokens.inc(count)
        if attempt.last_token is not None:
            gap = now - attempt.last_token
            self._metrics.inter_token.observe(gap)
            attempt.session.inter_token.add(gap, now)
        elif attempt.job.started is not None:
            attempt.session.ttft.add(now - attempt.job.started, now)
            if attempt.job.first_token is None and not attempt.job.over:
                ttft = now - attempt.job.arrived
                self._metrics.ttft.observe(ttft)
                self._ttfts.add(now, ttft, _parts(attempt, ttft, now))

    def released(self, attempt: Attempt, finish: wire.Finish) -> None:
        if finish.reason in (wire.FinishReason.MOVED, wire.FinishReason.FAILED):
            return  # it goes on elsewhere, and ends there
        self._metrics.prompt_tokens.inc(finish.prompt_tokens)
        self._metrics.cached_tokens.inc(finish.cached_tokens)

    def retried(self, job: Job) -> None:
        self._metrics.retries.inc()

    def moved(self, job: Job, why: Reason) -> None:
        self._metrics.moved.labels(why.value).inc()

    def ended(self, job: Job, now: float) -> None:
        finish = job.finish
        if finish is None:
            return
        self._metrics.inputs.inc(len(job.work.inputs))
        self._metrics.request_time.observe(now - job.arrived)
        self._metrics.finished.labels(str(finish.reason)).inc()
        self._metrics.prefill_time.observe(finish.prefill_s)
        self._metrics.decode_time.observe(finish.decode_s)
        if finish.completion_tokens > 1:
            self._metrics.output_token.observe(finish.decode_s / (finish.completion_tokens - 1))

    # --- the HTTP side ---------------------------------------------------------------

    def count(self, what: str) -> None:
        """A request for work, or a refused one, ended: its outcome, or "cancelled".

        What is not in OUTCOMES is an "error".
        """
        if what not in OUTCOMES:
            what = "error"
        self._metrics.requests.labels(what).inc()
        self._requests += 1
        self._rejected += what in ("queue_full", "not_ready")
        self._errors += what in _FAILED
        if what in _TAKEN_IN:
            self._failures.add(self._clock(), what in _FAILED)

    def refused(self, error: LbhostError) -> None:
        """A request was answered with an error."""
        self._metrics.error_answers.labels(str(error.status), error.reason).inc()

    # --- the board -------------------------------------------------------------------

    def write(self, load: Load, connections: int, states: Plane | None = None) -> None:
        """Publish the rows. Rows that say nothing new are not written."""
        now = self._clock()
        if load.in_flight or self._requests != self._requests_written:
            self._quiet_writes = 0
        self._requests_written = self._requests
        if self._quiet_writes < _QUIET_AFTER or self._quiet_writes % _QUIET_EVERY == 0:
            self._write_workers(now)
        self._quiet_writes += 1
        p50, p95 = self._ttfts.at(now)
        waited, prefilled, stepped = self._ttfts.p95_parts or (None, None, None)
        computed = sum(worker.computed.total for worker in self._workers.values())
        counts = states.counts if states is not None else Counts()
        self._board.gateway.write(
            0,
            board.GatewayRow(
                pid=os.getpid(),
                heartbeat_ns=time.monotonic_ns(),
                queue_depth=load.queue_depth,
                queue_limit=self.settings.queue_size,
                in_flight=load.in_flight,
                connections=connections,
                requests=self._requests,
                errors=self._errors,
                rejected=self._rejected,
                requests_s=self._request_rate.update(now, self._requests),
                tokens_s=self._token_rate.update(now, self._tokens_out),
                ttft_p50_s=p50,
                ttft_p95_s=p95,
                ttft_p95_queue_s=waited,
                ttft_p95_prefill_s=prefilled,
                ttft_p95_step_s=stepped,
                next_start_s=load.next_start_s,
                prompt_tokens_s=self._prompt_rate.update(now, computed),
                oldest_wait_s=load.oldest_wait_s,
                error_rate=self._failures.at(now),
                states=states.entries if states is not None else 0,
                state_bytes=states.bytes if states is not None else 0,
                state_limit=int(states.limit) if states is not None else 0,
                state_hits=counts.hits,
                state_misses=counts.misses,
                state_tokens=counts.tokens,
                state_failures=counts.failed,
                states_movable=states is None or states.unable is None,
            ),
        )

    def _write_workers(self, now: float) -> None:
        for index, reading in self._sessions.readings.present():
            row = self._row(index, reading.progress, now)
            if self._written.get(index) != row:
                self._board.traffic.write(index, row)
                self._written[index] = row

    def _row(self, index: int, progress: board.ProgressRow, now: float) -> board.TrafficRow:
        session = self._sessions.current(index)
        tally = self._sessions.tally(index)
        accuracy = self._sessions.accuracy(index)
        rates = self._workers.setdefault(index, _WorkerRates())
        computed = rates.computed.update(progress.epoch, progress.prompt_tokens)
        attempts = list(session.attempts.values()) if session is not None else []
        return board.TrafficRow(
            epoch=session.epoch if session is not None else 0,
            in_flight=len(attempts),
            pending_tokens=sum(f.prefill for f in attempts if f.last_token is None),
            requests=tally.requests,
            tokens_in=tally.tokens_in,
            tokens_out=tally.tokens_out,
            tokens_out_s=rates.out.update(now, tally.tokens_out),
            ttft_s=session.ttft.at(now) if session is not None else None,
            inter_token_s=session.inter_token.at(now) if session is not None else None,
            errors=tally.errors,
            timeouts=tally.timeouts,
            error_rate=session.error_rate.at(now) if session is not None else 0.0,
            prompt_tokens_s=rates.prompt.update(now, computed),
            ttft_error=accuracy.ttft.absolute,
            completion_error=accuracy.completion.absolute,
        )
