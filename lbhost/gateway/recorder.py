"""Counts what happens to requests, and publishes it: to Prometheus, and on the board.

Owns the board's traffic rows and gateway row (this process is their one writer). Watches the
dispatcher; influences nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque

from lbhost import board, wire
from lbhost.config import Settings
from lbhost.errors import (
    DeadlineError,
    EngineError,
    LbhostError,
    NotReadyError,
    QueueFullError,
    WorkerLostError,
)
from lbhost.gateway.metrics import Load, Metrics
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.sessions import Attempt, Sessions

WRITE_S = 0.25
"""Between two writes of the board's rows."""

_RATE_WRITES = 5
"""Rates are taken over so many writes: a good second."""

_QUIET_EVERY = 4
"""Without any traffic, the workers' rows are looked at once in so many writes."""

_TTFT_KEPT_S = 60.0
_TTFT_KEPT = 1000


def outcome(error: LbhostError | None) -> str:
    """The `outcome` label of an ended request."""
    named: tuple[tuple[type[LbhostError], str], ...] = (
        (QueueFullError, "queue_full"),
        (NotReadyError, "not_ready"),
        (DeadlineError, "timeout"),
        (WorkerLostError, "worker_lost"),
        (EngineError, "engine_error"),
    )
    if error is None:
        return "ok"
    for kind, name in named:
        if isinstance(error, kind):
            return name
    return "invalid" if error.status < 500 else "error"


class _Rate:
    """How fast a total grows."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_RATE_WRITES)

    def update(self, now: float, total: int) -> float:
        self._seen.append((now, total))
        then, was = self._seen[0]
        return (total - was) / (now - then) if now > then else 0.0


class Recorder:
    """Implements dispatch.Observer."""

    def __init__(
        self, page: board.Board, settings: Settings, sessions: Sessions, metrics: Metrics
    ) -> None:
        self._board = page
        self._settings = settings
        self._sessions = sessions
        self._metrics = metrics
        self._requests = 0
        self._errors = 0
        self._rejected = 0
        self._tokens_out = 0
        self._request_rate = _Rate()
        self._token_rate = _Rate()
        self._worker_rates: dict[int, _Rate] = {}
        self._written: dict[int, board.TrafficRow] = {}
        self._requests_written = 0
        self._quiet_writes = 0
        self._ttfts: deque[tuple[float, float]] = deque(maxlen=_TTFT_KEPT)
        self._quantiles: tuple[float | None, float | None] = (None, None)
        self._quantiles_at = 0.0

    # --- dispatch.Observer -----------------------------------------------------------

    def sent(self, attempt: Attempt, now: float) -> None:
        tally = attempt.session.tally
        tally.requests += 1
        tally.tokens_in += attempt.job.work.prompt_tokens
        self._metrics.queue_wait.observe(now - attempt.job.arrived)

    def tokens(self, attempt: Attempt, count: int, now: float) -> None:
        tally = attempt.session.tally
        tally.tokens_out += count
        self._tokens_out += count
        self._metrics.completion_tokens.inc(count)
        if attempt.last_token is not None:
            gap = now - attempt.last_token
            self._metrics.inter_token.observe(gap)
            tally.next_token(gap)
        elif attempt.job.started is not None:
            tally.first_token(now - attempt.job.started)
            if attempt.job.first_token is None:
                ttft = now - attempt.job.arrived
                self._metrics.ttft.observe(ttft)
                self._ttfts.append((now, ttft))

    def released(self, attempt: Attempt, finish: wire.Finish) -> None:
        self._metrics.prompt_tokens.inc(finish.prompt_tokens)
        self._metrics.cached_tokens.inc(finish.cached_tokens)

    def retried(self, job: Job) -> None:
        self._metrics.retries.inc()

    def ended(self, job: Job, now: float) -> None:
        if job.finish is not None:
            self._metrics.request_time.observe(now - job.arrived)

    # --- the HTTP side ---------------------------------------------------------------

    def count(self, what: str) -> None:
        """A request for work, or a refused one, ended: its outcome, or "cancelled"."""
        self._metrics.requests.labels(what).inc()
        self._requests += 1
        self._rejected += what in ("queue_full", "not_ready")
        self._errors += what in ("timeout", "worker_lost", "engine_error", "error")

    def refused(self, error: LbhostError) -> None:
        """A request was answered with an error."""
        self._metrics.error_answers.labels(str(error.status), error.reason).inc()

    # --- the board -------------------------------------------------------------------

    def write(self, load: Load, connections: int) -> None:
        """Publish the rows. Rows that say nothing new are not written."""
        now = time.monotonic()
        if load.in_flight or self._requests != self._requests_written:
            self._quiet_writes = 0
        self._requests_written = self._requests
        if self._quiet_writes < _RATE_WRITES or self._quiet_writes % _QUIET_EVERY == 0:
            self._write_workers(now)
        self._quiet_writes += 1
        p50, p95 = self._ttft_quantiles(now)
        self._board.gateway.write(
            0,
            board.GatewayRow(
                pid=os.getpid(),
                heartbeat_ns=time.monotonic_ns(),
                queue_depth=load.queue_depth,
                queue_limit=self._settings.queue_size,
                in_flight=load.in_flight,
                connections=connections,
                requests=self._requests,
                errors=self._errors,
                rejected=self._rejected,
                requests_s=self._request_rate.update(now, self._requests),
                tokens_s=self._token_rate.update(now, self._tokens_out),
                ttft_p50_s=p50,
                ttft_p95_s=p95,
            ),
        )

    def _write_workers(self, now: float) -> None:
        for index, _ in self._sessions.readings.present():
            row = self._row(index, now)
            if self._written.get(index) != row:
                self._board.traffic.write(index, row)
                self._written[index] = row

    def _row(self, index: int, now: float) -> board.TrafficRow:
        session = self._sessions.current(index)
        tally = self._sessions.tally(index)
        rate = self._worker_rates.setdefault(index, _Rate())
        attempts = list(session.attempts.values()) if session is not None else []
        return board.TrafficRow(
            epoch=session.epoch if session is not None else 0,
            in_flight=len(attempts),
            pending_tokens=sum(f.prefill for f in attempts if f.last_token is None),
            requests=tally.requests,
            tokens_in=tally.tokens_in,
            tokens_out=tally.tokens_out,
            tokens_out_s=rate.update(now, tally.tokens_out),
            ttft_s=tally.ttft_s,
            inter_token_s=tally.inter_token_s,
            errors=tally.errors,
            timeouts=tally.timeouts,
            error_rate=session.error_rate if session is not None else 0.0,
        )

    def _ttft_quantiles(self, now: float) -> tuple[float | None, float | None]:
        """p50 and p95 of the last minute; sorted anew once a second."""
        if now - self._quantiles_at >= 1.0:
            self._quantiles_at = now
            while self._ttfts and now - self._ttfts[0][0] > _TTFT_KEPT_S:
                self._ttfts.popleft()
            values = sorted(seconds for _, seconds in self._ttfts)
            self._quantiles = (_quantile(values, 0.5), _quantile(values, 0.95))
        return self._quantiles


def _quantile(values: list[float], part: float) -> float | None:
    return values[min(len(values) - 1, int(part * len(values)))] if values else None
