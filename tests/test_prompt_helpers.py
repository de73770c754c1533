"""Helper processes: long bodies, whatever they do to the process that works on them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import tiny_gguf
from lbhost.choices import LogFormat, LogLevel
from lbhost.errors import (
    ContextLengthError,
    DeadlineError,
    HelperGoneError,
    InvalidRequestError,
    LbhostError,
    NotReadyError,
    PromptError,
    QueueFullError,
)
from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.prompt import helper_process, helpers
from lbhost.gateway.prompt.helper_messages import Setup
from lbhost.gateway.prompt.helpers import Helpers
from lbhost.gateway.prompt.intake import Intake
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.prompt.questions import PATHS
from lbhost.llama import Vocab
from lbhost.wire import unpack_tokens
from running_gateway import HELPER, PATIENCE_S, until
from toy_vocab import CHATML, ToyVocab

pytestmark = pytest.mark.anyio


def setup(path: str = "toy.gguf", n_ctx: int = 100_000) -> Setup:
    return Setup(path, n_ctx, "toy", 0, LogFormat.TEXT, LogLevel.ERROR)


@asynccontextmanager
async def running(
    count: int = 1, *, opened: bool = True, wait_s: float = PATIENCE_S, **how: Any
) -> AsyncIterator[Helpers]:
    """Toy helpers, unless `how` says otherwise; all their processes are gone afterwards."""
    how = {"setup": setup(), "command": HELPER, **how}
    under_test = Helpers(count=count, wait_s=wait_s, counters=Metrics(), **how)
    if opened:
        under_test.open()
    pids: set[int] = set()
    try:
        yield under_test
    finally:
        pids |= {process.pid for process in under_test.processes.values() if process.pid}
        await under_test.close()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def text(word: str, size: int = 5000) -> bytes:
    return json.dumps({"prompt": word + "x" * size, "max_tokens": 1}).encode()


async def prepared(under_test: Helpers, body: bytes) -> Taken:
    async with asyncio.timeout(PATIENCE_S):
        taken = await under_test.prepare(body, Kind.COMPLETION)
        assert isinstance(taken, Taken)
        return taken


async def busy(under_test: Helpers, body: bytes) -> asyncio.Task[Taken]:
    """The task of a caller whose body a helper has taken."""
    task = asyncio.create_task(prepared(under_test, body))
    await until(lambda: under_test.processes, "a helper is ready")
    await asyncio.sleep(0)
    await until(lambda: under_test.waiting == 0, "it has the body")
    return task


async def test_a_long_body_is_prepared_as_it_would_be_at_once() -> None:
    async with running() as under_test:
        taken = await prepared(under_test, text("abc"))
    assert unpack_tokens(taken.works[0].prompt) == list(b"abc" + b"x" * 5000)
    assert taken.works[0].max_tokens == 1


async def test_refusals_come_through_whole() -> None:
    async with running(setup=setup(n_ctx=100)) as under_test:
        with pytest.raises(ContextLengthError) as caught:
            await prepared(under_test, text("abc"))
        assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
        with pytest.raises(InvalidRequestError, match="not valid JSON"):
            await prepared(under_test, b"x" * 5000)


@pytest.mark.parametrize("word", ["CRASH", "SPIN", "SLEEP"])
async def test_a_body_that_ends_or_holds_its_helper_fails_alone(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "deadline_s", lambda size: 5.0)
    async with running(count=2) as under_test:
        await until(lambda: len(under_test.processes) == 2, "both are ready")
        before = {p.pid for p in under_test.processes.values()}
        poison = asyncio.create_task(prepared(under_test, text(word)))
        honest = [asyncio.create_task(prepared(under_test, text("abc"))) for _ in range(8)]
        for task in honest:
            assert (await task).works[0].prompt_tokens == 5003
        with pytest.raises(PromptError) as caught:
            await poison
        assert (caught.value.status, caught.value.retryable) == (422, False)
        await until(lambda: len(under_test.processes) == 2, "the other is there again")
        after = {p.pid for p in under_test.processes.values()}
        assert len(before & after) == 1
        assert (await prepared(under_test, text("abc"))).works[0].prompt_tokens == 5003


async def test_memory_is_limited_and_the_helper_lives_on() -> None:
    async with running() as under_test:
        await until(lambda: under_test.processes, "it is ready")
        (process,) = under_test.processes.values()
        with pytest.raises(PromptError, match="memory"):
            await prepared(under_test, text("ALLOCATE"))
        assert list(under_test.processes.values()) == [process]


async def test_the_kernel_limits_cpu_time_when_the_gateway_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(helpers, "deadline_s", lambda size: PATIENCE_S)
    monkeypatch.setattr(helpers, "cpu_limit_s", lambda size: 0)
    async with running() as under_test:
        with pytest.raises(PromptError, match="SIGXCPU"):
            await prepared(under_test, text("SPIN"))


async def test_who_leaves_the_queue_is_not_worked_for() -> None:
    async with running(opened=False) as under_test:
        task = asyncio.create_task(prepared(under_test, text("CRASH")))
        await until(lambda: under_test.waiting == 1, "it waits")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert under_test.waiting == 0
        under_test.open()
        assert (await prepared(under_test, text("abc"))).works[0].prompt_tokens == 5003


async def test_a_running_job_that_nobody_waits_for_is_ended() -> None:
    async with running() as under_test:
        task = await busy(under_test, text("SLEEP"))
        task.cancel()
        assert (await prepared(under_test, text("abc"))).works[0].prompt_tokens == 5003


async def test_the_queue_is_bounded_in_length_and_time() -> None:
    async with running(opened=False, wait_s=0.2) as under_test:
        tasks = [asyncio.create_task(prepared(under_test, text("a"))) for _ in range(64)]
        await until(lambda: under_test.waiting == 64, "all wait")
        with pytest.raises(QueueFullError):
            await prepared(under_test, text("a"))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, DeadlineError)
        assert under_test.waiting == 0


async def test_a_short_body_goes_before_long_ones_that_have_waited_no_longer() -> None:
    async with running(opened=False) as under_test:
        order: list[str] = []

        async def ask(name: str, body: bytes) -> None:
            await prepared(under_test, body)
            order.append(name)

        tasks = [asyncio.create_task(ask("long", text("a", 90_000)))]
        await until(lambda: under_test.waiting == 1, "the long one waits")
        tasks.append(asyncio.create_task(ask("short", text("a"))))
        await until(lambda: under_test.waiting == 2, "both wait")
        under_test.open()
        await asyncio.gather(*tasks)
        assert order == ["short", "long"]


async def test_a_client_that_floods_the_helpers_waits_behind_itself_alone() -> None:
    async with running(opened=False) as under_test:
        order: list[str] = []

        async def ask(client: str) -> None:
            async with asyncio.timeout(PATIENCE_S):
                await under_test.prepare(text("a"), Kind.COMPLETION, client)
            order.append(client)

        tasks = [asyncio.create_task(ask("flood")) for _ in range(8)]
        await until(lambda: under_test.waiting == 8, "the flood waits")
        tasks.append(asyncio.create_task(ask("honest")))
        await until(lambda: under_test.waiting == 9, "all wait")
        under_test.open()
        await asyncio.gather(*tasks)
    assert order == ["flood", "honest", *["flood"] * 7]


async def test_closing_answers_those_who_wait() -> None:
    async with running() as under_test:
        running_one = await busy(under_test, text("SLEEP"))
        queued = asyncio.create_task(prepared(under_test, text("a")))
        await until(lambda: under_test.waiting == 1, "one waits")
        await under_test.close()
        for result in await asyncio.gather(running_one, queued, return_exceptions=True):
            assert isinstance(result, NotReadyError)


async def test_a_helper_that_cannot_start_is_tried_again_ever_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        if seconds >= helpers.BACKOFF_S[0]:
            waits.append(seconds)
            seconds = 0.0
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", no_sleep)
    missing = setup(str(tmp_path / "none.gguf"))
    command = [sys.executable, "-c", "pass"]
    async with running(setup=missing, command=command) as under_test:
        await until(lambda: len(waits) >= 4, "it was tried some times")
        assert not under_test.processes
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]


async def test_a_helper_that_is_slow_to_start_is_given_ever_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []

    async def too_slow(_process: object, _setup: Setup, limit_s: float) -> None:
        limits.append(limit_s)
        raise HelperGoneError(f"not ready after {limit_s:g} s")

    monkeypatch.setattr(helper_process.HelperProcess, "start", too_slow)
    monkeypatch.setattr(helpers, "BACKOFF_S", (0.0, 0.0))
    async with running():
        await until(lambda: len(limits) >= 6, "it was tried some times")
    assert limits[:6] == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]


async def test_a_helper_that_is_killed_while_idle_comes_back() -> None:
    async with running() as under_test:
        await until(lambda: under_test.processes, "it is ready")
        (process,) = under_test.processes.values()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert (await prepared(under_test, text("abc"))).works[0].prompt_tokens == 5003


@pytest.mark.parametrize(
    ("pre", "run"), [("deepseek-coder", "a"), ("deepseek-llm", "a"), ("falcon", "!")]
)
async def test_a_run_that_overflows_the_usual_stack_gets_an_answer(
    pre: str, run: str, tmp_path: Path
) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", pre, template=CHATML)
    vocab = Vocab.load(path)
    try:
        async with running(setup=setup(str(path)), command=helper_process.COMMAND) as under_test:
            intake = Intake(vocab, 100_000, "toy", under_test)
            for length in (400, 3000, 30_000):
                for field, kind in (("prompt", Kind.COMPLETION), ("messages", Kind.CHAT)):
                    content: Any = run * length
                    if field == "messages":
                        content = [{"role": "user", "content": content}]
                    body = json.dumps({field: content}).encode()
                    async with asyncio.timeout(PATIENCE_S):
                        taken = await intake.take(body, kind)
                    assert isinstance(taken, Taken)
                    assert taken.works[0].prompt_tokens >= length
            million = json.dumps({"prompt": run * 90_000}).encode()
            async with asyncio.timeout(PATIENCE_S):
                taken = await intake.take(million, Kind.COMPLETION)
                assert isinstance(taken, Taken)
                assert taken.works[0].prompt_tokens >= 90_000
    finally:
        vocab.close()


async def test_fuzzed_bodies_never_cost_a_helper() -> None:
    chance = random.Random(7)
    alphabet = [*'"{}[]:,1', "\\", "<|im_end|>", "\\ud800", "é", "😀", "\0"]
    base = json.dumps({"messages": [{"role": "user", "content": "hello " * 1000}]})
    async with running() as under_test:
        await until(lambda: under_test.processes, "it is ready")
        (process,) = under_test.processes.values()
        answered = 0
        for _ in range(150):
            chars = list(base)
            for _ in range(chance.randrange(1, 4)):
                chars[chance.randrange(len(chars))] = chance.choice(alphabet)
            body = "".join(chars).encode()
            if chance.random() < 0.3:
                body = body.replace(b"hello", chance.randbytes(3), 3)
            kind = chance.choice([*DIALECTS, *PATHS])
            asked = asyncio.create_task(under_test.prepare(body, kind))
            await asyncio.wait({asked}, timeout=PATIENCE_S)
            error = asked.exception()
            answered += error is None
            if error is not None:
                assert isinstance(error, LbhostError), error
                assert error.status in (400, 404, 422)
                assert not isinstance(error, PromptError)
        assert answered > 0
        assert list(under_test.processes.values()) == [process]


async def test_short_bodies_need_no_helper() -> None:
    async with running(opened=False) as under_test:
        intake = Intake(ToyVocab(), 2048, "toy", under_test)
        taken = await intake.take(b'{"prompt":"abc"}', Kind.COMPLETION)
    assert isinstance(taken, Taken)
    assert taken.works[0].prompt_tokens == 3


LIAR = """
import socket, sys
from lbhost.gateway.prompt import helper, helper_messages as messages
link = socket.socket(fileno=int(sys.argv[2]))
helper._receive(link)
link.sendall(messages.frame(messages.Ready()))
helper._receive(link)
link.sendall(messages.frame(messages.Begun()))
link.sendall(messages.frame(messages.Refused("NoSuchError", "nonsense", None)))
helper._receive(link)
"""


async def test_a_helper_that_names_an_unknown_error_is_replaced() -> None:
    async with running(command=[sys.executable, "-c", LIAR]) as under_test:
        for _ in range(2):
            with pytest.raises(PromptError, match="unknown error"):
                await prepared(under_test, text("abc"))
