"""From the pure policies to the sessions: who gets a job, and what it will cost.

Owns what routing remembers of past requests. Assigns nothing; see dispatcher.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec

from lbhost import wire
from lbhost.config import Settings
from lbhost.gateway.scheduling import policy
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.sessions import Session, Sessions

_USUAL_TOKENS = 128.0
"""Output tokens that a request is taken for before the first ones have ended."""

_USUAL_PROMPT = 256.0
"""Prompt tokens to compute, the same."""

_USUAL_WEIGHT = 0.05
"""Weight of the newest request in what is usual."""


class Router:
    """Knows the sessions; changes nothing in them."""

    def __init__(self, settings: Settings, sessions: Sessions, rng: Random) -> None:
        self._policy = settings.policy
        self._sessions = sessions
        self._rng = rng
        self._turn = 0
        self._usual_tokens = _USUAL_TOKENS
        self._usual_prompt = _USUAL_PROMPT

    def choose(
        self,
        job: Job,
        usable: Sequence[tuple[Session, WorkerReading]],
        views: Sequence[policy.WorkerView],
    ) -> int | None:
        """Index of the usable session that gets the job now; None: it waits.

        Args:
            views: of `usable`, one each, for a job of which nothing is cached.
        """
        need = policy.Need(job.work.prompt_tokens, job.expected_tokens, job.work.rank)
        seen = [
            _seen_by(job, session, view) for (session, _), view in zip(usable, views, strict=True)
        ]
        index = policy.choose(self._policy, need, seen, self._rng, self._turn)
        self._turn += index is not None
        return index

    def learn(self, finish: wire.Finish) -> None:
        """A request has ended by itself."""
        self._usual_tokens += _USUAL_WEIGHT * (finish.completion_tokens - self._usual_tokens)
        computed = finish.prompt_tokens - finish.cached_tokens
        self._usual_prompt += _USUAL_WEIGHT * (computed - self._usual_prompt)

    def expected_tokens(self, work: Work) -> int:
        """Output tokens: as many as usual, and no more than asked for."""
        if work.ignore_eos:
            return work.max_tokens
        return max(1, min(work.max_tokens, round(self._usual_tokens)))

    def lonely_cost_s(self, job: Job) -> float:
        """Seconds that an idle, undisturbed worker would take."""
        need = policy.Need(job.work.prompt_tokens, job.expected_tokens)
        idle = policy.WorkerView(worker=0, epoch=0, slots=1, in_flight=0)
        return policy.predict(need, idle, self._sessions.speeds())

    def place_every_s(self) -> float:
        """Seconds from one freed slot to the next while all are busy, as far as can be told.

        A worker of k slots computes their prompts one after the other and decodes k at once.
        """
        prefill, base, seq = self._sessions.speeds()
        workers = max(1, self._sessions.workers)
        each = max(1.0, self._sessions.slots / workers)
        decode = self._usual_tokens * (base + each * seq) / each
        return (self._usual_prompt / prefill + decode) / workers


def _seen_by(job: Job, session: Session, view: policy.WorkerView) -> policy.WorkerView:
    """The view with what the session probably has cached of the job's prompt."""
    cached = session.cached(job)
    return msgspec.structs.replace(view, cached=cached) if cached else view
