"""Publishes what the gateway knows on the board: a row for each worker and model, and its own.

This process is those rows' one writer. Counts nothing itself; see recorder.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from lbhost import board
from lbhost.gateway.metrics import Load
from lbhost.gateway.recorder import Figures, Recorder
from lbhost.gateway.rolling import Growth, Rate
from lbhost.gateway.scheduling.sessions import Sessions
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse
from lbhost.purpose import Purpose

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


class Part(Protocol):
    """One model, as far as the board is concerned."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def purpose(self) -> Purpose: ...
    @property
    def sessions(self) -> Sessions: ...
    @property
    def traffic(self) -> Recorder: ...
    @property
    def load(self) -> Load: ...
    @property
    def states(self) -> Plane: ...
    @property
    def queue_limit(self) -> int: ...


class _WorkerRates:
    """How fast one worker id is."""

    def __init__(self) -> None:
        self.out = Rate(_RATE_S)
        self.prompt = Rate(_PROMPT_RATE_S)
        self.computed = Growth()


class _Rates:
    """How fast a model is, or all are together."""

    def __init__(self) -> None:
        self.requests = Rate(_RATE_S)
        self.tokens = Rate(_RATE_S)
        self.prompt = Rate(_PROMPT_RATE_S)


class BoardWriter:
    """See the module. `write` is to be called every WRITE_S."""

    def __init__(
        self,
        page: board.Board,
        parts: Sequence[Part],
        total: Figures,
        purse: Purse,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parts`: the models, by their numbers. total: of all, and of requests for none."""
        self._board = page
        self._parts = parts
        self._total = total
        self._purse = purse
        self._clock = clock
        self._rates = _Rates()
        self._rates_of = [_Rates() for _ in parts]
        self._workers: dict[tuple[int, int], _WorkerRates] = {}
        """By model and worker id: an id may be another model's later."""
        self._written: dict[int, board.TrafficRow] = {}
        self._requests_written = 0
        self._quiet_writes = 0

    def write(self, connections: int) -> None:
        """Publish the rows. Rows that say nothing new are not written."""
        now = self._clock()
        loads = [part.load for part in self._parts]
        busy = any(load.in_flight or load.queue_depth for load in loads)
        if busy or self._total.requests != self._requests_written:
            self._quiet_writes = 0
        self._requests_written = self._total.requests
        if self._quiet_writes < _QUIET_AFTER or self._quiet_writes % _QUIET_EVERY == 0:
            self._write_workers(now)
            for model, part in enumerate(self._parts):
                self._board.models.write(part.number, self._model_row(model, now))
        self._quiet_writes += 1
        self._board.gateway.write(0, self._gateway_row(now, connections))

    def _gateway_row(self, now: float, connections: int) -> board.GatewayRow:
        loads = [part.load for part in self._parts]
        planes = [part.states for part in self._parts]
        counts = [plane.counts for plane in planes]
        total, rates = self._total, self._rates
        p50, p95 = total.ttfts.at(now)
        waited, prefilled, stepped = total.ttfts.p95_parts or (None, None, None)
        computed = sum(worker.computed.total for worker in self._workers.values())
        return board.GatewayRow(
            pid=os.getpid(),
            heartbeat_ns=time.monotonic_ns(),
            queue_depth=sum(load.queue_depth for load in loads),
            queue_limit=sum(part.queue_limit for part in self._parts),
            in_flight=sum(load.in_flight for load in loads),
            connections=connections,
            requests=total.requests,
            errors=total.errors,
            rejected=total.rejected,
            requests_s=rates.requests.update(now, total.requests),
            tokens_s=rates.tokens.update(now, total.tokens_out),
            ttft_p50_s=p50,
            ttft_p95_s=p95,
            ttft_p95_queue_s=waited,
            ttft_p95_prefill_s=prefilled,
            ttft_p95_step_s=stepped,
            next_start_s=_most(load.next_start_s for load in loads),
            prompt_tokens_s=rates.prompt.update(now, computed),
            oldest_wait_s=_most(load.oldest_wait_s for load in loads),
            error_rate=total.failures.at(now),
            states=sum(plane.entries for plane in planes),
            state_bytes=sum(plane.bytes for plane in planes),
            state_limit=int(self._purse.limit),
            state_hits=sum(one.hits for one in counts),
            state_misses=sum(one.misses for one in counts),
            state_tokens=sum(one.tokens for one in counts),
            state_failures=sum(one.failed for one in counts),
            states_movable=all(plane.unable is None for plane in planes),
        )

    def _model_row(self, model: int, now: float) -> board.ModelRow:
        part, rates = self._parts[model], self._rates_of[model]
        figures, load = part.traffic.figures, part.load
        p50, p95 = figures.ttfts.at(now)
        return board.ModelRow(
            heartbeat_ns=time.monotonic_ns(),
            name=part.name,
            kind=part.purpose.kind.value,
            queue_depth=load.queue_depth,
            in_flight=load.in_flight,
            requests=figures.requests,
            errors=figures.errors,
            rejected=figures.rejected,
            requests_s=rates.requests.update(now, figures.requests),
            tokens_s=rates.tokens.update(now, figures.tokens_out),
            prompt_tokens_s=rates.prompt.update(now, self._computed(model)),
            ttft_p50_s=p50,
            ttft_p95_s=p95,
            oldest_wait_s=load.oldest_wait_s,
            error_rate=figures.failures.at(now),
            work_s=load.work_s,
            backlog_s=load.backlog_s,
        )

    def _write_workers(self, now: float) -> None:
        for model, part in enumerate(self._parts):
            for index, reading in part.sessions.readings.present():
                row = self._row(model, index, reading.progress, now)
                if self._written.get(index) != row:
                    self._board.traffic.write(index, row)
                    self._written[index] = row

    def _computed(self, model: int) -> int:
        """Prompt tokens that a model's workers have computed by now."""
        return sum(one.computed.total for (of, _), one in self._workers.items() if of == model)

    def _row(
        self, model: int, index: int, progress: board.ProgressRow, now: float
    ) -> board.TrafficRow:
        sessions = self._parts[model].sessions
        session = sessions.current(index)
        tally = sessions.tally(index)
        accuracy = sessions.accuracy(index)
        rates = self._workers.setdefault((model, index), _WorkerRates())
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


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
