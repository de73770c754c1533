"""The commands on a running server."""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import ConsoleRenderable

from lbhost import report, requests_report
from lbhost.cli.app import AsJson, RuntimeDir, app, console, dashboard, where, whole
from lbhost.client import ALL_LINES, AdminClient
from lbhost.errors import UsageError

Wait = Annotated[
    bool,
    Parameter(name="--wait", negative="--no-wait", help="Return only when it has happened."),
]
Watch = Annotated[
    bool, Parameter(name=["--watch", "-w"], negative="", help="Again and again, until Ctrl-C.")
]
Interval = Annotated[
    float, Parameter(help="Seconds between two looks of --watch.", validator=Number(gte=0.1))
]
WorkerId = Annotated[
    int, Parameter(help="The worker's number.", converter=whole, validator=Number(gte=0))
]
BACKLOG = 100


def _count(_kind: object, workers: int | str) -> None:
    """Raises ValueError: no number of workers."""
    if isinstance(workers, int):
        Number(gte=1, lte=1024)(int, workers)


def _command(runtime_dir: str | None, act: Callable[[AdminClient], str]) -> None:
    with AdminClient(where(runtime_dir)) as client:
        print(act(client))


@app.command
def status(
    *,
    json: AsJson = False,
    watch: Watch = False,
    interval: Interval = 2.0,
    runtime_dir: RuntimeDir = None,
) -> None:
    """What the server and its workers are doing."""
    _show(
        runtime_dir,
        AdminClient.status_json,
        lambda client: report.status_view(client.status()),
        json=json,
        watch=interval if watch else None,
    )


@app.command
def requests(
    *,
    json: AsJson = False,
    watch: Watch = False,
    interval: Interval = 2.0,
    runtime_dir: RuntimeDir = None,
) -> None:
    """The requests that wait or are answered now: where each is, when it is predicted to end."""
    _show(
        runtime_dir,
        AdminClient.requests_json,
        lambda client: requests_report.view(client.requests(), console().width),
        json=json,
        watch=interval if watch else None,
    )


@app.command
def cancel(
    request: Annotated[str, Parameter(help="Its id, as `lbhost requests` shows it.")],
    /,
    *,
    runtime_dir: RuntimeDir = None,
) -> None:
    """End a request, wherever it is; its client gets an error (410 request_cancelled)."""
    _command(runtime_dir, lambda client: client.cancel(request))


def _show(
    runtime_dir: str | None,
    raw: Callable[[AdminClient], bytes],
    view: Callable[[AdminClient], ConsoleRenderable],
    *,
    json: bool,
    watch: float | None,
) -> None:
    """One picture; or, every `watch` seconds, one in place or one after the other until Ctrl-C."""
    screen = console()
    in_place = screen.is_terminal and not json and watch is not None
    with AdminClient(where(runtime_dir)) as client:
        if watch is None and json:
            print(msgspec.json.format(raw(client), indent=2).decode())
            return
        with screen.screen() if in_place else contextlib.nullcontext():
            while True:
                if json:
                    print(raw(client).decode(), flush=True)
                else:
                    picture = view(client)
                    if in_place:
                        screen.clear()
                    screen.print(picture)
                    sys.stdout.flush()
                if watch is None:
                    return
                time.sleep(watch)


@app.command
def drain(
    worker: WorkerId,
    /,
    *,
    timeout: Annotated[
        float | None,
        Parameter(
            help="Seconds after which its requests are cut off.",
            show_default=False,
            validator=Number(gte=0, lte=86400),
        ),
    ] = None,
    wait: Wait = True,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Give a worker no new requests, and stop it once its last one has ended."""
    _command(runtime_dir, lambda client: client.drain(worker, timeout, wait=wait))


@app.command
def resume(worker: WorkerId, /, *, wait: Wait = True, runtime_dir: RuntimeDir = None) -> None:
    """Take a drain back, or start a worker that is stopped or has failed."""
    _command(runtime_dir, lambda client: client.resume(worker, wait=wait))


@app.command
def restart(
    worker: Annotated[str, Parameter(help="The worker's number, or `all`.")],
    /,
    *,
    wait: Wait = True,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Give a worker a new process; `all`: every one in turn, without losing capacity."""
    if worker == "all":
        _command(runtime_dir, lambda client: client.restart_all(wait=wait))
        return
    if not (worker.isascii() and worker.isdecimal()):
        raise UsageError(f"restart takes a worker's number or `all`, not {worker!r}")
    _command(runtime_dir, lambda client: client.restart(int(worker), wait=wait))


@app.command
def scale(
    workers: Annotated[
        int | Literal["auto"],
        Parameter(
            help="How many workers there are to be; auto: as many as the load needs, again, where "
            "min_workers or max_workers was set.",
            converter=whole,
            validator=_count,
        ),
    ],
    /,
    *,
    model: Annotated[
        str | None,
        Parameter(help="Of which model, where there are several.", show_default=False),
    ] = None,
    wait: Wait = True,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Start more workers, or drain and remove those with the highest numbers."""
    _command(runtime_dir, lambda client: client.scale(workers, model, wait=wait))


@app.command
def reload(
    *,
    dry_run: Annotated[
        bool,
        Parameter(negative="", help="Only print what would change, and how it comes into force."),
    ] = False,
    keys: Annotated[
        bool, Parameter(negative="", help="Only print how a change of each key comes into force.")
    ] = False,
    wait: Wait = True,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Read the configuration file again and bring what has changed into force.

    Flags and environment of the running server still win. A file that is no good changes nothing.
    """
    if keys:
        from lbhost.supervisor import changes

        print("\n".join(changes.table()))
        return
    _command(runtime_dir, lambda client: client.reload(dry_run=dry_run, wait=wait))


@app.command
def upgrade(*, wait: Wait = True, runtime_dir: RuntimeDir = None) -> None:
    """Have the lbhost that is installed now take over from the running one.

    The new server starts beside the old one and gets its sockets; requests end where they began.
    """
    _command(runtime_dir, lambda client: client.upgrade(wait=wait))


@app.command
def events(
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="Go on with new ones.")
    ] = False,
    backlog: Annotated[
        int | None,
        Parameter(
            help="How many past events at most. [default: 100, or all with --since]",
            show_default=False,
            converter=whole,
            validator=Number(gte=0),
        ),
    ] = None,
    worker: Annotated[
        int | None,
        Parameter(
            help="Only this worker's.",
            show_default=False,
            converter=whole,
            validator=Number(gte=0),
        ),
    ] = None,
    level: Annotated[
        Literal["info", "warning", "error"] | None,
        Parameter(help="Only those that are at least as severe.", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        Parameter(
            help="Only those after this: 90s, 10m, 2h or 1d ago, or a time (2026-11-24T18:00).",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
    runtime_dir: RuntimeDir = None,
) -> None:
    """The event log; with --follow also that of a server that takes over."""
    after = None if since is None else moment(since, time.time())
    if backlog is None:
        backlog = BACKLOG if since is None else ALL_LINES
    screen = console()
    with AdminClient(where(runtime_dir)) as client:
        wanted = partial(client.events, follow=follow, worker=worker, level=level, since=after)
        found = client.and_after(backlog, wanted) if follow else wanted(backlog=backlog)
        event = None
        for event in found:
            if json:
                print(msgspec.json.encode(event).decode(), flush=follow)
            else:
                screen.print(report.event_line(event), soft_wrap=True)
        everything = backlog and level is None and since is None
        if event is None and worker is not None and everything and not follow:
            _require_known(client, worker)


def _require_known(client: AdminClient, worker: int) -> None:
    """Raises UsageError: nobody has that id; events of workers that are gone are kept, too."""
    known = [one.id for one in client.status().workers]
    if worker not in known:
        there = ", ".join(map(str, known)) or "none"
        raise UsageError(f"no event of a worker {worker}, and none has that id; there are: {there}")


@app.command
def logs(
    worker: WorkerId,
    /,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="Go on with new lines.")
    ] = False,
    backlog: Annotated[
        int,
        Parameter(help="How many past lines at most.", converter=whole, validator=Number(gte=0)),
    ] = BACKLOG,
    json: AsJson = False,
    runtime_dir: RuntimeDir = None,
) -> None:
    """What a worker's processes have written: their log, llama.cpp's lines, last words."""
    screen = console()
    with AdminClient(where(runtime_dir)) as client:
        wanted = partial(client.log, worker, follow=follow)
        found = client.and_after(backlog, wanted) if follow else wanted(backlog=backlog)
        for line in found:
            if json:
                print(msgspec.json.encode(line).decode(), flush=follow)
            else:
                screen.print(report.log_line(line), soft_wrap=True)


_SPAN_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str, now_s: float) -> float:
    """The Unix time that `--since` means: so long ago, or a date and time (local by default).

    Raises:
        UsageError: it is neither.
    """
    span = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd])", text)
    if span:
        return max(0.0, now_s - float(span[1]) * _SPAN_S[span[2]])
    try:
        return max(0.0, datetime.datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"--since: expected 90s, 10m, 2h, 1d or a time like 2026-11-24T18:00, got {text!r}"
        ) from error


@app.command
def tui(
    *,
    readonly: Annotated[
        bool, Parameter(negative="", help="Only look: nothing can be ordered.")
    ] = False,
    once: Annotated[
        bool, Parameter(negative="", help="Print the screen as text, or with --json, and end.")
    ] = False,
    json: Annotated[
        bool, Parameter(name="--json", negative="", help="With --once: the status as JSON.")
    ] = False,
    export_svg: Annotated[
        Path | None, Parameter(help="Write the screen to this file and end.", show_default=False)
    ] = None,
    settle: Annotated[
        float,
        Parameter(
            help="Seconds that the picture's sparklines fill first.",
            validator=Number(gte=0, lte=3600),
        ),
    ] = 0.0,
    size: Annotated[
        str, Parameter(help="The picture's columns and rows, between 40x10 and 400x200.")
    ] = "120x32",
    runtime_dir: RuntimeDir = None,
) -> int:
    """The dashboard of a running server."""
    if json and not once:
        raise UsageError("tui --json needs --once")
    if once and export_svg is not None:
        raise UsageError("tui takes --once or --export-svg, not both")
    if json:
        status(json=True, runtime_dir=runtime_dir)
        return 0
    return dashboard()(
        where(runtime_dir),
        export_svg=export_svg,
        settle_s=settle,
        size=_size(size),
        once=once,
        readonly=readonly,
    )


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,3})x(\d{2,3})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (40 <= size[0] <= 400 and 10 <= size[1] <= 200):
        raise UsageError(f"--size: expected COLUMNSxROWS between 40x10 and 400x200, got {text!r}")
    return size
