"""What workers say of their requests, and what follows from it: tokens, vectors, ends.

A slot is given back in one place only, `_release`, when the worker says that the attempt ended; or
with the whole link (dispatcher.py). Counting comes last, and disturbs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from lbhost import wire
from lbhost.errors import ClientTimeoutError, EngineError, LbhostError, UnprocessableError
from lbhost.gateway.scheduling.deltas import TextDelta
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.losses import Losses
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.observer import GuardedObserver
from lbhost.gateway.scheduling.pace import Pace
from lbhost.gateway.scheduling.register import Register
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Session, Sessions
from lbhost.gateway.scheduling.suspicion import Death
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.gateway.states.plane import Plane

REJECT_HOLD_S = 0.05
"""A worker that refused a request is left alone so long: its state is about to change."""

MAX_UNTAKEN = 1 << 20
"""Characters (TextDelta.weight) of a stream that may wait for a client that reads too slowly; then
it is cut off. A plain answer is bounded by its tokens, and nobody could take it earlier."""

_FAILURES = (wire.FinishReason.ERROR, wire.FinishReason.FAILED)
_GOES_ON = (wire.FinishReason.REJECTED, wire.FinishReason.MOVED, wire.FinishReason.FAILED)


class Reports:
    """See the module."""

    def __init__(
        self,
        sessions: Sessions,
        queue: JobQueue,
        register: Register,
        losses: Losses,
        router: Router,
        pace: Pace,
        states: Plane,
        observer: GuardedObserver,
        clock: Callable[[], float],
        clock_ns: Callable[[], int],
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._register = register
        self._losses = losses
        self._router = router
        self._pace = pace
        self._states = states
        self._observer = observer
        self._clock = clock
        self._clock_ns = clock_ns

    def take(self, link: WorkerLink, said: wire.FromWorker) -> bool:
        """All that one engine step produced. Whether slots have come free."""
        session = self._sessions.of(link)
        if session is None:
            return False
        if isinstance(said, wire.Vectors):
            return self._take_vectors(session, said)
        now = self._clock()
        released = False
        if any(delta.finish is not None for delta in said.deltas):
            self._states.read(link)  # what it has saved by now may be wanted at once
        for delta in said.deltas:
            attempt = session.attempts.get(delta.request)
            if attempt is None:
                continue
            self._take_delta(attempt, delta, now)
            if delta.finish is not None:
                self._release(attempt, delta.finish)
                released = True
        return released

    def _take_delta(self, attempt: Attempt, delta: wire.Delta, now: float) -> None:
        job = attempt.job
        if delta.tokens:
            begins = attempt.first_token is None
            if begins:
                attempt.step_s = delta.step_s
                self._router.began(attempt, now)
            self._observer.tokens(attempt, len(delta.tokens), now)
            self._queue.charge(job, len(delta.tokens) * job.output_cost_s)
            attempt.last_token = now
            if not job.over and begins:
                job.begin(now, delta.cached_tokens)
        if not job.over and (delta.tokens or delta.text or delta.prompt_logprobs):
            job.put(TextDelta(delta.text, delta.tokens, delta.logprobs, delta.prompt_logprobs))
            if job.work.stream and job.untaken > MAX_UNTAKEN:
                self._register.drop(job, ClientTimeoutError("the client reads too slowly"))

    def _take_vectors(self, session: Session, vectors: wire.Vectors) -> bool:
        attempt = session.attempts.get(vectors.request)
        if attempt is None:
            return False
        self._router.began(attempt, self._clock())
        attempt.vectors += vectors.values
        if vectors.finish is None:
            return False
        if not attempt.job.over:
            attempt.job.vectors = attempt.vectors
        self._release(attempt, vectors.finish)
        return True

    def _release(self, attempt: Attempt, finish: wire.Finish) -> None:
        """An attempt ended by the worker's word."""
        session, job = attempt.session, attempt.job
        if session.release(attempt.number) is None:
            return
        now = self._clock()
        self._states.released(session.link, attempt.number)
        reason, finish = finish.reason, job.as_one(finish, now)
        self._observer.released(attempt, finish)
        if reason is wire.FinishReason.REJECTED:
            session.held_until_ns = self._clock_ns() + int(REJECT_HOLD_S * 1e9)
        elif reason not in (wire.FinishReason.CANCELLED, wire.FinishReason.MOVED):
            session.count_outcome(reason in _FAILURES, now)
        if reason not in _GOES_ON:  # or it is about to take another place
            self._pace.freed(now)
        if not job.over:
            self._settle(attempt, finish, now)

    def _settle(self, attempt: Attempt, finish: wire.Finish, now: float) -> None:
        """What becomes of a job whose attempt has ended."""
        job, link, reason = attempt.job, attempt.session.link, finish.reason
        if reason is wire.FinishReason.REJECTED:
            job.attempts -= 1
            self._register.requeue(job)
        elif reason is wire.FinishReason.MOVED:
            if finish.prefill_s:
                job.cached_tokens = finish.cached_tokens
            job.attempts -= 1
            cause = attempt.moving or Reason.STOP
            self._register.requeue(job, in_place=cause is Reason.PRIORITY)
            self._observer.moved(job, cause)
        elif reason is wire.FinishReason.CANCELLED:
            # Not at our word, or the job were over.
            self._losses.lost(job, None)
        elif reason is wire.FinishReason.FAILED:
            death = Death(link.worker, link.epoch, finish.alone, now, counts=True)
            self._losses.lost(job, death)
        elif (error := _error_of(finish)) is not None:
            self._register.end(job, error=error)
        else:
            self._router.learn(attempt, finish, now)
            self._register.end(job, finish=finish)


def _error_of(finish: wire.Finish) -> LbhostError | None:
    """What the worker's word is to the client, if it is the request's end and no answer."""
    if finish.reason is wire.FinishReason.ERROR:
        why = finish.error or "unknown reason"
        return EngineError(f"the engine gave up on this request: {why}")
    if finish.reason is wire.FinishReason.GRAMMAR:
        return UnprocessableError(
            f"the answer's grammar cannot be followed any further: {finish.error}"
        )
    return None
