"""The servers that are compared: how each is started, with which settings, which processes it is.

Each gets the same model, the same cores and room for the same contexts. Starts and stops them;
puts no load on anything.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine, servers
from benchmarks.comparison import balancers, dasllama, measures
from benchmarks.peers import Peers
from benchmarks.servers import ALIAS, Server, ServerError

CTX_SIZE = 2048
"""Tokens of a sequence, for everyone: the longest request that any scenario sends fits."""

SLOTS = 8
"""Of llama-server with all threads; the pinned ones share them, lbhost has 4 a worker."""


@dataclass(frozen=True)
class Contender:
    """A running server, or several behind a balancer."""

    server: Server
    roots: tuple[int, ...]
    """Pids of the processes that were started for it; their descendants are its too."""
    workers: Callable[[], list[int]]
    """Pids of those that compute. One at least can be stopped and leave others if there are two."""
    model: str = ALIAS
    """What it calls its model."""
    exact: bool = True
    """Whether it gives as many tokens as it is asked for."""
    speeds: Callable[[], dict[str, float]] = dict
    """What its workers have measured of themselves, on average; nothing where nobody says."""

    @property
    def name(self) -> str:
        return self.server.name


@dataclass(frozen=True)
class Setting:
    """What all contenders of a scenario share."""

    model: Path
    peers: Callable[[], Peers]
    """llama.cpp's programs; built when they are first asked for."""
    before: tuple[str, ...] = ()
    """What comes before each command: the way into a cgroup, or nothing."""
    lbhost_flags: tuple[str, ...] = ()


def llama_settings(threads: int, slots: int) -> list[str]:
    """llama-server as it is when nobody tunes it (flash attention and host prompt cache as they
    come), but for what the comparison fixes: threads, slots, context.
    """
    context = str(slots * CTX_SIZE)
    return ["-t", str(threads), "-np", str(slots), "-c", context, "--no-webui"]


@contextmanager
def lbhost(setting: Setting) -> Iterator[Contender]:
    """lbhost with its defaults."""
    with servers.lbhost(
        setting.model, ctx_size=CTX_SIZE, flags=setting.lbhost_flags, before=setting.before
    ) as server:

        def workers() -> list[int]:
            rows = servers.ask(server, "GET", "/status")["workers"]
            return [row["pid"] for row in rows if row["pid"]]

        def speeds() -> dict[str, float]:
            return measures.speeds(servers.ask(server, "GET", "/status")["workers"])

        yield Contender(server, (server.pid,), workers, speeds=speeds)


@contextmanager
def llama_server(setting: Setting) -> Iterator[Contender]:
    """One llama-server with a thread for each core."""
    threads = len(machine.cores())
    command = [*setting.before, *_llama_command(setting, llama_settings(threads, SLOTS))]
    with _started("llama-server", command) as server:
        yield Contender(server, (server.pid,), lambda: [server.pid])


@contextmanager
def haproxy(setting: Setting) -> Iterator[Contender]:
    """A pinned single-threaded llama-server for each core behind HAProxy, leastconn."""
    with _behind("haproxy", balancers.haproxy, setting) as contender:
        yield contender


@contextmanager
def nginx(setting: Setting) -> Iterator[Contender]:
    """The same behind nginx, least_conn."""
    with _behind("nginx", balancers.nginx, setting) as contender:
        yield contender


@contextmanager
def das_llama(setting: Setting) -> Iterator[Contender]:
    """dasLLAMA with a lane for each core. Ends its answers when the model does, whatever it is
    asked for."""
    command = dasllama.command(setting.model, CTX_SIZE, SLOTS)
    with _started("dasllama", [*setting.before, *command], "/v1/models") as server:
        yield Contender(
            server, (server.pid,), lambda: [server.pid], servers.model_id(server), False
        )


CONTENDERS = {
    "lbhost": lbhost,
    "llama-server": llama_server,
    "haproxy": haproxy,
    "nginx": nginx,
    "dasllama": das_llama,
}


def _llama_command(setting: Setting, settings: list[str]) -> list[str]:
    return [str(setting.peers().server), "--model", str(setting.model), "--alias", ALIAS, *settings]


@contextmanager
def _started(name: str, command: list[str], ready_path: str = "/health") -> Iterator[Server]:
    """A server that takes --host and --port, from its start until it is ready, until the end."""
    port = servers.free_port()
    with (
        tempfile.TemporaryDirectory(prefix="lbhost-bench-") as folder,
        servers.process(
            [*command, "--host", "127.0.0.1", "--port", str(port)], Path(folder) / "log"
        ) as pid,
    ):
        server = Server(name, pid, "127.0.0.1", port, None, ready_path)
        servers.wait(server, Path(folder) / "log")
        yield server


@contextmanager
def _behind(name: str, balancer: balancers.Balancer, setting: Setting) -> Iterator[Contender]:
    program = shutil.which(balancer.program, path=balancers.PATH)
    if program is None:
        raise ServerError(f"{name} is not installed (Debian, Ubuntu: apt-get install {name})")
    cores = machine.cores()
    slots = max(1, SLOTS // len(cores))
    with ExitStack() as stack:
        backends = [
            stack.enter_context(
                _started(
                    f"{name}'s llama-server on CPU {core}",
                    [
                        *setting.before,
                        *("taskset", "-c", str(core)),
                        *_llama_command(setting, llama_settings(1, slots)),
                    ],
                )
            )
            for core in cores
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbhost-bench-")))
        port = servers.free_port()
        text = balancer.config(port, [backend.port for backend in backends], folder)
        (folder / "config").write_text(text, encoding="utf-8")
        command = [*setting.before, program, *balancer.arguments(folder / "config")]
        pid = stack.enter_context(servers.process(command, folder / "log"))
        server = Server(name, pid, "127.0.0.1", port, None)
        servers.wait(server, folder / "log")
        pids = [backend.pid for backend in backends]
        yield Contender(server, (pid, *pids), lambda: pids)
