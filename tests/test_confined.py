"""Attacks from within the processes of a running server: calls made in their own name."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from faults.injection import call
from lbhost.sandbox import profiles
from serving import Server, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not profiles.offered().complete, reason="this kernel cannot confine"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="injection is written for x86_64"),
]

KEY = "secret-key-of-this-test"
OPEN, FTRUNCATE, SOCKET, SOCKETPAIR, KILL, PTRACE, EXECVE = 2, 77, 41, 53, 62, 101, 59
CHMOD, PRLIMIT = 90, 302
READ_ONLY, WRITE_CREATE = 0, 0o101
SEIZE = 0x4206


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run = tmp_path_factory.mktemp("confined") / "run"
    more = {"LBHOST_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": KEY, "HF_TOKEN": KEY}
    with Server(run, "--ctx-size", "1024", "--workers", "2", environ=more) as made:
        yield made


@pytest.fixture
def children(shared: Server) -> dict[str, int]:
    """One process of each kind, by title."""
    kinds = {"lbhost fork server", "lbhost worker 0", "lbhost worker 1", "lbhost gateway"}
    kinds.add("lbhost prompt helper")

    def all_of_them() -> dict[str, int]:
        below = psutil.Process(shared.process.pid).children(recursive=True)
        found = {process.cmdline()[0]: process.pid for process in below}
        return found if found.keys() >= kinds else {}

    return wait_for(all_of_them, "all processes have their titles")


def test_every_child_is_confined(children: dict[str, int]) -> None:
    for title, pid in children.items():
        status = dict(
            line.partition(":\t")[::2]
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert status["NoNewPrivs"] == "1", title
        assert status["Seccomp"] == "2", title
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0), title


def test_when_memory_runs_out_helpers_go_first_and_workers_next(children: dict[str, int]) -> None:
    # As high as the whole run's at least: a container may have been given one of its own.
    own = int(Path("/proc/self/oom_score_adj").read_text())
    least = {"lbhost prompt helper": 500, "lbhost worker 0": 200, "lbhost gateway": own}
    for title, score in least.items():
        found = int(Path(f"/proc/{children[title]}/oom_score_adj").read_text())
        assert found == max(own, score), title


def test_no_child_knows_a_secret(children: dict[str, int]) -> None:
    for title, pid in children.items():
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes(), title


@pytest.mark.parametrize(
    "title", ["lbhost worker 0", "lbhost fork server", "lbhost prompt helper", "lbhost gateway"]
)
def test_no_child_gets_out(
    shared: Server, children: dict[str, int], tmp_path: Path, title: str
) -> None:
    pid, supervisor = children[title], shared.process.pid
    secret = tmp_path / "secret"
    secret.write_text("x")
    tried = {
        "read a file": call(pid, OPEN, os.fsencode(secret), READ_ONLY),
        "write a file": call(pid, OPEN, os.fsencode(tmp_path / "new"), WRITE_CREATE, 0o600),
        "read the supervisor's memory": call(pid, OPEN, b"/proc/%d/mem" % supervisor, READ_ONLY),
        "a TCP socket": call(pid, SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0),
        "a UDP socket": call(pid, SOCKET, socket.AF_INET, socket.SOCK_DGRAM, 0),
        "a unix socket": call(pid, SOCKET, socket.AF_UNIX, socket.SOCK_STREAM, 0),
        "signal the supervisor": call(pid, KILL, supervisor, 0),
        "read the supervisor's key": call(pid, OPEN, b"/proc/%d/environ" % supervisor, READ_ONLY),
        "open a file to all": call(pid, CHMOD, os.fsencode(secret), 0o777),
        "limit the supervisor": call(pid, PRLIMIT, supervisor, resource.RLIMIT_NOFILE, 0, 0),
        "trace the supervisor": call(pid, PTRACE, SEIZE, supervisor, 0, 0),
    }
    assert set(tried.values()) <= {-errno.EPERM, -errno.EACCES}, tried


def test_a_worker_reads_no_settings_and_runs_no_program(children: dict[str, int]) -> None:
    pid = children["lbhost worker 0"]
    assert call(pid, OPEN, b"/etc/passwd", READ_ONLY) == -errno.EACCES
    assert call(pid, OPEN, b"/proc/self/environ", READ_ONLY) == -errno.EACCES
    assert call(pid, EXECVE, b"/bin/true", 0, 0) == -errno.EPERM


def test_a_worker_reaches_none_of_the_others(children: dict[str, int]) -> None:
    pid = children.pop("lbhost worker 0")
    assert {call(pid, KILL, other, 0) for other in children.values()} == {-errno.EPERM}


def test_a_worker_cannot_cut_what_others_map(children: dict[str, int]) -> None:
    """The board, and whatever memfd there is beside."""
    for title in ("lbhost worker 0", "lbhost gateway", "lbhost fork server"):
        pid = children[title]
        memfds = [
            int(entry.name)
            for entry in Path(f"/proc/{pid}/fd").iterdir()
            if str(entry.readlink()).startswith("/memfd:lbhost")
        ]
        assert memfds, title
        assert {call(pid, FTRUNCATE, fd, 0) for fd in memfds} == {-errno.EPERM}, title


def test_all_of_them_serve_on(shared: Server, children: dict[str, int]) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    answer = shared.http.post(
        "/v1/completions", json={"prompt": "So", "max_tokens": 8}, headers=headers
    )
    assert answer.status_code == 200
    assert [w.restarts for w in shared.status().workers] == [0, 0]
    assert {w.pid for w in shared.status().workers} <= set(children.values())
