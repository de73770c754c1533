"""Counts what happens to requests: for Prometheus, and for the board (board_writer.py).

Watches the dispatcher; influences nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from lbhost import wire
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
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.rolling import Part, Quantiles
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.sessions import Attempt

_WINDOW_S = 60
"""Quantiles and the error rate look back so far."""

_TTFT_KEPT = 1000

_FAILED = frozenset({"timeout", "worker_lost", "engine_error", "error"})
_TAKEN_IN = _FAILED | {"ok", "cancelled"}
OUTCOMES = _TAKEN_IN | {"queue_full", "not_ready", "rate_limited", "invalid"}


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


class Figures:
    """What the board says of requests: of one model's, or of all."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.rejected = 0
        self.tokens_out = 0
        self.ttfts = Quantiles(_WINDOW_S, _TTFT_KEPT)
        self.failures = Part(_WINDOW_S)

    def count(self, what: str, now: float) -> None:
        """A request ended; its outcome."""
        self.requests += 1
        self.rejected += what in ("queue_full", "not_ready")
        self.errors += what in _FAILED
        if what in _TAKEN_IN:
            self.failures.add(now, what in _FAILED)


class Answers:
    """Counts requests as they end. Implements exchange.Counter."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *figures: Figures,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`figures`: all those that its requests count for."""
        self._figures = figures
        self._clock = clock
        self._requests = Counter(
            "lbhost_requests", "Requests ended, by outcome", ["outcome"], registry=registry
        )
        self._errors = Counter(
            "lbhost_error_answers",
            "Requests answered with an error, by HTTP status and reason",
            ["status", "reason"],
            registry=registry,
        )

    def count(self, what: str) -> None:
        """A request for work, or a refused one, ended: its outcome, or "cancelled".

        What is not in OUTCOMES is an "error".
        """
        if what not in OUTCOMES:
            what = "error"
        self._requests.labels(what).inc()
        now = self._clock()
        for figures in self._figures:
            figures.count(what, now)

    def refused(self, error: LbhostError) -> None:
        """A request was answered with an error."""
        self._errors.labels(str(error.status), error.reason).inc()


class Recorder(Answers):
    """One model's. Implements observer.Observer too."""

    def __init__(
        self,
        metrics: Metrics,
        total: Figures,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total`: of all models together."""
        self.figures = Figures()
        super().__init__(metrics.registry, self.figures, total, clock=clock)
        self._total = total
        self._metrics = metrics

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
        self.figures.tokens_out += count
        self._total.tokens_out += count
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
                parts = _parts(attempt, ttft, now)
                self.figures.ttfts.add(now, ttft, parts)
                self._total.ttfts.add(now, ttft, parts)

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
        if job.work.adapter:
            name = job.work.adapter_name
            self._metrics.adapter_answers.labels(name).inc()
            self._metrics.adapter_tokens.labels(name).inc(job.completion_tokens)
        self._metrics.prefill_time.observe(finish.prefill_s)
        self._metrics.decode_time.observe(finish.decode_s)
        if finish.completion_tokens > 1:
            self._metrics.output_token.observe(finish.decode_s / (finish.completion_tokens - 1))
