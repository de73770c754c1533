"""The workers as the gateway has them: links, requests in flight, what was learnt of each.

Owns the exact counts of what is in flight: an Attempt is one job on one worker, and holds one
of its slots until the worker says that it ended, or the link does. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from lbhost import board, order
from lbhost.gateway.scheduling import policy
from lbhost.gateway.scheduling.accuracy import Accuracy, Forecast, like
from lbhost.gateway.scheduling.fading import ErrorRate, FadingMean
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.neighbours import Neighbours
from lbhost.gateway.scheduling.prefix_index import PrefixIndex
from lbhost.gateway.scheduling.readings import WorkerReading, WorkerReadings
from lbhost.gateway.scheduling.sleep import Sleep
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.gateway.scheduling.worker_view import Speeds, WorkerView

STALE_NS = 1_000_000_000
"""A worker with work but no sign of progress for so long, and for STALE_STEPS of its own
steps, gets nothing more. The supervisor decides whether it is hung."""

STALE_STEPS = 5.0


class Tally:
    """Totals of one worker id over all its processes, since the gateway started."""

    def __init__(self) -> None:
        self.requests = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.errors = 0
        self.timeouts = 0


class Attempt:
    """One attempt of a job on a worker. Its number names it on the wire, once and for all."""

    def __init__(
        self,
        number: int,
        job: Job,
        session: Session,
        sent_ns: int,
        forecast: Forecast | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self.number = number
        self.job = job
        self.session = session
        self.sent_ns = sent_ns
        self.own = session.own(job)
        """Of what it has to know, tokens that the worker probably has in its slots."""
        self.done_tokens = job.completion_tokens
        """Output tokens that earlier attempts have produced."""
        self.prefill = max(1, job.known_tokens - session.cached(job))
        """Tokens that it has to compute before its first, as far as we can tell."""
        self.alone = alone
        """Whether nobody else may be there until it ends."""
        self.forecast = forecast
        """What was predicted when it was sent; None where nothing was known."""
        self.first_token: float | None = None
        self.last_token: float | None = None
        """time.monotonic() of its first and its newest token; None while it prefills."""
        self.step_s: float | None = None
        """How long the step took that its first token came from; None where nobody has told."""
        self.vectors = b""
        """What has come of its inputs' vectors; see wire.Vectors."""
        self.moving: Reason | None = None
        """Why it was asked back, if it was."""

    @property
    def left(self) -> int:
        """Output tokens that are expected to come."""
        return max(1, self.job.expected_tokens - (self.job.completion_tokens - self.done_tokens))


class Session:
    """One process (epoch) of a worker, with the link to it."""

    def __init__(
        self,
        link: WorkerLink,
        slots: int,
        tally: Tally,
        accuracy: Accuracy,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._neighbours = neighbours
        self.worker = link.worker
        self.epoch = link.epoch
        self.link = link
        self.slots = slots
        self.tally = tally
        self.accuracy = accuracy
        self.attempts: dict[int, Attempt] = {}
        self.error_rate = ErrorRate()
        self.ttft = FadingMean()
        """Seconds from being given a request to its first token; of this process alone."""
        self.inter_token = FadingMean()
        """Seconds between two tokens of one request."""
        self.held_until_ns = 0
        """It has just refused a request: the board is about to say that it drains."""
        self.busy_since_ns = 0
        self.prefixes = PrefixIndex(slots)
        self._newest_adapter = 0

    def __repr__(self) -> str:
        return f"worker {self.worker}.{self.epoch}: {len(self.attempts)} of {self.slots} in flight"

    @property
    def part(self) -> float:
        """Of its core that other models' workers leave to it, over 0; 1 where it has it alone."""
        return 1.0 if self._neighbours is None else 1.0 / (1 + self._neighbours.computing(self))

    @property
    def room(self) -> int:
        """Slots for others."""
        if any(attempt.alone for attempt in self.attempts.values()):
            return 0
        return self.slots - len(self.attempts)

    def own(self, job: Job) -> int:
        """Tokens of what it has to know that are probably in a slot there."""
        return min(self.prefixes.predict(job.chain), job.known_tokens - 1)

    def cached(self, job: Job) -> int:
        """Those that need not be computed there, be it thanks to a stored state."""
        if job.scored:
            return 0
        return max(self.own(job), min(job.stored, job.known_tokens - 1))

    def assign(self, attempt: Attempt) -> None:
        """A request is on its way there and holds a slot from now on."""
        if not self.attempts:
            self.busy_since_ns = attempt.sent_ns
        self.attempts[attempt.number] = attempt
        self._newest_adapter = attempt.job.work.adapter
        self.prefixes.add(attempt.job.chain)

    def release(self, number: int) -> Attempt | None:
        """Give its slot back; None when that has happened before."""
        return self.attempts.pop(number, None)

    def count_outcome(self, failed: bool, now: float) -> None:
        self.error_rate.add(failed, now)
        self.tally.errors += failed

    def left(self, progress: board.ProgressRow) -> dict[int, int]:
        """Prompt tokens left by attempt, of those that have some."""
        return {number: tokens for _, tokens, number in self._prefills(progress)}

    def _prefills(self, progress: board.ProgressRow) -> list[tuple[int, int, int]]:
        """Rank, prompt tokens left and number of each attempt there without output, in its order.

        We know what we sent, the board says how much is left of what the worker had at its
        heartbeat; what is first in its order is taken off first.
        """
        waiting = [attempt for attempt in self.attempts.values() if attempt.last_token is None]
        left = sorted((attempt.job.rank, attempt.prefill, attempt.number) for attempt in waiting)
        if not left or progress.epoch != self.epoch:
            return left
        since = sum(a.prefill for a in waiting if a.sent_ns > progress.heartbeat_ns)
        done = sum(tokens for _, tokens, _ in left) - (progress.prefill_pending + since)
        while left and done > 0:
            rank, tokens, number = left[0]
            if tokens > done:
                left[0] = rank, tokens - done, number
            else:
                del left[0]
            done -= tokens
        return left

    def usable(self, reading: WorkerReading, now_ns: int) -> bool:
        """Whether it may get requests: READY, this very process, and making progress."""
        identity, progress = reading.identity, reading.progress
        if (
            identity.state is not board.WorkerState.READY
            or identity.epoch != self.epoch
            or now_ns < self.held_until_ns
        ):
            return False
        if not self.attempts or progress.epoch != self.epoch:
            return True
        silent = now_ns - max(progress.heartbeat_ns, self.busy_since_ns)
        return silent <= max(STALE_NS, STALE_STEPS * progress.predicted_step_s * 1e9)

    def view(self, reading: WorkerReading, now_ns: int, *, wide: bool = False) -> WorkerView:
        """As the policy wants it, for a job of which nothing is cached.

        Args:
            wide: whether cores of idle workers are there to be lent.
        """
        identity, progress = reading.identity, reading.progress
        now = now_ns / 1e9
        ready_for_s = max(0.0, now - identity.started_ns / 1e9)
        left = self._prefills(progress)
        adapters: dict[int, int] = {}
        if any(attempt.job.work.adapter for attempt in self.attempts.values()):
            adapters = {number: one.job.work.adapter for number, one in self.attempts.items()}
        factors = self.accuracy.factors(wide)
        jobs = [attempt.job for attempt in self.attempts.values()]
        flex = sum(job.work.rank == order.FLEX for job in jobs)
        long = sum(job.long and job.work.rank != order.FLEX for job in jobs)
        return WorkerView(
            worker=self.worker,
            epoch=self.epoch,
            slots=len(self.attempts) + self.room,
            in_flight=len(self.attempts),
            long_in_flight=long,
            flex_in_flight=flex,
            prefills=tuple([tokens for _, tokens, _ in left]),
            ranks=()
            if all(rank == order.DEFAULT for rank, _, _ in left)
            else tuple(r for r, _, _ in left),
            adapters=tuple(adapters.values()),
            prefill_adapters=tuple([adapters[n] for _, _, n in left]) if adapters else (),
            newest_adapter=self._newest_adapter,
            speeds=_speeds(progress) if progress.epoch == self.epoch else None,
            steps_s=progress.steps_s if progress.epoch == self.epoch else (),
            share=reading.share * self.part,
            idle=reading.idle,
            penalty=policy.penalty(self.error_rate.at(now), ready_for_s),
            ttft_factor=factors.ttft.at(now),
            output_factor=factors.output.at(now),
        )


class Sessions:
    """All sessions. At most one per worker gets new requests; older ones finish theirs."""

    def __init__(
        self,
        readings: WorkerReadings,
        slots: int,
        neighbours: Neighbours | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        """Of one model.

        Args:
            neighbours: other models' workers; None: there are none.
            sleep: None: it never sleeps.
        """
        self.sleep = sleep or Sleep()
        self.readings = readings
        self.changes = 0
        """Counts the processes that came and went."""
        self._neighbours = neighbours
        self._slots = slots
        self._sessions: dict[WorkerLink, Session] = {}
        self._current: dict[int, Session] = {}
        self._tallies: dict[int, Tally] = {}
        self._accuracies: dict[int, Accuracy] = {}

    def __repr__(self) -> str:
        return f"Sessions({', '.join(map(repr, self._sessions.values()))})"

    @property
    def in_flight(self) -> int:
        return sum(len(session.attempts) for session in self._sessions.values())

    def tally(self, worker: int) -> Tally:
        return self._tallies.setdefault(worker, Tally())

    def accuracy(self, worker: int) -> Accuracy:
        """Of the predictions for a worker id. A new one starts with what is usual here."""
        found = self._accuracies.get(worker)
        if found is None:
            found = like(self._accuracies.values())
            self._accuracies[worker] = found
        return found

    def accuracies(self) -> list[Accuracy]:
        """Of all worker ids that there have been."""
        return list(self._accuracies.values())

    def current(self, worker: int) -> Session | None:
        return self._current.get(worker)

    def currents(self) -> list[Session]:
        """Of all workers that have a link, the present process's."""
        return list(self._current.values())

    def of(self, link: WorkerLink) -> Session | None:
        return self._sessions.get(link)

    def join(self, link: WorkerLink) -> Session:
        """A new process of a worker. What its predecessor still sends is read to its end."""
        reading = self.readings.worker(link.worker)
        slots = reading.identity.slots if reading is not None else 0
        worker = link.worker
        tally, accuracy = self.tally(worker), self.accuracy(worker)
        session = Session(link, slots or self._slots, tally, accuracy, self._neighbours)
        self.changes += 1
        self._sessions[link] = session
        self._current[link.worker] = session
        return session

    def leave(self, link: WorkerLink) -> list[Attempt]:
        """A link is gone; its attempts, all of them released by this."""
        session = self._sessions.pop(link, None)
        if session is None:
            return []
        self.changes += 1
        if self._current.get(session.worker) is session:
            del self._current[session.worker]
        attempts = list(session.attempts.values())
        session.attempts.clear()
        return attempts

    def usable(self, now_ns: int) -> list[tuple[Session, WorkerReading]]:
        """The sessions that may get requests, full ones included, by worker id."""
        return list(self._usable(now_ns))

    def _usable(self, now_ns: int) -> Iterator[tuple[Session, WorkerReading]]:
        for worker, session in sorted(self._current.items()):
            reading = self.readings.worker(worker)
            if reading is not None and session.usable(reading, now_ns):
                yield session, reading

    def any_usable(self, now_ns: int) -> bool:
        """Whether any may get requests."""
        return any(self._usable(now_ns))

    def unwanted(self) -> bool:
        """Whether there are workers, all of which an operator has taken down."""
        present = self.readings.present()
        return bool(present) and all(r.identity.wanted is board.Wanted.DOWN for _, r in present)

    @property
    def wide(self) -> bool:
        """Whether a worker is idle and stays so when the next request comes: it lends its cores."""
        currents = self._current.values()
        return sum(not session.attempts and session.part == 1.0 for session in currents) > 1

    @property
    def slots(self) -> int:
        return sum(session.slots for session in self._current.values())

    @property
    def workers(self) -> int:
        """Workers with a link."""
        return len(self._current)

    @property
    def capacity(self) -> float:
        """So many workers with cores of their own would get done what these do now."""
        return sum(session.part for session in self._current.values())

    def speeds(self) -> Speeds:
        """A worker's speeds that stand for all: the first measured ones, else assumed."""
        return self.measured_speeds() or policy.ASSUMED_SPEEDS

    def measured_speeds(self) -> Speeds | None:
        """The first measured ones; None where no worker knows its own yet."""
        found = self._measured()
        return None if found is None else _speeds(found)

    def steps_s(self) -> tuple[float, ...]:
        """Seconds of its decode steps of 1, 2, … sequences, as far as it has told them."""
        found = self._measured()
        return () if found is None else found.steps_s

    def _measured(self) -> board.ProgressRow | None:
        for worker in self._current:
            reading = self.readings.worker(worker)
            if reading is not None and _speeds(reading.progress) is not None:
                return reading.progress
        return None

    def all(self) -> list[Session]:
        """Those of former processes included, as long as they have a link."""
        return list(self._sessions.values())

    def links(self) -> list[WorkerLink]:
        return list(self._sessions)


def _speeds(progress: board.ProgressRow) -> Speeds | None:
    prefill, base, seq = progress.prefill_tok_s, progress.step_base_s, progress.step_seq_s
    if prefill is None or base is None or seq is None:
        return None
    return prefill, base, seq
