"""What a test leaves behind is named, and lbhost itself leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from left_behind import Possessions
from supervising import box


def test_a_descriptor_is_named() -> None:
    before = Possessions.now()
    read, write = os.pipe()
    try:
        left = before.leftovers()
    finally:
        os.close(read)
        os.close(write)
    assert [what.split(":")[0] for what in left] == [f"descriptor {fd}" for fd in (read, write)]
    assert before.leftovers() == []


def test_a_socket_says_whom_it_speaks_with() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = Possessions.now()
        address = server.getsockname()
        with socket.create_connection(address):
            (left,) = before.leftovers()
    assert left.endswith(f" to {address}")
    assert before.leftovers() == []


def test_a_socket_that_only_garbage_holds_is_a_warning_here_and_now() -> None:
    before = Possessions.now()
    cycle: list[object] = [socket.socket()]
    cycle.append(cycle)
    del cycle
    with pytest.warns(ResourceWarning, match="unclosed"):
        assert before.leftovers() == []


def test_a_process_is_named_and_killed() -> None:
    before = Possessions.now()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        (left,) = [w for w in before.leftovers(patience_s=0.0) if w.startswith("process")]
        child.returncode = -9  # reaped by what has found it
    assert left.startswith(f"process {child.pid}: ")
    assert not Path(f"/proc/{child.pid}").exists()


def test_a_thread_is_named() -> None:
    before, end = Possessions.now(), threading.Event()
    thread = threading.Thread(target=end.wait, name="lingering")
    thread.start()
    try:
        assert before.leftovers(patience_s=0.0) == ["thread 'lingering'"]
    finally:
        end.set()
        thread.join()


def test_a_changed_environment_is_named_and_put_back() -> None:
    before = Possessions.now()
    os.environ["LBHOST_LEFT"] = "1"
    assert before.leftovers() == ["environment variable LBHOST_LEFT"]
    assert "LBHOST_LEFT" not in os.environ


@pytest.mark.anyio
async def test_a_supervisor_that_kills_what_is_left_closes_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(Possessions.now().descriptors.values())
    deaf = {"gateway": "deaf", "worker-0": "deaf", "worker-1": "deaf"}
    async with box(tmp_path, monkeypatch, modes=deaf) as running:
        server = running.server
    now = set(Possessions.now().descriptors.values())
    assert not [what for what in now - before if what.startswith("socket:")]
    assert all(worker.link is None for worker in server.fleet.workers.values())


_INTERRUPTED = """
def test_fails():
    assert not "a reason that must be told"

def test_is_interrupted():
    raise KeyboardInterrupt
"""


def run_pytest(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """These tests with the check, in a process of their own."""
    (folder / "test_some.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:randomly"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        command,
        cwd=folder,
        env=environ,
        timeout=300,
        check=False,
        capture_output=True,
        text=True,
    )


def test_ctrl_c_ends_a_run_with_what_has_failed_so_far(tmp_path: Path) -> None:
    ended = run_pytest(tmp_path, _INTERRUPTED)
    assert ended.returncode == pytest.ExitCode.INTERRUPTED, ended.stdout + ended.stderr
    assert "a reason that must be told" in ended.stdout
    assert "AttributeError" not in ended.stderr


_HOLDS_WHAT_IT_HAD_OPEN = """
def test_fails():
    held = open("/dev/null")
    assert held is None
"""


def test_what_a_failed_test_still_holds_is_not_told_as_a_second_failure(tmp_path: Path) -> None:
    ended = run_pytest(tmp_path, _HOLDS_WHAT_IT_HAD_OPEN)
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout + ended.stderr
    assert "1 failed in" in ended.stdout
    assert "left behind" not in ended.stdout
