"""`lbhost embed`: the vectors of a file's texts, through a running server.

What is computed stays in the server's cache, and is written to a file of vectors if one is wanted.
Either can be interrupted at any moment and goes on where it was. Speaks the HTTP API as any client.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
import msgspec

from lbhost.errors import LbhostError, ServerGoneError, UsageError

AT_ONCE = 4
"""Requests in flight: one server's workers have enough with it, and others still come through."""

MOST_TEXTS = 64
MOST_CHARACTERS = 64 * 1024
"""Of a request, unless a single text is longer."""

TRIES = 10
"""Of a request that the server has no room for, or that finds none."""

MOST_LINE = 16 << 20
"""Bytes of a line: far more than any model takes, and less than a device that never ends."""

ANSWER_S = 600.0
CONNECT_S = 5.0
LONGEST_WAIT_S = 30.0

_encode = msgspec.json.Encoder().encode


class Text(msgspec.Struct, frozen=True):
    """One text of the file."""

    line: int
    """Its number, from 1."""
    text: str
    end: int
    """Byte of the file where the next line begins."""

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


class Written(msgspec.Struct, frozen=True):
    """A line of the file of vectors."""

    line: int
    text_sha256: str
    """The first 16 digits: whether it is still the same text."""
    embedding: list[float]


_BEGINNING = b'{"line":'
"""Of each line of the file of vectors."""


class Progress(msgspec.Struct):
    """How far it is."""

    texts: int = 0
    cached: int = 0
    """Of them found in the server's cache."""
    bytes: int = 0
    """Of the file of texts."""


def texts(file: Path, *, field: str, json_lines: bool) -> Iterator[Text]:
    """The texts of a file, a line each; empty lines are passed over.

    Args:
        field: of each line's object that holds the text.
        json_lines: each line is JSON: a string, or an object.

    Raises:
        UsageError: the file cannot be read, or a line is not what it should be; says which.
    """
    try:
        with file.open("rb") as lines:
            end = 0
            read = partial(lines.readline, MOST_LINE + 1)
            for number, data in enumerate(iter(read, b""), 1):
                end += len(data)
                if len(data) > MOST_LINE:
                    raise UsageError(f"{file}, line {number}: over {MOST_LINE} bytes")
                if not data.strip():
                    continue
                try:
                    text = _of_json(data, field) if json_lines else data.decode().rstrip("\r\n")
                except (ValueError, msgspec.MsgspecError) as error:
                    raise UsageError(f"{file}, line {number}: {error}") from error
                if text.strip():
                    yield Text(number, text, end)
    except OSError as error:
        raise UsageError(f"{file}: cannot read it: {error.strerror or error}") from error


def _of_json(data: bytes, field: str) -> str:
    value: Any = msgspec.json.decode(data)
    if isinstance(value, dict):
        if field not in value:
            raise ValueError(f"the object has no {field!r}; --field names another one")
        value = value[field]
    if not isinstance(value, str):
        raise ValueError("expected a text, or an object that holds one")
    return value


class VectorFile:
    """The file of vectors: JSON lines, in the order of the texts. A context manager.

    Raises:
        UsageError: it cannot be written, or holds something else, which stays as it is; or
            another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: BinaryIO = path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.last = self._resume()
            except BaseException:
                self._file.close()
                raise
        except BlockingIOError as error:
            raise UsageError(f"{path}: another lbhost embed writes to it") from error
        except OSError as error:
            raise UsageError(f"{path}: cannot write it: {error.strerror or error}") from error

    def __enter__(self) -> VectorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _resume(self) -> Written | None:
        """The last whole line; what was cut off behind it is removed, if it is one of ours."""
        self._file.seek(0)
        end, last, rest = 0, b"", b""
        for line in self._file:
            if not line.endswith(b"\n"):
                rest = line
                break
            end += len(line)
            last = line
        written = None
        foreign = rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]
        try:
            if last:
                written = msgspec.json.decode(last, type=Written)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            foreign = True
        if foreign:
            raise UsageError(f"{self._path} holds no vectors of lbhost; name another file")
        self._file.truncate(end)  # not before it is clear that the rest is nobody else's
        return written

    def check(self, text: Text) -> None:
        """Raises UsageError: the last line was made of another text."""
        assert self.last is not None
        if text.line != self.last.line or text.fingerprint != self.last.text_sha256:
            raise UsageError(
                f"{self._path} holds vectors of other texts (line {self.last.line}); remove it, or "
                "name another file"
            )

    def add(self, some: list[Text], vectors: list[list[float]]) -> None:
        """Write vectors behind the others, all of them before it returns.

        Raises LbhostError: they cannot be written.
        """
        lines = [
            _encode(Written(text.line, text.fingerprint, vector)) + b"\n"
            for text, vector in zip(some, vectors, strict=True)
        ]
        rest = memoryview(b"".join(lines))
        try:
            while rest:  # past the file's buffer: that would try again when it is closed
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError as error:
            raise LbhostError(f"{self._path}: cannot write it: {error.strerror}") from error


class Embedder:
    """The server, and the requests to it. A context manager."""

    def __init__(self, url: str, *, key: str | None = None, model: str | None = None) -> None:
        """`model`: whose vectors; None: of the first that makes any."""
        self._body = {} if model is None else {"model": model}
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,
        )
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._stopped = False
        self._answered = False
        """Whether there was a server: one that is gone may come back."""

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._threads.shutdown(cancel_futures=True)
        self._http.close()

    def run(
        self, given: Iterator[Text], out: VectorFile | None, tell: Callable[[Progress], None]
    ) -> Progress:
        """Embed them all, in order.

        Args:
            tell: called whenever some more are done.

        Raises:
            LbhostError: the server refuses a text, or is gone. What was done is kept.
        """
        done = Progress()
        asked: deque[tuple[list[Text], Future[tuple[list[list[float]], int]]]] = deque()

        def take() -> None:
            some, future = asked.popleft()
            vectors, cached = future.result()
            if out is not None:
                out.add(some, vectors)
            done.texts += len(some)
            done.cached += cached
            done.bytes = some[-1].end
            tell(done)

        for some in _batches(_rest(given, out)):
            if len(asked) >= 2 * AT_ONCE:
                take()
            asked.append((some, self._threads.submit(self._ask, some, numbers=out is not None)))
        while asked:
            take()
        return done

    def _ask(self, some: list[Text], *, numbers: bool) -> tuple[list[list[float]], int]:
        """The vectors of some texts, and how many the server had. `numbers`: they are wanted."""
        body = {
            **self._body,
            "input": [text.text for text in some],
            "encoding_format": "float" if numbers else "base64",
        }
        for attempt in range(1, TRIES + 1):
            wait_s = min(LONGEST_WAIT_S, 0.5 * 2**attempt)
            try:
                answer = self._http.post(f"{self._url}/v1/embeddings", json=body)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise UsageError(f"{self._url} is no URL of a server: {error}") from error
            except httpx2.TransportError as error:
                hopeless = not self._answered or isinstance(error, httpx2.TimeoutException)
                if attempt == TRIES or self._stopped or hopeless:
                    why = f"no server answers at {self._url}: {error}"
                    raise ServerGoneError(why) from error
            else:
                self._answered = True
                if answer.status_code == 200:
                    return _vectors(answer, len(some), numbers=numbers)
                if answer.status_code not in (429, 503) or attempt == TRIES:
                    raise LbhostError(_refusal(answer, some))
                wait_s = _retry_after(answer) or wait_s
            until = time.monotonic() + wait_s
            while time.monotonic() < until and not self._stopped:
                time.sleep(0.1)
            if self._stopped:
                break
        raise ServerGoneError("stopped")


def _rest(given: Iterator[Text], out: VectorFile | None) -> Iterator[Text]:
    """Without those that the file of vectors has."""
    if out is None or out.last is None:
        yield from given
        return
    checked = False
    for text in given:
        if text.line >= out.last.line and not checked:
            out.check(text)
            checked = True
        elif checked:
            yield text


def _batches(given: Iterator[Text]) -> Iterator[list[Text]]:
    some: list[Text] = []
    characters = 0
    for text in given:
        if some and (len(some) == MOST_TEXTS or characters + len(text.text) > MOST_CHARACTERS):
            yield some
            some, characters = [], 0
        some.append(text)
        characters += len(text.text)
    if some:
        yield some


class _One(msgspec.Struct):
    embedding: list[float] | str


class _Details(msgspec.Struct):
    cached_inputs: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    data: list[_One]
    usage: _Usage


def _vectors(
    answer: httpx2.Response, count: int, *, numbers: bool
) -> tuple[list[list[float]], int]:
    """Raises LbhostError: the answer is not one to so many texts."""
    try:
        found = msgspec.json.decode(answer.content, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LbhostError(f"{answer.url}: the answer holds no vectors: {error}") from error
    vectors = [one.embedding for one in found.data if isinstance(one.embedding, list)]
    if len(found.data) != count or (numbers and len(vectors) != count):
        raise LbhostError(f"{answer.url}: the answer does not hold a vector for each text")
    return vectors, (found.usage.prompt_tokens_details or _Details()).cached_inputs


def _retry_after(answer: httpx2.Response) -> float | None:
    try:
        return min(LONGEST_WAIT_S, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _refusal(answer: httpx2.Response, some: list[Text]) -> str:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}; is it an lbhost?"
    head, bracket, rest = message.partition("input[")
    number, end, why = rest.partition("]")
    if bracket and end and not head and number.isdigit() and int(number) < len(some):
        return f"line {some[int(number)].line}{why}"
    return message
