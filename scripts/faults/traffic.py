"""The clients: streams and plain requests at a steady rate, each answer kept.

Loopback only, and bounded: no more than MOST_OPEN requests at once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Collection, Sequence
from typing import Any

import httpx2
import msgspec

from faults.answers import Answer, Question, Reference, choices

MOST_OPEN = 256
WAITING_S = 20.0
"""Requests that a box gets through in so long may be open: one that has other work than it had when
its capacity was measured would be overloaded, which is another matter than faults."""
LEAST_OPEN = 24
SCORED = 5
"""Of the likeliest tokens, in an undisturbed answer."""
PATIENCE_S = 120.0
"""After which a client gives an answer up."""

_THINGS = ("river", "clock", "garden", "bridge", "lamp", "market", "mountain", "letter")
_ASKS = (
    "Write a short story about a {} and the people who live near it.",
    "Explain to a child what a {} is good for, and give two examples.",
    "List the first things that come to mind about a {}, one in each line.",
)


def questions(rng: random.Random) -> list[Question]:
    """Short ones, some with a long text before the question."""
    found: list[Question] = []
    for thing, ask in itertools.product(_THINGS, _ASKS):
        prompt = ask.format(thing)
        if rng.random() < 0.2:
            prompt = " ".join(_ASKS[i % 3].format(_THINGS[i % 8]) for i in range(16)) + " " + prompt
        found.append(Question(prompt, rng.choice((16, 32, 48, 96))))
    return found


def short_questions(max_tokens: int) -> list[Question]:
    """Those with nothing before them, and answers of one length at most."""
    return [
        Question(ask.format(thing), max_tokens) for thing, ask in itertools.product(_THINGS, _ASKS)
    ]


class Client:
    """Sends questions to one server."""

    def __init__(
        self,
        endpoint: str,
        asked: Sequence[Question],
        key: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """
        Args:
            key: where the server has keys.
            patience_s: after which it gives an answer up.
        """
        self.questions = asked
        self._patience_s = patience_s
        self._http = httpx2.AsyncClient(
            base_url=endpoint,
            timeout=patience_s,
            limits=httpx2.Limits(max_connections=MOST_OPEN, max_keepalive_connections=16),
            headers={} if key is None else {"x-api-key": key},
        )
        self.pieces = 0
        """Of text, in all answers up to now."""

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, question: int, *, stream: bool, **more: Any) -> Answer:
        """One request to its end, whatever that is. `more`: further fields of its body."""
        answer = Answer(question=question, stream=stream, sent=time.monotonic())
        asked = self.questions[question]
        body = {
            "prompt": asked.prompt,
            "max_tokens": asked.max_tokens,
            "temperature": 0,
            "stream": stream,
            **more,
        }
        try:
            async with asyncio.timeout(self._patience_s):
                await self._exchange(answer, body)
        except (httpx2.TransportError, TimeoutError) as error:
            answer.cut = True
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended = time.monotonic()
        return answer

    async def _exchange(self, answer: Answer, body: dict[str, Any]) -> None:
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            answer.status = response.status_code
            worker = response.headers.get("x-lbhost-worker")
            answer.worker = None if worker is None else int(worker)
            if response.status_code != 200 or not answer.stream:
                _take(answer, msgspec.json.decode(await response.aread()))
                answer.done = answer.error is None
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    answer.done = True
                elif line.startswith("data: "):
                    _take(answer, msgspec.json.decode(line[6:]))
                    self.pieces += 1


def _take(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"]["message"])
    for choice in event.get("choices", ()):
        if choice["text"]:
            answer.text += choice["text"]
            answer.texts.append(time.monotonic())
        answer.finish = choice["finish_reason"] or answer.finish
        if choice.get("logprobs") is not None:
            answer.choices = choices(choice["logprobs"])


def most_open(rate: float) -> int:
    """Requests that may be open at a steady rate, in requests per second."""
    return min(MOST_OPEN, max(LEAST_OPEN, round(rate * WAITING_S)))


class Traffic:
    """Requests at a steady rate from `start` to `stop`; the answers in the order of their ends."""

    def __init__(
        self, client: Client, rate: float, rng: random.Random, asked: Collection[int]
    ) -> None:
        """`rate`: requests per second. `asked`: the questions, by index."""
        self._client = client
        self._asked = sorted(asked)
        self._rate = rate
        self._most = most_open(rate)
        self._rng = rng
        self._open: set[asyncio.Task[None]] = set()
        self._source: asyncio.Task[None] | None = None
        self.answers: list[Answer] = []
        self.skipped = 0
        """Not sent, because so many were open."""

    @property
    def open(self) -> int:
        """Requests that are under way."""
        return len(self._open)

    def start(self) -> None:
        self._source = asyncio.create_task(self._arrive())

    async def stop(self) -> None:
        """No new ones; return when all that are open have ended."""
        if self._source is not None:
            self._source.cancel()
        while self._open:
            await asyncio.wait(self._open)

    async def burst(self, count: int) -> None:
        """So many streams at once beside the others."""
        for _ in range(count):
            self._send(MOST_OPEN, stream=True)
        await asyncio.sleep(0)

    async def _arrive(self) -> None:
        due = time.monotonic()
        while True:
            due += self._rng.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._send(self._most, stream=self._rng.random() < 0.7)

    def _send(self, most: int, *, stream: bool) -> None:
        if len(self._open) >= most:
            self.skipped += 1
            return
        question = self._rng.choice(self._asked)
        task = asyncio.create_task(self._one(question, stream=stream))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _one(self, question: int, *, stream: bool) -> None:
        self.answers.append(await self._client.ask(question, stream=stream))


async def references(client: Client) -> dict[int, Reference]:
    """The undisturbed greedy answer of each question, for those that have one.

    Asked alone and among others: where the most likely token is a near-tie, the batch decides, and
    the question proves nothing.
    """
    numbers = range(len(client.questions))
    alone = [await client.ask(number, stream=False, logprobs=SCORED) for number in numbers]
    among = await asyncio.gather(*(client.ask(number, stream=True) for number in numbers))
    return {
        one.question: Reference(one.text, one.choices)
        for one, other in zip(alone, among, strict=True)
        if one.done and other.done and one.text == other.text
    }


async def capacity(client: Client, clients: int, seconds: float, rng: random.Random) -> float:
    """Requests per second that so many closed-loop clients get through."""
    end = time.monotonic() + seconds
    done = 0

    async def one() -> None:
        nonlocal done
        while time.monotonic() < end:
            await client.ask(rng.randrange(len(client.questions)), stream=True)
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    return done / (time.monotonic() - began)
