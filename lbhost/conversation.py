"""`lbhost chat`: a conversation in the terminal with a running server.

Owns what was said. Speaks the HTTP API as any client does; Ctrl-C stops one answer, which is kept
as far as it came, and Ctrl-D ends the conversation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from typing import Any

import httpx2
import msgspec

from lbhost.client import event_lines
from lbhost.errors import ContextLengthError, LbhostError, ServerGoneError

CONNECT_S = 5.0
SILENCE_S = 60.0
"""A stream is pinged every 10 s; a server that is silent for so long is gone."""

PROMPT = "> "

SAMPLING = {"temperature": 0.7, "top_p": 0.9}
"""OpenAI's defaults leave a small model every token there is, and it soon talks nonsense."""

_NOT_OURS = (msgspec.DecodeError, ValueError, LookupError, TypeError, AttributeError)
"""What reading another server's answer may raise."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _talks(card: Any) -> bool:
    """Whether a model of /v1/models answers messages: what does anything else says so."""
    return bool((card.get("meta") or {}).get("kind", "chat") == "chat")


class Conversation:
    """What was said, and the server that answers. A context manager."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        system: str | None = None,
        model: str | None = None,
    ) -> None:
        """
        Args:
            url: the server's, with or without /v1.
            key: its API key.
            model: who is to answer; None: whom the server chooses.
        """
        self._model = model
        self._url = url.rstrip("/").removesuffix("/v1")
        self.forgotten = 0
        """Of the oldest messages, so many went because the model's context has no room for all."""
        self._messages: list[dict[str, str]] = []
        if system:
            self._messages.append({"role": "system", "content": system})
        self._http = httpx2.Client(
            headers={b"authorization": b"Bearer " + key.encode()} if key else {},
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S),
            trust_env=False,
        )

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model(self) -> str:
        """The name of the model that answers. Raises LbhostError."""
        if self._model is not None:
            return self._model
        try:
            answer = self._http.get(f"{self._url}/v1/models")
        except (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise self._gone(error) from error
        if answer.status_code != 200:
            raise _refused(answer)
        try:
            cards = answer.json()["data"]
            return str(next((card for card in cards if _talks(card)), cards[0])["id"])
        except _NOT_OURS as error:
            raise LbhostError(f"{self._url}/v1/models names no model; is it an lbhost?") from error

    def ask(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer to one more message.

        Closing the generator stops the answer. What has come of it stays in the conversation; a
        message that got no answer at all does not. Where the whole no longer fits the model's
        context, the oldest messages are forgotten (`forgotten` counts them), never a system's.

        Raises:
            LbhostError: the server refused, failed or is gone.
        """
        self._messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            for piece in self._fitting_stream():
                said.append(piece)
                yield piece
        except httpx2.TransportError as error:
            raise self._gone(error) from error
        finally:
            if said:
                self._messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self._messages.pop()

    def _fitting_stream(self) -> Iterator[str]:
        """The answer to as much of the conversation as fits. A refusal comes before any piece."""
        while True:
            try:
                yield from self._stream()
                return
            except _TooLongError:
                if not self._forget_oldest():
                    raise

    def _forget_oldest(self) -> bool:
        """The oldest message and its answer, so that a user's is the first again; False if none."""
        first = 1 if self._messages[0]["role"] == "system" else 0
        end = first + 1
        while end < len(self._messages) and self._messages[end]["role"] != "user":
            end += 1
        if end >= len(self._messages):
            return False  # what is asked now is all there is
        del self._messages[first:end]
        self.forgotten += end - first
        return True

    def _stream(self) -> Iterator[str]:
        body: dict[str, object] = {"messages": self._messages, "stream": True, **SAMPLING}
        if self._model is not None:
            body["model"] = self._model
        with self._http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _refused(answer)
            for line in event_lines(answer.iter_bytes()):
                if line == b"data: [DONE]":
                    return
                if line.startswith(b"data: "):
                    yield from _pieces(line[6:])
        raise LbhostError("the answer was cut off")

    def _gone(self, error: Exception) -> ServerGoneError:
        if isinstance(error, httpx2.TimeoutException):
            return ServerGoneError(f"the server at {self._url} does not answer")
        return ServerGoneError(f"no server answers at {self._url}: {error}")


def talk(conversation: Conversation, *, interactive: bool) -> None:
    """Lines from stdin, answers to stdout, until the end of the input.

    Args:
        interactive: a person types: show a prompt, and let a failure end one answer, not all.

    Raises:
        LbhostError: the server is gone; or, unless interactive, any failure.
    """
    if interactive:
        import readline  # noqa: F401 - input() edits lines and remembers them with it

        print(f"{conversation.model()}: Ctrl-C stops an answer, Ctrl-D ends")  # noqa: T201
    while True:
        try:
            line = _read(PROMPT if interactive else "")
        except EOFError:
            if interactive:
                print()  # noqa: T201
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()  # noqa: T201 - as in a shell: what was typed is thrown away
            continue
        if line:
            _answer(conversation, line, interactive=interactive)


def _read(prompt: str) -> str:
    """A line of stdin. Raises EOFError, KeyboardInterrupt; LbhostError: it is no UTF-8."""
    try:
        line = input(prompt).strip()
        line.encode()  # some locales let bytes that are none through, as half surrogate pairs
    except UnicodeError as error:
        raise LbhostError("the input is not UTF-8") from error
    return line


def _answer(conversation: Conversation, line: str, *, interactive: bool) -> None:
    before = conversation.forgotten
    pieces = conversation.ask(line)
    try:
        for piece in pieces:
            sys.stdout.write(_printable(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not interactive:
            raise
        sys.stdout.write(" [stopped]")
    except ServerGoneError:
        raise
    except LbhostError as error:
        if not interactive:
            raise
        print(f"lbhost: {error.message}", file=sys.stderr)  # noqa: T201
    finally:
        pieces.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if forgotten := conversation.forgotten - before:
        note = f"lbhost: the context is full: {forgotten} of the oldest messages were forgotten"
        print(note, file=sys.stderr)  # noqa: T201


def _printable(text: str) -> str:
    """Without what would steer the terminal: the model's words are a stranger's."""
    return _CONTROLS.sub("", text)


def _pieces(data: bytes) -> list[str]:
    """The text in an event. Raises LbhostError: it tells a failure, or is none of ours."""
    try:
        event: Any = msgspec.json.decode(data)
        if "error" in event:
            raise LbhostError(str(event["error"].get("message", "the answer failed")))
        return [choice["delta"].get("content") or "" for choice in event["choices"]]
    except _NOT_OURS as error:
        raise LbhostError("the answer cannot be understood; is it an lbhost's?") from error


def _refused(answer: httpx2.Response) -> LbhostError:
    try:
        error = answer.json()["error"]
        kind = _TooLongError if error.get("code") == ContextLengthError.code else LbhostError
        return kind(str(error["message"]))
    except _NOT_OURS:
        return LbhostError(f"the server answered {answer.status_code}; is it an lbhost?")


class _TooLongError(LbhostError):
    """The conversation does not fit the model's context."""
