"""The load on servers of vectors: closed-loop clients in one process, each on one connection.

Runs as a process of its own (`python -m benchmarks.embedding_load`): reads a Plan as JSON on stdin,
writes an Outcome as JSON to stdout. Asks for base64, as the official clients do. Loopback only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time

import msgspec

from benchmarks.load import SETTLE_S

MOST_REQUESTS = 10_000


class Plan(msgspec.Struct, frozen=True):
    """A load on one server."""

    host: str
    port: int
    model: str
    texts: list[str]
    clients: int
    inputs: int
    """Texts of a request."""
    timeout_s: float
    """For the whole load."""
    stop_s: float | None = None
    """No client sends another request after so many seconds."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of a plan."""

    texts_s: float
    """Texts a second, while every client had work."""
    latencies_s: list[float]
    """Of each request, from its sending to its whole answer."""
    failures: list[str]


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Answer(msgspec.Struct):
    data: list[_Vector]


_answer = msgspec.json.Decoder(_Answer)


class LoadError(Exception):
    """A request was not answered as it should be."""


def throughput(
    spans: list[tuple[float, float, int]], began_s: float, dry_s: float | None = None
) -> float:
    """Texts a second until the first client found no more work.

    A request that was on its way then counts by the part of its time that had passed.

    Args:
        spans: of each request: sent, answered (seconds on one clock), texts; at least one.
        dry_s: that moment; None: the last answer's.
    """
    end_s = max(answered for _, answered, _ in spans) if dry_s is None else dry_s
    done = sum(
        texts * (min(answered, end_s) - sent) / (answered - sent)
        for sent, answered, texts in spans
        if sent < end_s
    )
    return done / (end_s - began_s)


def http_request(plan: Plan, texts: list[str]) -> bytes:
    """One request for the vectors of some texts, on a connection that stays open."""
    given: str | list[str] = texts if plan.inputs > 1 else texts[0]
    body = msgspec.json.encode({"model": plan.model, "input": given, "encoding_format": "base64"})
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """The body of one answer.

    Raises:
        LoadError: a status other than 200, or an answer without its length.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, *fields = head.split("\r\n")
    named = dict(field.partition(":")[::2] for field in fields)
    if "content-length" not in named:
        raise LoadError(f"{status}: no content-length")
    body = await reader.readexactly(int(named["content-length"]))
    if status.split(" ")[1:2] != ["200"]:
        raise LoadError(f"{status}: {body[-300:].decode(errors='replace')}")
    return body


async def run(plan: Plan) -> Outcome:
    """Send all texts of a plan, `inputs` a request.

    Raises:
        ValueError: not loopback, or more than MOST_REQUESTS.
    """
    if not ipaddress.ip_address(plan.host).is_loopback:
        raise ValueError(f"{plan.host} is not a loopback address")
    each = plan.inputs
    requests = [
        http_request(plan, plan.texts[at : at + each])
        for at in range(0, len(plan.texts) - each + 1, each)
    ]
    if len(requests) > MOST_REQUESTS:
        raise ValueError(f"{len(requests)} requests are more than {MOST_REQUESTS}")
    waiting = iter(requests)
    spans: list[tuple[float, float, int]] = []
    failures: list[str] = []
    dry_s: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(plan.host, plan.port, limit=1 << 24)
        try:
            for request in waiting:
                sent = time.monotonic()
                if plan.stop_s is not None and sent > began_s + plan.stop_s:
                    break
                writer.write(request)
                vectors = _answer.decode(await read_answer(reader)).data
                if [vector.index for vector in vectors] != list(range(each)):
                    raise LoadError(f"{len(vectors)} vectors of {each} texts")
                spans.append((sent, time.monotonic(), each))
            dry_s.append(time.monotonic())
        except (LoadError, OSError, EOFError, msgspec.DecodeError) as error:
            failures.append(f"{type(error).__name__}: {error}")
        finally:
            writer.close()

    began_s = time.monotonic()
    try:
        async with asyncio.timeout(plan.timeout_s):
            await asyncio.gather(*(client() for _ in range(plan.clients)))
    except TimeoutError:
        failures.append(f"the load was not over after {plan.timeout_s:g} s")
    if not spans:
        return Outcome(0.0, [], failures or ["nothing was answered"])
    texts_s = throughput(spans, began_s, min(dry_s, default=None))
    return Outcome(texts_s, [answered - sent for sent, answered, _ in spans], failures)


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    time.sleep(SETTLE_S)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(wanted))))
