"""A synchronous client of the admin API, for the CLI and for scripts.

Turns every failure into an LbhostError: ServerGoneError when nothing answers on the runtime
dir, else what the server said. Owns one connection; waits for commands as long as they take.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar
from urllib.parse import quote

import httpx2

from lbhost import answers
from lbhost.errors import LbhostError, ServerGoneError
from lbhost.status import Event, LogLine, Requests, Status

SOCKET_NAME = "admin.sock"
CONNECT_S = 5.0
ANSWER_S = 10.0
"""How long the server may take for an answer that needs no waiting."""
SILENCE_S = 30.0
"""The event stream is pinged every 10 s; a server that is silent for so long is gone."""
ALL_LINES = 1000
"""The server keeps so many events, and so many lines of each worker."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Stream(Protocol[T_co]):
    """`events` or `log`, with all but the backlog said."""

    def __call__(self, *, backlog: int) -> Iterator[T_co]: ...


class AdminClient:
    """The server on one runtime dir. A context manager."""

    def __init__(self, runtime_dir: Path) -> None:
        """Make sure that somebody listens there.

        Raises:
            ServerGoneError
        """
        self._where = runtime_dir
        self._reach()
        self._http = self._connection()

    def _connection(self) -> httpx2.Client:
        return httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(self._where / SOCKET_NAME)),
            base_url="http://lbhost",
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
        )

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def status(self) -> Status:
        """Everything there is to know. Raises ServerGoneError, OtherVersionError."""
        return answers.status(self.status_json())

    def status_json(self) -> bytes:
        """The same, as the server sent it."""
        return self._ask("GET", "/status").content

    def requests(self) -> Requests:
        """The live requests, the oldest first. Raises LbhostError."""
        return answers.requests(self.requests_json())

    def requests_json(self) -> bytes:
        """The same, as the server sent it."""
        return self._ask("GET", "/requests").content

    def cancel(self, request: str) -> str:
        """End the live requests of that id. Raises LbhostError when there is none."""
        answer = self._ask("DELETE", f"/requests/{quote(request, safe='')}")
        return answers.accepted(answer.content).message

    def drain(self, worker: int, timeout_s: float | None = None, *, wait: bool = True) -> str:
        """Raises LbhostError when it did not happen; so do all the following."""
        body = {} if timeout_s is None else {"timeout_s": timeout_s}
        return self._command(f"/workers/{worker}/drain", body, wait)

    def resume(self, worker: int, *, wait: bool = True) -> str:
        """Wanted up again."""
        return self._command(f"/workers/{worker}/resume", {}, wait)

    def restart(self, worker: int, *, wait: bool = True) -> str:
        """Drain, stop, start."""
        return self._command(f"/workers/{worker}/restart", {}, wait)

    def restart_all(self, *, wait: bool = True) -> str:
        """One after the other, without losing capacity."""
        return self._command("/workers/restart", {}, wait)

    def scale(self, workers: int | str, model: str | None = None, *, wait: bool = True) -> str:
        """So many workers, of this model where there are several."""
        of = {} if model is None else {"model": model}
        return self._command("/scale", {"workers": workers, **of}, wait)

    def reload(self, *, dry_run: bool = False, wait: bool = True) -> str:
        """Bring the configuration as it is now into force."""
        return self._command("/reload", {"dry_run": dry_run}, wait)

    def upgrade(self, *, wait: bool = True) -> str:
        """A new server, of the lbhost that is installed now, takes over."""
        return self._command("/upgrade", {}, wait)

    def events(
        self,
        *,
        backlog: int,
        follow: bool,
        worker: int | None = None,
        level: str | None = None,
        since: float | None = None,
    ) -> Iterator[Event]:
        """Past events, then, with `follow`, every new one until the server stops.

        Args:
            backlog: at most so many past ones.
            worker: only this worker's.
            level: only those that are at least as severe.
            since: only those after this Unix time, in seconds.

        Raises:
            ServerGoneError: it was not there, or vanished.
            OtherVersionError
        """
        query: dict[str, str | int | float] = {"backlog": backlog, "follow": int(follow)}
        limits = {"worker": worker, "level": level, "since": since}
        query |= {key: value for key, value in limits.items() if value is not None}
        yield from map(answers.event, self._stream("/events", query))

    def log(self, worker: int, *, backlog: int, follow: bool) -> Iterator[LogLine]:
        """What a worker's processes have written; arguments and exceptions as those of `events`.

        Raises:
            LbhostError: there is no such worker.
        """
        query = {"backlog": backlog, "follow": int(follow)}
        yield from map(answers.log_line, self._stream(f"/workers/{worker}/log", query))

    def and_after(self, backlog: int, stream: Stream[T]) -> Generator[T, None, None]:
        """What `stream` brings when it is given a backlog; when it ends because another server has
        taken over, the same of that one, from the first line on; until none has.

        Raises:
            ServerGoneError: the last one vanished.
        """
        pid: int | None = self.status().pid
        while pid is not None:
            gone: ServerGoneError | None = None
            try:
                yield from stream(backlog=backlog)
            except ServerGoneError as error:
                gone = error
            pid, backlog = self._other_than(pid), ALL_LINES
            if pid is None and gone is not None:
                raise gone

    def _stream(self, path: str, query: Mapping[str, str | int | float]) -> Iterator[bytes]:
        """The data of server-sent events."""
        timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S)
        try:
            with self._http.stream("GET", path, params=query, timeout=timeout) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise self._refusal(answer)
                for line in event_lines(answer.iter_bytes()):
                    if line.startswith(b"data: "):
                        yield line[6:]
        except httpx2.TransportError as error:
            raise self._gone(error) from error

    def _other_than(self, pid: int) -> int | None:
        """The pid of the server that is there now; None if none is, or still the same one."""
        self._http.close()  # the old one may answer on what is open
        self._http = self._connection()
        try:
            self._reach()
            found = self.status().pid
        except ServerGoneError:
            return None
        return None if found == pid else found

    def _command(self, path: str, body: Mapping[str, object], wait: bool) -> str:
        # A drain lasts as long as its longest request: only the connection may time out.
        timeout = httpx2.Timeout(None if wait else ANSWER_S, connect=CONNECT_S)
        answer = self._ask("POST", f"{path}?wait={int(wait)}", json=body, timeout=timeout)
        return answers.accepted(answer.content).message

    def _ask(self, method: str, path: str, **options: object) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **options)  # type: ignore[arg-type]
        except httpx2.TransportError as error:
            if method != "GET" or isinstance(error, httpx2.TimeoutException):
                raise self._gone(error) from error
            answer = self._ask_again(path)  # another server may have taken over just now
        if answer.status_code >= 400:
            raise self._refusal(answer)
        return answer

    def _ask_again(self, path: str) -> httpx2.Response:
        self._reach()
        try:
            return self._http.get(path)
        except httpx2.TransportError as error:
            raise self._gone(error) from error

    def _reach(self) -> None:
        # httpx2 would leak its socket where nobody listens, and hide why.
        with socket.socket(socket.AF_UNIX) as trial:
            trial.settimeout(CONNECT_S)
            try:
                trial.connect(str(self._where / SOCKET_NAME))
            except PermissionError as error:
                raise ServerGoneError(f"{self._where} belongs to another user") from error
            except OSError as error:
                raise ServerGoneError(
                    f"no server runs on {self._where} (start one: lbhost serve; "
                    "look elsewhere: --runtime-dir)"
                ) from error

    def _gone(self, error: httpx2.TransportError) -> ServerGoneError:
        if isinstance(error, httpx2.TimeoutException):
            return ServerGoneError(f"the server on {self._where} does not answer")
        return ServerGoneError(f"the server on {self._where} went away")

    @staticmethod
    def _refusal(answer: httpx2.Response) -> LbhostError:
        return LbhostError(answers.refusal(answer.content, answer.status_code))


def event_lines(data: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of server-sent events. httpx2's own end at U+2028 and its kin too, which JSON may
    hold."""
    held = b""
    for some in data:
        *lines, held = (held + some).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)
