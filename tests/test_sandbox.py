"""What a confined child can still do: each attack is run in a real process, confined for real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lbhost.board import Board
from lbhost.sandbox import landlock, profiles
from lbhost.sandbox.environment import scrubbed

PATIENCE_S = 300.0

confines = pytest.mark.skipif(
    not profiles.offered().complete, reason="this kernel cannot confine all that is tried here"
)


def outcomes(confine: str, attacks: dict[str, str], *, fds: tuple[int, ...] = ()) -> dict[str, str]:
    """What a process says of each attack after it was confined: "done", or the error's name."""
    parts = [
        f"""
try:
{textwrap.indent(textwrap.dedent(attack), "    ")}
except OSError as error:
    found[{name!r}] = errno.errorcode[error.errno]
else:
    found[{name!r}] = "done"
"""
        for name, attack in attacks.items()
    ]
    program = f"""
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, subprocess, sys, termios
import threading
from lbhost.sandbox import profiles
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
held, found = open("/etc/passwd"), {{}}
{confine}
{"".join(parts)}
print(json.dumps(found))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        pass_fds=fds,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, str] = msgspec.json.decode(ended.stdout)
    return answer


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of the same user."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_no_folder_that_holds_everything_is_opened_however_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "modules").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    paths = os.pathsep.join((".", f"{home}/", f"{home}/modules/..", str(home.parent), "./modules"))
    granted = {Path(path) for path, _ in profiles._programs({"PYTHONPATH": paths})}
    assert home / "modules" in granted
    assert not {path for path in granted if home.is_relative_to(path)}


def test_a_home_below_usr_leaves_the_systems_programs_readable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/usr/sbin")
    granted = {path for path, _ in profiles._programs({})}
    assert "/usr" in granted
    assert "/usr/sbin" not in granted


def test_the_kernels_offer_is_complete_or_says_what_is_missing() -> None:
    found = profiles.offered()
    assert found.landlock == landlock.abi()
    assert found.complete == (found.missing == "")


@confines
def test_a_worker_can_do_nothing_but_compute(
    neighbour: subprocess.Popen[bytes], listener: socket.socket
) -> None:
    board = Board.create(workers=1, cores=1, gpus=0)
    pidfd = os.pidfd_open(neighbour.pid)
    intel = os.uname().machine == "x86_64"
    clone = 56 if intel else 220
    shmget, mq_open, watch = (29, 240, 254) if intel else (194, 180, 27)
    new_user = 0x10000000
    allowed = {
        "keep what is open": "held.read()",
        "import late": "import json.tool, http.client",
        "a thread": """
            cpus = os.sched_getaffinity(0)
            thread = threading.Thread(target=os.sched_setaffinity, args=(0, cpus))
            thread.start()
            thread.join()
        """,
        "a memfd": """
            fd = os.memfd_create("x")
            os.ftruncate(fd, 1 << 20)
            mmap.mmap(fd, 1 << 20)
        """,
    }
    with socket.socket() as given:
        attacks = {
            "read what all may read": 'open("/etc/passwd")',
            "read its own environment": 'open("/proc/self/environ")',
            "write to nowhere": 'open("/dev/null", "w")',
            "list the root": 'os.listdir("/")',
            "write a file": f'open({tempfile.gettempdir()!r} + "/lbhost-escape", "w")',
            "TCP": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
            "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "a unix socket": "socket.socket(socket.AF_UNIX)",
            "connect what it is given": f"""
                socket.socket(fileno={given.fileno()}).connect({listener.getsockname()!r})
            """,
            "run a program": 'os.execv("/bin/true", ["true"])',
            "signal a neighbour": f"os.kill({neighbour.pid}, 0)",
            "signal its parent": "os.kill(os.getppid(), 0)",
            "trace a neighbour": f"checked(libc.ptrace(16, {neighbour.pid}, 0, 0))",
            "take a descriptor": f"checked(libc.syscall(438, {pidfd}, 0, 0))",
            "leave its namespaces": f"checked(libc.unshare({new_user}))",
            "a child in others": f"""
                checked(libc.syscall({clone}, {new_user | signal.SIGCHLD}, 0, 0, 0, 0))
            """,
            "limit a neighbour": f"resource.prlimit({neighbour.pid}, resource.RLIMIT_CPU, (0, 0))",
            "a datagram to anybody": """
                socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", "/dev/log")
            """,
            # Of what the kernel would say without a filter, none is EPERM.
            "type into the terminal": 'fcntl.ioctl(os.memfd_create("x"), termios.TIOCSTI, b"x")',
            "shared memory of others": f"checked(libc.syscall({shmget}, 77, 0, 0))",
            "queues of others": f"checked(libc.syscall({mq_open}, b'x', 0, 0, 0))",
            "watch files": f"checked(libc.syscall({watch}, -1, b'/tmp', 0xFFF))",
            "open a file to all": f"os.chmod({tempfile.gettempdir()!r}, 0o1777)",
            "change a file's times": f"os.utime({tempfile.gettempdir()!r})",
            "read a neighbour's environment": f'open("/proc/{neighbour.pid}/environ")',
            # A board that is cut off would end everybody who looks at it (SIGBUS).
            "cut the board": f"os.ftruncate({board.fd}, 0)",
            "stretch the board": f"os.ftruncate({board.fd}, 1 << 30)",
        }
        confine = "assert profiles.worker(os.environ, gpu=False) == profiles.offered()"
        fds = (board.fd, given.fileno(), pidfd)
        found = outcomes(confine, {**allowed, **attacks}, fds=fds)
    assert {name: found[name] for name in allowed} == dict.fromkeys(allowed, "done")
    assert {found[name] for name in attacks} == {"EPERM", "EACCES"}, found
    assert neighbour.poll() is None
    os.close(pidfd)


@confines
def test_a_reader_reads_the_model_and_programs_and_nothing_else(tmp_path: Path) -> None:
    """Fork server, prompt helper, inspecting and measuring process."""
    model, secret, work = tmp_path / "a.gguf", tmp_path / "secret", tmp_path / "work"
    model.write_text("x")
    secret.write_text("x")
    work.mkdir()
    allowed = {
        "read the model": f"open({str(model)!r})",
        "read a program": "import json.tool, http.client",
        "read the kernel's figures": 'open("/proc/self/statm")',
        "write where it may": f"open({str(work / 'a')!r}, 'w')",
    }
    attacks = {
        "read a file": f"open({str(secret)!r})",
        "read settings": "open('/etc/passwd')",
        "overwrite the model": f"open({str(model)!r}, 'w')",
        "cut the model": f"os.truncate({str(model)!r}, 0)",
        "remove the model": f"os.unlink({str(model)!r})",
        "write beside it": f"open({str(tmp_path / 'b')!r}, 'w')",
        "a socket": "socket.socket()",
        "give the model away": f"os.chown({str(model)!r}, os.getuid(), os.getgid())",
        "mark the model": f"os.setxattr({str(model)!r}, 'user.x', b'')",
        "read another's environment": "open(f'/proc/{os.getppid()}/environ')",
        "run a program": 'os.execv("/bin/true", ["true"])',
    }
    # Started in the folder of the secret, which is where Python would look for modules.
    confine = f"sys.path.insert(0, {str(tmp_path)!r})\n"
    confine += f"profiles.reader([{str(model)!r}], os.environ, writes=[{str(work)!r}])"
    found = outcomes(confine, {**allowed, **attacks})
    assert {name: found[name] for name in allowed} == dict.fromkeys(allowed, "done")
    assert {found[name] for name in attacks} <= {"EPERM", "EACCES"}, found


@confines
def test_a_gateway_accepts_and_starts_helpers_and_no_more(
    listener: socket.socket, tmp_path: Path
) -> None:
    second = socket.create_server(("127.0.0.1", 0))
    allowed = {
        "accept": f"socket.socket(fileno={listener.fileno()}).accept()",
        "start and end a helper": """
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            child.kill()
            child.wait()
        """,
    }
    attacks = {
        "connect": "socket.socket()",
        "write": f"open({str(tmp_path / 'a')!r}, 'w')",
        "signal": "os.kill(os.getppid(), 0)",
        "read the key": "open(f'/proc/{os.getppid()}/environ')",
        "open a file to all": f"os.chmod({str(tmp_path)!r}, 0o777)",
        # What listened is free to connect then, by a way that asks nobody.
        "connect by sending": f"""
            end = socket.socket(fileno={second.fileno()})
            end.shutdown(socket.SHUT_RDWR)
            end.sendto(b"x", socket.MSG_FASTOPEN, {listener.getsockname()!r})
        """,
    }
    with socket.create_connection(listener.getsockname()), second:
        confine = "profiles.gateway([], os.environ)"
        fds = (listener.fileno(), second.fileno())
        found = outcomes(confine, {**allowed, **attacks}, fds=fds)
    assert {name: found[name] for name in allowed} == dict.fromkeys(allowed, "done")
    assert {found[name] for name in attacks} <= {"EPERM", "EACCES"}, found


def test_an_older_kernel_takes_away_what_it_can() -> None:
    assert landlock.handled(1) & landlock.TRUNCATE == 0
    assert landlock.handled(3) & landlock.TRUNCATE
    assert not landlock.handled(4) & landlock.IOCTL_DEV


def test_a_kernel_without_landlock_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert "no Landlock" in profiles.offered().missing
    assert landlock.restrict([("/", landlock.READ)]) == 0
    assert Path("/etc/passwd").read_text()  # nothing has changed


def test_a_child_gets_no_secret() -> None:
    environ = {
        "PATH": "/bin",
        "LBHOST_API_KEY": "secret",
        "LBHOST_PORT": "1",
        "HF_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "NOTIFY_SOCKET": "/run/x",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
    }
    kept = scrubbed(environ)
    assert set(kept) == {"PATH", "LBHOST_PORT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"}
