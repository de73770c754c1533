"""scripts/chaos --rude: what an honest client is owed beside rude ones, and how those knock."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import Any

import pytest

from faults import crowds, rude
from faults.answers import Answer, Choice, Reference
from test_chaos import answer as chaos_answer

MB = 1_000_000
KNOWN = {0: Reference("so it is", (Choice(0, 3.0, "it"), Choice(5, 0.1, " was")))}


def answer(**more: Any) -> Answer:
    return chaos_answer(**{"texts": [10.5, 11.0], "ended": 12.0, **more})


def broken(answers: list[Answer], rss: tuple[int, int, int] = (100, 120, 100)) -> list[str]:
    sizes = (rss[0] * MB, rss[1] * MB, rss[2] * MB)
    return crowds.judge(100, crowds.service(answers, KNOWN), sizes, [])


def test_complete_answers_are_timed_and_others_counted() -> None:
    near, refused = answer(text="so it was", ended=13.0), answer(status=429, text="", texts=[])
    found = crowds.service([answer(), near, refused], KNOWN)
    assert found.answers == {"completed": 1, "near-tie": 1, "refused": 1}
    assert (found.ttft_s, found.total_s) == ([0.5, 0.5], [2.0, 3.0])


def test_an_honest_client_that_is_served_and_a_gateway_as_it_was_keep_all_promises() -> None:
    assert not broken([answer(), answer(text="so it was")])


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "no"},
        {"done": False},
        {"error": "gone"},
        {"status": 429, "error": "full", "text": "", "texts": []},
    ],
)
def test_an_honest_client_may_neither_lose_an_answer_nor_be_refused(
    fields: dict[str, Any],
) -> None:
    assert len(broken([answer(), answer(**fields)])) == 1


def test_a_gateway_that_stays_larger_has_kept_something() -> None:
    assert broken([answer()], (100, 140, 140)) == ["the gateway is 40 MB larger than before"]
    assert not broken([answer()], (100, 400, 110))


def test_nothing_served_is_no_service() -> None:
    assert broken([]) == ["the honest client got nothing"]


def test_the_report_has_each_kind_and_what_it_broke() -> None:
    served = crowds.service([answer()], KNOWN)
    crowd = crowds.Crowd(
        kind="creep",
        clients=100,
        seconds=3.0,
        service=served,
        descriptors=(30, 130, 31),
        rss=(100 * MB, 120 * MB, 101 * MB),
        connections=101,
        queued=5,
        broken=["it did"],
    )
    text = crowds.report(crowds.Crowds(served, [crowd]))
    assert "creep: 100 clients in 3 s" in text
    assert "descriptors 30 -> 130 -> 31, RSS 100 -> 120 -> 101 MB" in text
    assert "BROKEN creep: it did" in text


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["vanish", "read-nothing", "creep", "babble"])
async def test_each_kind_comes_and_leaves_and_is_told_from_others_by_its_key(kind: str) -> None:
    heard, gone = bytearray(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):  # which is how they hang up
            while data := await reader.read(1 << 16):
                heard.extend(data)
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    async with server:
        await crowds.KINDS[kind](rude.Door(host, port, "abc"), random.Random(1), 1.0)
        await asyncio.wait_for(gone.wait(), 60)
    if kind in ("vanish", "read-nothing"):
        assert re.search(rb"\r\nX-Api-Key: abc\r\nContent-Length: \d+\r\n\r\n{", heard)
    else:
        assert heard


@pytest.mark.anyio
async def test_being_refused_is_no_error_of_a_rude_client() -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    server.close()
    await server.wait_closed()
    await rude.knock(rude.vanish, rude.Door(host, port), random.Random(1))
