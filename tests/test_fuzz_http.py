"""Whatever a client sends: never a 500, always OpenAI's shape, and the server serves on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbhost.gateway.api.chat import ChatRequest
from lbhost.gateway.api.completions import CompletionRequest
from running_gateway import CHAT, HELLO, PATIENCE_S, RunningGateway, running_gateway

T = TypeVar("T")

FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

FIELDS = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__})

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMBERS = st.integers(-5, 5) | st.floats(-3, 3) | st.integers() | st.none()
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "temperature": NUMBERS,
        "top_p": NUMBERS,
        "top_k": NUMBERS,
        "seed": NUMBERS,
        "max_tokens": NUMBERS,
        "n": NUMBERS,
        "best_of": NUMBERS,
        "logprobs": NUMBERS | st.booleans(),
        "top_logprobs": NUMBERS,
        "echo": st.booleans() | st.none(),
        "suffix": st.text(max_size=5) | st.none(),
        "continue_final_message": st.booleans() | st.none(),
        "add_generation_prompt": st.booleans() | st.none(),
        "stop": st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=20),
        "stream": st.booleans() | st.none(),
        "logit_bias": st.dictionaries(st.text("0123456789-x", max_size=4), NUMBERS, max_size=3),
    },
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"])},
        optional={"content": st.text(max_size=50) | JSON, "name": st.text(max_size=5)},
    ),
    max_size=4,
)
PROMPTS = st.recursive(
    st.text(max_size=40) | st.integers(-5, 300), lambda inner: st.lists(inner, max_size=5)
)
PATHS = st.sampled_from([CHAT, "/v1/completions"])


class Fuzzed:
    """A gateway in a thread's event loop, for hypothesis tests, which are synchronous."""

    def __init__(self, loop: asyncio.AbstractEventLoop, gateway: RunningGateway) -> None:
        self._loop = loop
        self._gateway = gateway

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def post(self, path: str, body: bytes, *, names: bool = False) -> None:
        """Send a body, and check what may be checked of any answer.

        Args:
            names: the body is an object: what is wrong is one of its fields.
        """
        self._run(self._post(path, body, names))

    async def _post(self, path: str, body: bytes, names: bool) -> None:
        headers = {"content-type": "application/json"}
        response = await self._gateway.client.post(path, content=body, headers=headers)
        assert response.status_code in (200, 400, 404, 422), response.text
        assert response.headers["x-request-id"]
        if response.status_code != 200:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
            assert error["type"] == "invalid_request_error"
            assert error["param"] in FIELDS or not names, error
        elif response.headers["content-type"].startswith("text/event-stream"):
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.json()["choices"]

    def raw(self, data: bytes) -> bytes:
        return self._run(self._gateway.raw(data))

    def works(self) -> bool:
        return self._run(self._gateway.chat()).status_code == 200


@contextmanager
def gateway(**settings: Any) -> Iterator[Fuzzed]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fuzzed gateway")
    thread.start()
    context = running_gateway(**settings)
    enter = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop)
    try:
        yield Fuzzed(loop, enter.result(PATIENCE_S))
        leave = context.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(leave, loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    with gateway() as made:
        yield made


@FUZZ
@given(path=PATHS, body=st.binary(max_size=200))
def test_any_bytes(fuzzed: Fuzzed, path: str, body: bytes) -> None:
    fuzzed.post(path, body)


@FUZZ
@given(path=PATHS, body=JSON)
def test_any_json(fuzzed: Fuzzed, path: str, body: Any) -> None:
    fuzzed.post(path, json.dumps(body).encode())


@FUZZ
@given(path=PATHS, fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_value_in_any_field(fuzzed: Fuzzed, path: str, fields: dict[str, Any]) -> None:
    fuzzed.post(path, json.dumps({**HELLO, "prompt": "x", **fields}).encode())


@FUZZ
@given(path=PATHS, fields=PLAUSIBLE, messages=MESSAGES, prompt=PROMPTS)
def test_nearly_right_requests(
    fuzzed: Fuzzed, path: str, fields: dict[str, Any], messages: Any, prompt: Any
) -> None:
    body = {"messages": messages, "prompt": prompt, **fields}
    fuzzed.post(path, msgspec.json.encode(body), names=True)


@FUZZ
@given(path=PATHS, field=st.sampled_from(FIELDS), value=JSON)
def test_one_wrong_field_is_named(fuzzed: Fuzzed, path: str, field: str, value: Any) -> None:
    body = {**HELLO, "prompt": "x", "max_tokens": 3, field: value}
    fuzzed.post(path, msgspec.json.encode(body), names=True)


@FUZZ
@given(at=st.integers(0, 60), flip=st.integers(1, 255))
def test_damaged_requests(fuzzed: Fuzzed, at: int, flip: int) -> None:
    body = bytearray(json.dumps({**HELLO, "max_tokens": 5, "stream": True}).encode())
    body[at % len(body)] ^= flip
    fuzzed.post(CHAT, bytes(body))


def test_afterwards_it_still_serves(fuzzed: Fuzzed) -> None:
    assert fuzzed.works()


@pytest.fixture
def hurried() -> Iterator[Fuzzed]:
    """One that does not wait for the rest of what is no request; on a slow box it may not wait for
    the rest of a good one either."""
    with gateway(header_timeout_s=0.05) as made:
        yield made


@settings(FUZZ, max_examples=40)
@given(data=st.binary(max_size=100))
def test_any_bytes_on_the_socket(hurried: Fuzzed, data: bytes) -> None:
    response = hurried.raw(data)
    assert not response or response.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in response
