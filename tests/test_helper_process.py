"""A prompt helper as a process: what it holds, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from filling import fill
from lbhost.gateway.prompt import helper_process
from lbhost.gateway.prompt.helper_messages import LENGTH, Ready, answer, frame
from running_gateway import HELPER, PATIENCE_S, until
from test_prompt_helpers import prepared, running, setup, text

pytestmark = pytest.mark.anyio


async def test_a_helper_has_no_key_ignores_signals_and_holds_no_foreign_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LBHOST_API_KEY", "a secret of ours")
    monkeypatch.setenv("HF_TOKEN", "a secret of theirs")
    async with running() as under_test:
        await until(lambda: under_test.processes, "it is ready")
        (process,) = under_test.processes.values()
        proc = Path(f"/proc/{process.pid}")
        assert b"secret" not in (proc / "environ").read_bytes()
        links = [str(fd.readlink()) for fd in (proc / "fd").iterdir()]
        assert sum(link.startswith("socket:") for link in links) == 1
        assert process.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        assert (await prepared(under_test, text("abc"))).works[0].prompt_tokens == 5003
        assert list(under_test.processes.values()) == [process]


async def test_a_helper_is_reaped_also_when_its_end_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = helper_process.HelperProcess(HELPER)
    await process.start(setup())
    pid = process.pid
    poll, looks = subprocess.Popen.poll, itertools.count()

    def late(popen: subprocess.Popen[bytes]) -> int | None:
        return poll(popen) if next(looks) > 1 else None  # `kill` looks as well

    monkeypatch.setattr(subprocess.Popen, "poll", late)
    ending = asyncio.create_task(process.end())
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert not Path(f"/proc/{pid}").exists()


MUTE = """
import sys
from lbhost.gateway.prompt import helper
from toy_vocab import ToyVocab
sys.exit(helper.main(lambda path: ToyVocab(template="{% if")))
"""


def test_a_helper_whose_stderr_nobody_reads_starts_all_the_same() -> None:
    reading, writing = os.pipe()
    fill(writing)
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    process = subprocess.Popen(
        [sys.executable, "-c", MUTE, "--fd", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stderr=writing,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    try:
        theirs.close()
        ours.sendall(frame(setup()))
        (size,) = LENGTH.unpack(ours.recv(LENGTH.size, socket.MSG_WAITALL))
        assert answer(ours.recv(size, socket.MSG_WAITALL)) == Ready()
        ours.close()
        assert process.wait(PATIENCE_S) == 0
    finally:
        ours.close()
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
