"""From the pure policies to the sessions: who gets a job, and what it will cost.

Owns what routing remembers of past requests. Assigns nothing; see dispatcher.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

import msgspec

from lbhost import wire
from lbhost.config import Settings
from lbhost.gateway.scheduling import policy, prospects
from lbhost.gateway.scheduling.accuracy import Forecast
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.lengths import Lengths
from lbhost.gateway.scheduling.moving import Offer
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.sessions import Attempt, Session, Sessions
from lbhost.gateway.scheduling.worker_view import WorkerView, seen_with

_USUAL_TOKENS = 128.0
"""Output tokens of a request before the first ones have ended."""

_USUAL_PROMPT = 256.0
"""Prompt tokens to compute, the same."""

_USUAL_WEIGHT = 0.05
"""Weight of the newest request in what is usual."""


class Router:
    """Knows the sessions; changes nothing in them."""

    def __init__(self, settings: Settings, sessions: Sessions, rng: Random) -> None:
        self.policy = settings.policy
        self._sessions = sessions
        self._rng = rng
        self._turn = 0
        self._usual_tokens = _USUAL_TOKENS
        self._usual_prompt = _USUAL_PROMPT
        self._lengths = Lengths()

    def choose(
        self,
        job: Job,
        usable: Sequence[tuple[Session, WorkerReading]],
        views: Sequence[WorkerView],
    ) -> int | None:
        """Index of the usable session that gets the job now; None: it waits.

        Args:
            views: of `usable`, one each, for a job of which nothing is cached.
        """
        need = _need(job)
        seen = [
            _seen_by(job, session, view) for (session, _), view in zip(usable, views, strict=True)
        ]
        index = policy.choose(self.policy, need, seen, self._rng, self._turn)
        self._turn += index is not None
        return index

    def forecast(
        self, job: Job, session: Session, view: WorkerView, *, wide: bool
    ) -> Forecast | None:
        """What to expect of a job that goes to the session now; None where nothing is known.

        Args:
            view: of the session, for a job of which nothing is cached.
            wide: as the view was made.
        """
        foreseen = policy.foresee(_need(job), _seen_by(job, session, view))
        if foreseen is None:
            return None
        ttft_s, output_s = foreseen
        tokens = job.expected_tokens
        return Forecast(ttft_s, output_s, tokens, view.ttft_factor, view.output_factor, wide)

    def began(self, attempt: Attempt, now: float) -> None:
        """An attempt's first token has come."""
        attempt.first_token = now
        sent = attempt.job.started
        if attempt.forecast is not None and sent is not None:
            attempt.session.accuracy.began(attempt.forecast, now - sent, now)

    def learn(self, attempt: Attempt, finish: wire.Finish, now: float) -> None:
        """An attempt has ended by itself."""
        if attempt.job.work.inputs:
            self._usual_prompt += _USUAL_WEIGHT * (finish.prompt_tokens - self._usual_prompt)
            self._usual_tokens = 0.0
            return
        tokens = finish.completion_tokens
        self._usual_tokens += _USUAL_WEIGHT * (tokens - self._usual_tokens)
        computed = finish.prompt_tokens - finish.cached_tokens
        self._usual_prompt += _USUAL_WEIGHT * (computed - self._usual_prompt)
        if not attempt.job.work.ignore_eos:
            self._lengths.add(tokens, cut_off=finish.reason is wire.FinishReason.LENGTH)
        forecast, sent, first = attempt.forecast, attempt.job.started, attempt.first_token
        if forecast is not None and sent is not None and first is not None:
            accuracy = attempt.session.accuracy
            here = tokens - attempt.done_tokens
            accuracy.ended(forecast, first - sent, now - sent, here, now)

    def expected_tokens(self, work: Work, done: int = 0) -> int:
        """Output tokens after the first `done`, by how long answers have been, up to the limit."""
        if work.ignore_eos:
            return max(1, work.max_tokens - done)
        return self._lengths.expected(work.max_tokens, done)

    def trusted(self) -> bool:
        """Whether enough was measured here to act on predictions."""
        return prospects.trusted(self._sessions.accuracies())

    def best_factor(self) -> float:
        """What the luckiest worker's predictions are multiplied with; at most 1."""
        return min(
            [
                1.0,
                *(
                    factor.latest
                    for one in self._sessions.accuracies()
                    for which in (one.narrow, one.wide)
                    for factor in (which.ttft, which.output)
                ),
            ]
        )

    def surely_s(self, attempt: Attempt, now: float) -> float:
        """Seconds within which its limit of tokens ends it; infinite where no speed is known."""
        gap = attempt.session.inter_token.at(now)
        if attempt.last_token is None or gap is None:
            return math.inf
        return (attempt.job.work.max_tokens - attempt.job.completion_tokens) * gap

    def offers(
        self,
        session: Session,
        attempts: Iterable[Attempt],
        others: Sequence[tuple[Session, WorkerReading]],
        now_ns: int,
    ) -> list[Offer]:
        """What a session's attempts would take in it and in the best of others that have room."""
        wide = self._sessions.wide
        reading = self._sessions.readings.worker(session.worker)
        if reading is None:
            return []
        here = session.view(reading, now_ns, wide=wide)
        if here.speeds is None:
            return []
        views = [other.view(r, now_ns, wide=False) for other, r in others]
        offers: list[Offer] = []
        for attempt in attempts:
            adapter = attempt.job.work.adapter
            # As if it came now: its own part of the steps is in them once, not twice.
            before = seen_with(_without(here, adapter), adapter)
            there = [seen_with(view, adapter) for view in views]
            need = policy.Need(attempt.job.known_tokens, attempt.left, attempt.job.rank, True)
            stay_s = attempt.left * before.costs[1]
            best: Offer | None = None
            for view in there:
                foreseen = policy.foresee(need, view)
                if foreseen is None:
                    continue
                pause_s, output_s = foreseen
                go_s = pause_s + need.expected_tokens * output_s
                if best is None or go_s < best.go_s:
                    best = Offer(attempt.number, stay_s, go_s, pause_s)
            if best is not None:
                offers.append(best)
        return offers

    def token_costs_s(self) -> tuple[float, float]:
        """Seconds of a worker that a prompt token and an output token cost while all is busy."""
        slots = self._slots_each()
        prefill, base, seq = self._sessions.speeds()
        return 1.0 / prefill, self._lonely().step_s(slots, base, seq) / slots

    def busy_cost_s(self, job: Job, *, again: bool = False) -> float:
        """Seconds of a worker that a job costs while all is busy. What a worker or the store has of
        its prompt costs nothing.

        Args:
            again: another job's prompt is the same: it is computed for both.
        """
        prompt_s, output_s = self.token_costs_s()
        prompt = 0 if again else job.known_tokens - self.cached(job)
        return prompt * prompt_s + job.expected_tokens * output_s

    def cached(self, job: Job) -> int:
        """Tokens of its prompt that the worker which has most of them need not compute."""
        return max((one.cached(job) for one in self._sessions.currents()), default=0)

    def spent_s(self, job: Job) -> float:
        """Seconds of a worker that a job has cost, by the same reckoning."""
        prompt_s, output_s = self.token_costs_s()
        begun = job.first_token is not None or job.vectors
        prompt = job.work.prompt_tokens - (job.cached_tokens or 0) if begun else 0
        return prompt * prompt_s + job.completion_tokens * output_s

    def work_within_s(self, seconds: float) -> float | None:
        """Seconds of a worker that all have in so many; None where no speeds were measured."""
        if self._sessions.measured_speeds() is None:
            return None
        return seconds * (self._sessions.capacity or 1)

    def lonely_cost_s(self, job: Job, cached: int = 0) -> float:
        """Seconds that an idle, undisturbed worker would take that has so many of its tokens."""
        return policy.predict(_need(job), self._lonely(cached), self._sessions.speeds())

    def place_every_s(self) -> float:
        """Seconds from one freed slot to the next while all are busy, as far as can be told.

        A worker of k slots computes their prompts one after the other and decodes k at once.
        """
        prompt_s, output_s = self.token_costs_s()
        each_s = self._usual_prompt * prompt_s + self._usual_tokens * output_s
        return each_s / (self._sessions.capacity or 1)

    def _lonely(self, cached: int = 0) -> WorkerView:
        """An idle, undisturbed worker that has so many of a job's tokens."""
        steps_s = self._sessions.steps_s()
        return WorkerView(worker=0, epoch=0, slots=1, in_flight=0, cached=cached, steps_s=steps_s)

    def _slots_each(self) -> int:
        """Of a worker, on average."""
        return max(1, round(self._sessions.slots / max(1, self._sessions.workers)))


def _need(job: Job) -> policy.Need:
    return policy.Need(job.known_tokens, job.expected_tokens, job.rank, job.begun)


def _without(view: WorkerView, adapter: int) -> WorkerView:
    """The view without one of the requests with this adapter, and without prompts."""
    adapters = list(view.adapters)
    if adapters:
        adapters.remove(adapter)
    return msgspec.structs.replace(
        view,
        in_flight=view.in_flight - 1,
        prefills=(),
        ranks=(),
        adapters=tuple(adapters),
        prefill_adapters=(),
    )


def _seen_by(job: Job, session: Session, view: WorkerView) -> WorkerView:
    """The view with the job's adapter, and what the session probably has cached of its prompt."""
    view = seen_with(view, job.work.adapter)
    cached = session.cached(job)
    return msgspec.structs.replace(view, cached=cached) if cached else view
