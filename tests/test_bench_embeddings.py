"""The benchmark's load of texts to embed, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import gguf
import msgspec
import pytest

import tiny_bert
from benchmarks.__main__ import SECTIONS, WITH_EMBEDDINGS, parse
from benchmarks.bench import Bench, BenchError
from benchmarks.embedding_load import Outcome, Plan, run, throughput

pytestmark = pytest.mark.anyio


def vectors(count: int) -> bytes:
    return msgspec.json.encode({"data": [{"embedding": "AAAA", "index": i} for i in range(count)]})


async def against(
    answer: bytes, *, texts: int, clients: int = 1, inputs: int = 1, status: str = "200 OK"
) -> tuple[Outcome, list[object]]:
    """What the load makes of a server that always answers this, and what it was asked."""
    asked: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            asked.append(msgspec.json.decode(await reader.readexactly(length))["input"])
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(answer)}\r\n\r\n".encode())
            writer.write(answer)

    async def serve_until_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (EOFError, OSError):
            writer.close()

    server = await asyncio.start_server(serve_until_gone, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        given = [f"text {i}" for i in range(texts)]
        outcome = await run(Plan("127.0.0.1", port, "m", given, clients, inputs, timeout_s=60.0))
    return outcome, asked


async def test_each_text_is_sent_once_in_requests_of_so_many() -> None:
    outcome, asked = await against(vectors(4), texts=22, clients=2, inputs=4)
    assert outcome.failures == []
    assert len(outcome.latencies_s) == len(asked) == 5, "those that fill no request are left out"
    sent = [text for texts in asked if isinstance(texts, list) for text in texts]
    assert sorted(sent) == sorted(f"text {i}" for i in range(20))
    assert outcome.texts_s > 0


async def test_a_single_text_is_sent_as_one() -> None:
    _, asked = await against(vectors(1), texts=3)
    assert asked == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("answer", "status", "complaint"),
    [
        (vectors(1), "200 OK", "1 vectors of 2 texts"),
        (b'{"error": {"message": "too many"}}', "429 Too Many Requests", "too many"),
        (b"{", "200 OK", "DecodeError"),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_failure(
    answer: bytes, status: str, complaint: str
) -> None:
    outcome, _ = await against(answer, texts=4, inputs=2, status=status)
    assert complaint in outcome.failures[0]


async def test_a_load_stays_on_the_loopback() -> None:
    with pytest.raises(ValueError, match="not a loopback"):
        await run(Plan("192.0.2.1", 80, "m", ["text"], 1, 1, timeout_s=1.0))


def test_requests_that_are_on_their_way_at_the_end_count_in_part() -> None:
    spans = [(0.0, 2.0, 8), (1.0, 3.0, 8), (2.5, 4.0, 8)]
    assert throughput(spans, 0.0) == pytest.approx(24 / 4)
    assert throughput(spans, 0.0, 2.0) == pytest.approx((8 + 4) / 2)


def test_a_model_that_does_not_embed_is_refused_at_once(tmp_path: Path) -> None:
    path = tiny_bert.write(tmp_path / "rank.gguf", gguf.PoolingType.RANK)
    for given, complaint in ((path, "'rerank'"), (None, "--embedding-model")):
        bench = Bench(pairs=1, quick=True, seed=1, trace=None, say=print, embedding=given)
        with pytest.raises(BenchError, match=complaint):
            _ = bench.embedding_model


def test_what_needs_an_embedding_model_is_left_out_or_asks_for_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert set(parse([]).sections) == set(SECTIONS) - WITH_EMBEDDINGS
    with pytest.raises(SystemExit):
        parse(["embeddings"])
    assert "--embedding-model" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        parse(["--embedding-model", str(tmp_path / "none.gguf")])
    assert "no such file" in capsys.readouterr().err.splitlines()[-1]
