"""The load: closed-loop or open-loop clients in one process, over bare asyncio streams.

Runs as a process of its own (`python -m benchmarks.load`): reads a Plan as JSON on stdin, writes
an Outcome as JSON to stdout. It shares the box with the servers that it measures, so it does as
little as it can for each piece of text, and the same for every server. Loopback only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import sys
import time

import msgspec

from benchmarks.stats import Request

MOST_REQUESTS = 10_000
CONNECT_TIMEOUT_S = 10.0
SETTLE_S = 2.0
"""Between this program's start and its first request. What its start takes, and what the server
measured before has just computed, would be strangers' use of the cores to a server that looks at
them; where it runs by itself neither is there."""


class Job(msgspec.Struct, frozen=True):
    """One request to send."""

    prompt: str
    prompt_tokens: int
    completion_tokens: int
    at: float | None = None
    """Seconds after the start; None: when a client is free (closed loop)."""
    kind: str = ""
    """What requests of mixed loads are told apart by. The server never sees it."""
    after: int | None = None
    """The job of this conversation's turn before: its prompt and its answer come first, and
    prompt_tokens counts what is new. Earlier in the plan than this one."""


class Plan(msgspec.Struct, frozen=True):
    """A load on one server."""

    host: str
    port: int
    model: str
    jobs: list[Job]
    clients: int
    """Closed loop: this many at once. Open loop: unused."""
    timeout_s: float
    """For the whole load."""
    stop_s: float | None = None
    """Closed loop: no client starts another request after so many seconds."""
    request_timeout_s: float | None = None
    """After which a request is given up."""
    exact: bool = True
    """Whether an answer of other than the wanted number of tokens is a failure."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of a plan."""

    requests: list[Request]
    """Those that were answered in full."""
    failures: list[str]
    """Why others were not, one line each."""
    dry_s: float | None
    """Closed loop: when the first client found no more work, on the clock of the requests."""
    failed: int = 0
    """Requests that were sent and not answered in full, those that the load's end cut off too."""
    late_s: float = 0.0
    """Open loop: how late the last request was sent at worst. Much means a generator that cannot
    keep up, and figures that say nothing about the server."""


class _Choice(msgspec.Struct):
    text: str = ""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


_chunk = msgspec.json.Decoder(_Chunk)


class LoadError(Exception):
    """A request was not answered as it should be."""


def http_request(plan: Plan, job: Job, said: str = "") -> bytes:
    """A streaming completion that runs to its last token whatever the model says.

    Args:
        said: what comes before the job's prompt.
    """
    body = msgspec.json.encode(
        {
            "model": plan.model,
            "prompt": said + job.prompt,
            "max_tokens": job.completion_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def send(plan: Plan, job: Job, number: int = 0, said: str = "") -> tuple[Request, str]:
    """One request, to its end, and its answer.

    Args:
        said: what comes before the job's prompt.

    Raises:
        LoadError: a status other than 200, an error event, no text, or wrong token counts.
        OSError: the connection failed.
    """
    sent = time.monotonic()
    connecting = asyncio.open_connection(plan.host, plan.port)
    reader, writer = await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
    try:
        writer.write(http_request(plan, job, said))
        status = await reader.readline()
        if status.split(b" ")[1:2] != [b"200"]:
            rest = await reader.read(2000)
            raise LoadError(f"{status.decode().strip()}: {rest[-300:].decode(errors='replace')}")
        texts, answer, usage = await _read_events(reader)
    finally:
        writer.close()
    if not texts or (usage is None and plan.exact):
        raise LoadError("the stream ended without text or usage")
    usage = usage or _Usage(job.prompt_tokens, len(texts))
    request = Request(sent, tuple(texts), usage.prompt_tokens, usage.completion_tokens, number)
    if not plan.exact:
        return request, answer
    # how many tokens an answer and what follows it are together, only the server knows
    prompt_tokens = job.prompt_tokens if job.after is None else request.prompt_tokens
    wanted = (prompt_tokens, job.completion_tokens)
    if (request.prompt_tokens, request.completion_tokens) != wanted:
        raise LoadError(f"{request.prompt_tokens}+{request.completion_tokens} tokens, not {wanted}")
    return request, answer


async def _read_events(reader: asyncio.StreamReader) -> tuple[list[float], str, _Usage | None]:
    """When text arrived, all of it, and the usage. Chunk sizes and headers are lines like others:
    skipped.
    """
    texts: list[float] = []
    pieces: list[str] = []
    usage: _Usage | None = None
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        now = time.monotonic()
        if line.startswith(b"data: [DONE]"):
            return texts, "".join(pieces), usage
        chunk = _chunk.decode(line[6:])
        if chunk.error is not None:
            raise LoadError(f"error event: {chunk.error.get('message')}")
        if chunk.choices and chunk.choices[0].text:
            texts.append(now)
            pieces.append(chunk.choices[0].text)
        usage = chunk.usage or usage
    raise LoadError("the stream was cut off")


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.requests: list[Request] = []
        self.failures: list[str] = []
        self.sent = 0
        self.dry_s: float | None = None
        self.late_s = 0.0
        followed = {job.after for job in plan.jobs if job.after is not None}
        self.said = {number: asyncio.Future[str]() for number in followed}
        """What whoever goes on from a job begins with; empty if it failed."""

    async def one(self, number: int, job: Job) -> None:
        before = "" if job.after is None else await self.said[job.after]
        self.sent += 1
        said = ""
        try:
            async with asyncio.timeout(self.plan.request_timeout_s):
                request, answer = await send(self.plan, job, number, before)
            self.requests.append(request)
            said = before + job.prompt + answer
        except TimeoutError:
            self.failures.append("TimeoutError: no connection or no whole answer in time")
        except (LoadError, OSError, msgspec.DecodeError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            if number in self.said:
                self.said[number].set_result(said)

    async def closed(self) -> None:
        jobs = iter(enumerate(self.plan.jobs))
        stop_s = time.monotonic() + (self.plan.stop_s or math.inf)

        async def client() -> None:
            for number, job in jobs:
                await self.one(number, job)
                if time.monotonic() >= stop_s:
                    break
            self.dry_s = self.dry_s or time.monotonic()

        await asyncio.gather(*(client() for _ in range(self.plan.clients)))

    async def open(self) -> None:
        start = time.monotonic()

        async def arrive(number: int, job: Job) -> None:
            due = start + (job.at or 0.0)
            await asyncio.sleep(due - time.monotonic())
            self.late_s = max(self.late_s, time.monotonic() - due)
            await self.one(number, job)

        await asyncio.gather(*(arrive(number, job) for number, job in enumerate(self.plan.jobs)))


async def run(plan: Plan) -> Outcome:
    """Send all jobs of a plan, or as many as fit into its time.

    Raises:
        ValueError: not loopback, or more than MOST_REQUESTS.
    """
    if not ipaddress.ip_address(plan.host).is_loopback:
        raise ValueError(f"{plan.host} is not a loopback address")
    if len(plan.jobs) > MOST_REQUESTS:
        raise ValueError(f"{len(plan.jobs)} requests are more than {MOST_REQUESTS}")
    load = _Load(plan)
    is_open = any(job.at is not None for job in plan.jobs)
    try:
        await asyncio.wait_for(load.open() if is_open else load.closed(), plan.timeout_s)
    except TimeoutError:
        load.failures.append(f"the load was not over after {plan.timeout_s:g} s")
    failed = load.sent - len(load.requests)
    return Outcome(load.requests, load.failures, load.dry_s, failed, load.late_s)


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    time.sleep(SETTLE_S)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(wanted))))
