"""`lbhost chat`: what it reads from the server and from the terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import httpx2
import pytest

from lbhost.client import event_lines
from lbhost.conversation import SAMPLING, Conversation, talk
from lbhost.errors import LbhostError


def test_only_line_ends_end_a_line() -> None:
    data = 'data: {"a": "\u2028 \x85 \x0b"}\n\ndata: [DONE]\n\n'.encode()
    expected = data.split(b"\n")[:-1]
    for cut in range(len(data) + 1):
        assert list(event_lines([data[:cut], data[cut:]])) == expected


def talking_to(
    answer: Callable[[httpx2.Request], httpx2.Response], model: str | None = None
) -> Conversation:
    conversation = Conversation("http://there", key="schlüssel", model=model)
    conversation._http = httpx2.Client(
        transport=httpx2.MockTransport(answer), headers=conversation._http.headers
    )
    return conversation


@pytest.mark.parametrize(
    "data",
    [b"data: {}\n\n", b"data: x\n\n", b"data: []\n\n", b'data: {"choices": [5]}\n\n',
     b'data: {"error": 5}\n\n', b'data: {"error": {}}\r\n\r\n', b""],
)  # fmt: skip
def test_whatever_another_server_says_is_one_line(data: bytes) -> None:
    with talking_to(lambda _: httpx2.Response(200, content=data)) as conversation:
        with pytest.raises(LbhostError):
            list(conversation.ask("hi"))
        with pytest.raises(LbhostError):
            conversation.model()


def test_pieces_come_and_the_key_may_be_any_text() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert "Bearer schlüssel".encode() in [value for _, value in request.headers.raw]
        event = '{"choices": [{"delta": {"content": "a\u2028b"}}]}'
        return httpx2.Response(200, content=f"data: {event}\n\ndata: [DONE]\n\n".encode())

    with talking_to(answer) as conversation:
        assert "".join(conversation.ask("hi")) == "a\u2028b"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_input_that_is_no_utf8_is_said_to_be(errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8", errors))
    conversation = Conversation("http://127.0.0.1:9")
    with conversation, pytest.raises(LbhostError, match="not UTF-8"):
        talk(conversation, interactive=False)


def test_what_no_longer_fits_the_context_is_forgotten_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        assert SAMPLING.items() <= body.items()
        texts = [message["content"] for message in body["messages"]]
        asked.append(texts)
        if len(texts) > 3 or "long" in texts:
            error = {"message": "too many tokens", "code": "context_length_exceeded"}
            return httpx2.Response(400, json={"error": error})
        event = '{"choices": [{"delta": {"content": "yes"}}]}'
        return httpx2.Response(200, content=f"data: {event}\n\ndata: [DONE]\n\n".encode())

    conversation = talking_to(answer)
    conversation._messages.append({"role": "system", "content": "brief"})
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nlong\n"))
    with conversation, pytest.raises(LbhostError, match="too many tokens"):
        talk(conversation, interactive=False)
    assert asked == [
        ["brief", "one"],
        ["brief", "one", "yes", "two"],
        ["brief", "two"],
        ["brief", "two", "yes", "long"],
        ["brief", "long"],
    ]
    said = capsys.readouterr()
    assert said.out == "yes\nyes\n"
    assert "2 of the oldest messages were forgotten" in said.err


def test_of_several_models_one_that_talks_is_named_and_who_is_asked_for_is_asked() -> None:
    cards = [{"id": "vectors", "meta": {"kind": "embedding"}}, {"id": "chat", "meta": {}}]
    asked: list[object] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(200, json={"data": cards})
        asked.append(json.loads(request.content).get("model"))
        return httpx2.Response(200, content=b"data: [DONE]\n\n")

    with talking_to(answer) as conversation:
        assert conversation.model() == "chat"
        list(conversation.ask("hi"))
    with talking_to(answer, model="other") as conversation:
        assert conversation.model() == "other"
        list(conversation.ask("hi"))
    assert asked == [None, "other"]
