"""`lbhost embed` against a gateway with fake workers: files in and out, stops and goes on."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fake_worker import vector_of
from lbhost import cli, embed_file
from lbhost.embed_file import Embedder, Text, VectorFile
from lbhost.errors import LbhostError, UsageError
from lbhost.purpose import ModelKind, Pooling, Purpose
from running_gateway import N_CTX, RunningGateway, running_gateway

pytestmark = pytest.mark.anyio

EMBEDS = Purpose(ModelKind.EMBEDDING, Pooling.MEAN, 4)
TEXTS = [f"text number {i}" for i in range(500)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def url(g: RunningGateway) -> str:
    return f"http://127.0.0.1:{g.port}"


async def command(g: RunningGateway, *words: str) -> int:
    return await asyncio.to_thread(cli.run, ["embed", *words, "--url", url(g)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def check(path: Path, texts: list[str] = TEXTS, lines: list[int] | None = None) -> None:
    """The file holds each text's own vector, in order, once."""
    found = rows(path)
    assert [row["line"] for row in found] == (lines or list(range(1, len(texts) + 1)))
    for row, text in zip(found, texts, strict=True):
        assert row["embedding"] == pytest.approx(vector_of(list(text.encode())), abs=1e-6)


async def test_each_line_gets_its_vector_and_nothing_is_done_twice(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vectors.jsonl"
    async with running_gateway(workers=2, purpose=EMBEDS) as g:
        assert await command(g, str(file), "--out", str(out)) == 0
        check(out)
        assert "500 texts in" in capfd.readouterr().out
        before = out.read_bytes()
        assert await command(g, str(file), "--out", str(out)) == 0
        assert "0 texts in" in capfd.readouterr().out
        assert out.read_bytes() == before
        with file.open("a") as more:
            more.write("one more\n")
        assert await command(g, str(file), "--out", str(out)) == 0
        assert "1 texts in" in capfd.readouterr().out
        check(out, [*TEXTS, "one more"])


async def test_what_was_cut_off_goes_on_after_the_last_whole_line(
    file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vectors.jsonl"
    async with running_gateway(purpose=EMBEDS) as g:
        assert await command(g, str(file), "--out", str(out)) == 0
        whole = out.read_bytes()
        for length in (0, 10, len(whole) // 3, len(whole) - 1):
            out.write_bytes(whole[:length])
            assert await command(g, str(file), "--out", str(out)) == 0
            assert out.read_bytes() == whole


async def test_a_model_may_be_named(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with running_gateway(purpose=EMBEDS) as g:
        assert await command(g, str(file), "--model", "toy") == 0
        capfd.readouterr()
        assert await command(g, str(file), "--model", "other") == 1
        assert "'other' is not served here" in capfd.readouterr().err


async def test_ctrl_c_keeps_whole_lines(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.jsonl"

    def stop(progress: embed_file.Progress) -> None:
        if progress.texts >= 100:
            raise KeyboardInterrupt

    def interrupted(g: RunningGateway) -> bool:
        given = embed_file.texts(file, field="text", json_lines=False)
        try:
            with Embedder(url(g)) as embedder, VectorFile(out) as vectors:
                embedder.run(given, vectors, stop)
        except KeyboardInterrupt:
            return True
        return False

    async with running_gateway(purpose=EMBEDS) as g:
        assert await asyncio.to_thread(interrupted, g)
        assert 100 <= len(rows(out)) < len(TEXTS)
        assert await command(g, str(file), "--out", str(out)) == 0
        check(out)


async def test_without_a_file_of_vectors_it_fills_the_servers_cache(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with running_gateway(purpose=EMBEDS, embedding_cache="16M") as g:
        assert await command(g, str(file)) == 0
        assert "0 of them from the cache" in capfd.readouterr().out
        assert await command(g, str(file)) == 0
        assert "500 of them from the cache" in capfd.readouterr().out


async def test_json_lines_hold_texts_or_objects(tmp_path: Path) -> None:
    file, out = tmp_path / "texts.jsonl", tmp_path / "vectors.jsonl"
    file.write_text('"one"\n\n{"body": "two"}\n{"body": "line\\nbreak"}\n')
    async with running_gateway(purpose=EMBEDS) as g:
        assert await command(g, str(file), "--out", str(out), "--field", "body") == 0
        check(out, ["one", "two", "line\nbreak"], [1, 3, 4])


async def test_a_text_that_the_model_cannot_take_is_named_by_its_line(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vectors.jsonl"
    with file.open("a") as more:
        more.write("x" * (N_CTX + 1) + "\n")
    async with running_gateway(purpose=EMBEDS) as g:
        assert await command(g, str(file), "--out", str(out)) == 1
        said = capfd.readouterr().err
        assert f"line {len(TEXTS) + 1}: an input has at most {N_CTX} tokens" in said
        assert len(rows(out)) >= 400, "what was done before it is kept"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": 5}\n', "line 1: expected a text"),
        (b'"good"\n{"other": "x"}\n', "line 2: the object has no 'text'"),
        (b'"good"\n{"text": \n', "line 2: "),
        (b'"\xff"\n', "line 1: "),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        list(embed_file.texts(path, field="text", json_lines=True))


async def test_a_file_of_other_vectors_is_left_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.jsonl"
    async with running_gateway(purpose=EMBEDS) as g:
        assert await command(g, str(file), "--out", str(out)) == 0
        before = out.read_bytes()
        file.write_text("other\n" * len(TEXTS) + "more\n")
        assert await command(g, str(file), "--out", str(out)) == 2
        assert out.read_bytes() == before
        out.write_text("no vectors\n")
        assert await command(g, str(file), "--out", str(out)) == 2
        assert out.read_text() == "no vectors\n"


async def test_a_server_that_is_not_there_or_does_not_embed_is_said(
    file: Path, tmp_path: Path
) -> None:
    def use(where: str) -> None:
        given = embed_file.texts(file, field="text", json_lines=False)
        with Embedder(where) as embedder:
            embedder.run(given, None, lambda _: None)

    async with running_gateway() as g:
        with pytest.raises(LbhostError, match="kind 'chat'"):
            await asyncio.to_thread(use, url(g))
    with pytest.raises(LbhostError, match="no server"):
        use("http://127.0.0.1:9")
    with pytest.raises(UsageError, match="cannot read"):
        list(embed_file.texts(tmp_path / "none", field="text", json_lines=False))


@pytest.mark.parametrize("content", ["no vectors", "a line\nand no end", '["a"]', "\n{"])
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes"
    path.write_text(content)
    with pytest.raises(UsageError, match="holds no vectors"):
        VectorFile(path)
    assert path.read_text() == content


@pytest.mark.parametrize("cut_off", ['{"l', '{"line":3,"text_sh'])
def test_a_line_that_was_cut_off_is_written_anew(tmp_path: Path, cut_off: str) -> None:
    path = tmp_path / "vectors.jsonl"
    path.write_text(cut_off)
    with VectorFile(path) as vectors:
        assert vectors.last is None
    assert path.read_text() == ""


def test_two_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "vectors.jsonl"
    with VectorFile(path), pytest.raises(UsageError, match="another"):
        VectorFile(path)
    with VectorFile(path):
        pass


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match=r"cannot write it: [^N]"):
            VectorFile(path)
    with pytest.raises(UsageError, match="line 1: over"):
        list(embed_file.texts(Path("/dev/zero"), field="text", json_lines=False))


def test_a_full_disk_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with VectorFile(tmp_path / "out") as vectors:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(LbhostError, match="No space"):
            vectors.add([Text(1, "text", 5)], [[1.0]])
        monkeypatch.undo()


def test_what_is_no_url_is_refused_at_once() -> None:
    with Embedder("http://[::") as embedder, pytest.raises(UsageError, match="no URL"):
        embedder.run(iter([Text(1, "text", 5)]), None, lambda _: None)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"data": [], "usage": {}}',
        b'{"data": [{"embedding": "AA=="}], "usage": {}}',
    ],
)
def test_an_answer_without_the_vectors_is_an_error(body: bytes) -> None:
    answer = httpx2.Response(200, content=body, request=httpx2.Request("POST", "http://x/y"))
    with pytest.raises(LbhostError, match="http://x/y: the answer"):
        embed_file._vectors(answer, 1, numbers=True)
