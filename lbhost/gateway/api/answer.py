"""One response on its way out, whole or as a stream, with the answers of one request.

A stream is the hot path: chunks go straight to `send`, one for all that has come since the last.
The response's headers wait for the first text (or ping), so that whatever goes wrong before it
still has an HTTP status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from starlette.types import Send

from lbhost import wire
from lbhost.gateway.api.replies import Given
from lbhost.gateway.api.writer import Writer
from lbhost.gateway.exchange import Exchange, milliseconds
from lbhost.gateway.scheduling.deltas import merged
from lbhost.gateway.scheduling.group import Group
from lbhost.gateway.scheduling.job import Bell

PING_S = 10.0
"""While nothing else is sent for so long, a stream gets a comment: proxies cut idle ones."""


LARGE = 512
"""Tokens with log-probabilities, and alternatives, that are written at once: some 5 ms."""

EVENT_BYTES = 128 * 1024
"""Of a stream that are written at once, and one answer's news more."""


class ClientGoneError(Exception):
    """The client hung up; there is nobody to answer."""


class Answer:
    """One response on its way out."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self.exchange = exchange
        self._send = send
        self.group: Group | None = None

    async def tell(self, body: bytes) -> None:
        """JSON that is complete."""
        await self._start(self.group, _json_headers(body))
        await self._send({"type": "http.response.body", "body": body})

    async def computed(self, group: Group) -> None:
        """Return when all of the group is done. Raises LbhostError, ClientGoneError."""
        await group.wait()
        if group.error is not None:
            raise group.error
        if group.cancelled:
            raise ClientGoneError

    async def whole(self, group: Group, reply: Writer, *, n: int = 1, best_of: int = 1) -> None:
        """All in one piece.

        Args:
            n, best_of: of so many jobs to each prompt, so many are given.
        """
        await self.computed(group)
        answers = [
            Given(merged(job.take()), job.finish) for job in group.jobs if job.finish is not None
        ]
        costs = [answer.finish for answer in answers]
        if best_of > n:
            answers = [
                answer
                for at in range(0, len(answers), best_of)
                for answer in most_probable(answers[at : at + best_of], n)
            ]
        # 25,000 tokens with 20 alternatives each kept every other stream waiting for seconds.
        large = sum(answer.delta.scores for answer in answers) > LARGE
        write = partial(reply.whole, answers, costs)
        body = await asyncio.to_thread(write) if large else write()
        await self._start(group, _json_headers(body))
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, group: Group, reply: Writer) -> None:
        """As server-sent events, ending in [DONE] or an error event."""
        pinger = _Pinger(group.bell)
        opened: set[int] = set()
        try:
            # Jobs may end while a slow client keeps `send` waiting: only what was sent counts.
            ended = False
            while not ended:
                await group.wait()
                if group.cancelled:
                    raise ClientGoneError
                error = group.error
                if error is not None and self.exchange.status is None:
                    raise error
                event = b""
                for place in range(len(group.jobs)):
                    event += _news(group, place, reply, opened)
                    if len(event) > EVENT_BYTES:
                        await asyncio.sleep(0)  # others first, then the rest
                        break
                ended = len(group.told) == len(group.jobs) or error is not None
                if error is not None:
                    event += reply.failing(error)
                elif ended:
                    event += reply.closing(_finishes(group))
                elif not event:
                    if not pinger.due():  # text that a reader holds back is no reason to speak
                        continue
                    event = reply.ping()
                if self.exchange.status is None:
                    await self._start(group, _STREAM_HEADERS)
                await self._send(
                    {"type": "http.response.body", "body": event, "more_body": not ended}
                )
                pinger.sent()
        finally:
            pinger.stop()

    async def _start(self, group: Group | None, headers: list[tuple[bytes, bytes]]) -> None:
        self.exchange.status = 200
        worker = None if group is None else group.jobs[0].worker
        if worker is not None:
            headers = [*headers, (b"x-lbhost-worker", b"%d" % worker)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def details(self, group: Group) -> dict[str, object]:
        """For the log line; never what was asked or answered. Of several jobs the sums, and the
        first one's worker."""
        jobs = group.jobs
        first = min((job.first_token for job in jobs if job.first_token is not None), default=None)
        finishes = _finishes(group)
        details: dict[str, object] = {
            "worker": jobs[0].worker,
            "prompt_tokens": sum(job.work.prompt_tokens for job in jobs),
            "completion_tokens": sum(job.completion_tokens for job in jobs),
            "cached_tokens": sum(f.cached_tokens for f in finishes) if finishes else None,
            "ttft_ms": None if first is None else milliseconds(first - jobs[0].arrived),
            "attempts": max(job.attempts for job in jobs),
        }
        return details if len(jobs) == 1 else {**details, "answers": len(jobs)}


def most_probable(answers: Sequence[Given], count: int) -> list[Given]:
    """The answers whose tokens have the highest mean log-probability, the highest first."""

    def mean(answer: Given) -> float:
        scores = [score.logprob for score in answer.delta.logprobs]
        return sum(scores) / len(scores) if scores else 0.0  # ended at once, and was sure of it

    return sorted(answers, key=mean, reverse=True)[:count]


def _news(group: Group, place: int, reply: Writer, opened: set[int]) -> bytes:
    """The events of what has come of one job since the last time."""
    job = group.jobs[place]
    if place in group.told or not (job.has_news or job.over):
        return b""  # tokens without text stay there: what is written later counts them
    delta = merged(job.take())
    ended = job.finish is not None
    event = b""
    if (delta.weight or ended) and place not in opened:
        event = reply.opening(place)
        opened.add(place)
    if delta.weight:
        event += reply.text(place, delta)
    if job.finish is not None:
        event += reply.last_chunk(place, job.finish)
        group.told.add(place)
    return event


def _finishes(group: Group) -> list[wire.Finish]:
    return [job.finish for job in group.jobs if job.finish is not None]


def _json_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _Pinger:
    """Rings a consumer's bell whenever nothing was sent for PING_S."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(PING_S, self._due)

    def sent(self) -> None:
        self._last = self._loop.time()

    def due(self) -> bool:
        """Whether nothing was sent for so long."""
        return self._loop.time() - self._last >= PING_S

    def stop(self) -> None:
        self._timer.cancel()

    def _due(self) -> None:
        silent = self._loop.time() - self._last
        if silent >= PING_S:
            self._bell.ring()
            silent = 0.0
        self._timer = self._loop.call_later(PING_S - silent, self._due)
