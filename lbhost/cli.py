"""The `lbhost` command: turns words into settings and commands, and errors into one line.

Exit codes: 0 when what was asked has happened, 1 when it has not, 2 for wrong usage. The
flags of `serve` are generated from config.Settings; nothing about them is repeated here.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import errno
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import cyclopts
import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lbhost import __version__, config, report
from lbhost.client import AdminClient
from lbhost.config import Settings
from lbhost.errors import LbhostError, UsageError

app = App(
    name="lbhost",
    help="Many small language models' answers from one box: a pinned worker per core.",
    version=__version__,
    help_format="plaintext",
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
)

RuntimeDir = Annotated[
    str | None,
    Parameter(name="--runtime-dir", help="The server's runtime dir.", show_default=False),
]
Wait = Annotated[
    bool,
    Parameter(name="--wait", negative="--no-wait", help="Return only when it has happened."),
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of text.")]
WorkerId = Annotated[int, Parameter(help="The worker's number.", validator=Number(gte=0))]
DASHBOARDS = "lbhost.dashboard"
"""The entry points under which a dashboard offers itself."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors go to stderr, one line each."""
    try:
        result = app(list(argv))
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        error.verbose = False
        return _fail(_usage(error), 2)
    except LbhostError as error:
        return _fail(error.message, 2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `lbhost events | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"cannot write the output: {error.strerror}", 1)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"lbhost: {' '.join(message.split())}", file=sys.stderr)
    return code


def _usage(error: cyclopts.CycloptsError) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, cyclopts.UnknownOptionError):
        text = re.sub(r"\.( Did|$)", r";\1", text).rstrip(";").replace("; Did", "; did")
    if isinstance(error, cyclopts.UnusedCliTokensError):
        text = f"too many words: {' '.join(error.unused_tokens or [])}"
    return text[:1].lower() + text[1:]


# --- serve ------------------------------------------------------------------------------


_UNITS = {"_s": "SECONDS", "_ms": "MS", "_c": "CELSIUS", "_bytes": "BYTES"}


def _metavar(field: msgspec.structs.FieldInfo) -> str:
    """What a flag takes: its choices, its unit, or N or TEXT."""
    if isinstance(field.default, enum.Enum):
        return "|".join(choice.value for choice in type(field.default))
    unit = next((word for end, word in _UNITS.items() if field.name.endswith(end)), None)
    number = isinstance(field.default, int) or field.name in {"ctx_size", "threads_per_worker"}
    return unit or ("N" if number else "TEXT")


def _serve(**given: Any) -> int:
    file, with_tui = given.pop("config", None), given.pop("tui", False)
    flags = {key: value for key, value in given.items() if value is not None}
    settings = config.load(flags, os.environ, Path(file) if file else None)
    if with_tui or os.environ.get("LBHOST_TUI", "0") not in {"", "0", "false", "no"}:
        from lbhost import cockpit

        return cockpit.run(settings, _serve_arguments(flags, file), dashboard=_dashboard())
    from lbhost import stream
    from lbhost.supervisor.main import serve

    stream.protect()
    try:
        serve(settings, os.environ, lambda status: print(report.banner(status), flush=True))
    except KeyboardInterrupt:  # told to stop before it served
        return 0
    return 0


def _serve_arguments(flags: dict[str, Any], file: str | None) -> list[str]:
    """The same `serve` once more, for the process beside the dashboard."""
    arguments = [_argument(config.flag_name(key), value) for key, value in flags.items()]
    return [*arguments, *([f"--config={file}"] if file else [])]


def _argument(flag: str, value: str | bool) -> str:
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"


def _add_serve() -> None:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for field in msgspec.structs.fields(Settings):
        switch = isinstance(field.default, bool)
        shown = ("yes" if field.default else "no") if switch else field.default
        default = "" if field.default is None else f" [default: {shown}]"
        flag = Parameter(
            name=f"--{config.flag_name(field.name)}",
            help=config.described(field.name) + default,
            show_default=False,
            metavar=None if switch else _metavar(field),
            allow_leading_hyphen=not switch,
        )
        hint: Any = Annotated[bool | None, flag] if switch else Annotated[str | None, flag]
        parameters.append(inspect.Parameter(field.name, keyword, default=None, annotation=hint))
    file = Parameter(name="--config", help="Settings from this lbhost.toml.", show_default=False)
    tui = Parameter(name="--tui", negative="", help="The dashboard in this terminal as well.")
    parameters += [
        inspect.Parameter("config", keyword, default=None, annotation=Annotated[str | None, file]),
        inspect.Parameter("tui", keyword, default=False, annotation=Annotated[bool, tui]),
    ]
    command: Any = _serve
    command.__doc__ = (
        "Serve a model until SIGTERM or Ctrl-C.\n\n"
        "Every flag has an environment variable (LBHOST_PORT) and a key in lbhost.toml (port); "
        "flag beats environment beats file."
    )
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {}
    app.command(command, name="serve")


_add_serve()


# --- commands on a running server -------------------------------------------------------


def _runtime_dir(given: str | None) -> Path:
    flags = {} if given is None else {"runtime_dir": given}
    settings = config.load(flags, os.environ)
    return Path(settings.runtime_dir or config.default_runtime_dir(os.environ))


def _console() -> Console:
    """Tables and colours as the terminal takes them; 80 columns and no colour in a pipe."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def _command(runtime_dir: str | None, act: Callable[[AdminClient], str]) -> None:
    with AdminClient(_runtime_dir(runtime_dir)) as client:
        print(act(client))


@app.command
def status(
    *,
    json: AsJson = False,
    watch: Annotated[
        bool, Parameter(name=["--watch", "-w"], negative="", help="Again and again, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, Parameter(help="Seconds between two looks of --watch.", validator=Number(gte=0.1))
    ] = 2.0,
    runtime_dir: RuntimeDir = None,
) -> None:
    """What the server and its workers are doing."""
    with AdminClient(_runtime_dir(runtime_dir)) as client:
        if watch:
            _watch(client, interval, json=json)
        elif json:
            print(msgspec.json.format(client.status_json(), indent=2).decode())
        else:
            _console().print(report.status_view(client.status()))


def _watch(client: AdminClient, interval_s: float, *, json: bool) -> None:
    """Until interrupted or the server goes: one picture in place, or one after the other."""
    console = _console()
    in_place = console.is_terminal and not json
    with console.screen() if in_place else contextlib.nullcontext():
        while True:
            if json:
                print(client.status_json().decode(), flush=True)
            else:
                view = report.status_view(client.status())
                if in_place:
                    console.clear()
                console.print(view)
                sys.stdout.flush()
            time.sleep(interval_s)


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
        int, Parameter(help="How many workers there are to be.", validator=Number(gte=1, lte=1024))
    ],
    /,
    *,
    wait: Wait = True,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Start more workers, or drain and remove those with the highest numbers."""
    _command(runtime_dir, lambda client: client.scale(workers, wait=wait))


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
            validator=Number(gte=0),
        ),
    ] = None,
    worker: Annotated[
        int | None,
        Parameter(help="Only this worker's.", show_default=False, validator=Number(gte=0)),
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
    """The event log."""
    after = None if since is None else moment(since, time.time())
    if backlog is None:
        backlog = BACKLOG if since is None else ALL_EVENTS
    console = _console()
    with AdminClient(_runtime_dir(runtime_dir)) as client:
        found = client.events(
            backlog=backlog, follow=follow, worker=worker, level=level, since=after
        )
        for event in found:
            if json:
                print(msgspec.json.encode(event).decode(), flush=follow)
            else:
                console.print(report.event_line(event), soft_wrap=True)


BACKLOG = 100
ALL_EVENTS = 1000
"""The server keeps so many."""

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


# --- other commands ---------------------------------------------------------------------


@app.command
def chat(
    *,
    url: Annotated[
        str | None,
        Parameter(help="The server; default: the one on the runtime dir.", show_default=False),
    ] = None,
    system: Annotated[
        str | None, Parameter(help="What the model is told first.", show_default=False)
    ] = None,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Talk with the model in this terminal.

    Ctrl-C stops an answer, Ctrl-D ends. Without a terminal every line of the input is a message.
    LBHOST_API_KEY holds the key, if the server asks for one.
    """
    from lbhost.conversation import Conversation, talk

    if url is None:
        with AdminClient(_runtime_dir(runtime_dir)) as client:
            url = client.status().endpoint
    elif not re.match("https?://[^/]", url):
        raise UsageError(f"--url: expected something like http://127.0.0.1:8080, got {url!r}")
    key = config.load({}, os.environ).api_key
    with Conversation(url, key=key, system=system) as conversation:
        talk(conversation, interactive=sys.stdin.isatty())


@app.command
def tui(
    *,
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
    runtime_dir: RuntimeDir = None,
) -> int:
    """The dashboard of a running server."""
    where = _runtime_dir(runtime_dir)
    return _dashboard()(where, export_svg=export_svg, settle_s=settle)


def _dashboard() -> Callable[..., int]:
    # By entry point: lbhost does not depend on its dashboard, and starts faster without.
    found = next(iter(entry_points(group=DASHBOARDS)), None)
    if found is None:
        raise LbhostError("no dashboard is installed: install lbhost again")
    try:
        run_dashboard: Callable[..., int] = found.load()
    except (ImportError, AttributeError) as error:
        raise LbhostError(f"the dashboard {found.value} cannot be loaded: {error}") from error
    return run_dashboard


@app.command
def tune(
    model: Annotated[str | None, Parameter(help="As for serve.", show_default=False)] = None,
    /,
    *,
    max_kl: Annotated[
        float,
        Parameter(
            help="Most that other weights may lose: KL divergence in nats a token.",
            validator=Number(gte=0, lte=10),
        ),
    ] = 0.01,
    forget: Annotated[
        bool, Parameter(negative="", help="Remove what was chosen for the model.")
    ] = False,
    json: AsJson = False,
    file: Annotated[
        str | None, Parameter(name="--config", help="Settings from here.", show_default=False)
    ] = None,
) -> None:
    """Measure what suits a model on this box, and have `serve` use it: a minute or two.

    Tries weight formats (none that loses more than --max-kl), workers x threads, and flash
    attention. Best while nothing else runs here.
    """
    from lbhost.supervisor.launcher import environment, with_huge_pages
    from lbhost.tuning import command, table, tuned

    flags = {} if model is None else {"model": model}
    settings = config.load(flags, os.environ, Path(file) if file else None)
    if forget:
        count = command.forget(settings, os.environ)
        print("forgotten" if count else "nothing was chosen for this model")
        return
    asked = command.plan(settings, os.environ, max_kl)
    print(table.announcement(asked, str(tuned.folder(os.environ))), file=sys.stderr)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("starting", total=1.0)
        choice = command.run(
            asked,
            os.environ,
            with_huge_pages(environment(os.environ)),
            lambda part, what: bar.update(task, completed=part, description=what),
        )
    if json:
        print(table.as_json(choice))
    else:
        _console().print(table.view(choice))


@app.command
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="For which shell.")], /
) -> None:
    """Print what completes lbhost's words in a shell: `source <(lbhost completion bash)`."""
    print(app.generate_completion(prog_name="lbhost", shell=shell))


@app.command
def doctor(
    *,
    json: AsJson = False,
    file: Annotated[
        str | None, Parameter(name="--config", help="Settings from here.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, Parameter(help="Judge for this model.", show_default=False)
    ] = None,
    runtime_dir: RuntimeDir = None,
) -> int:
    """What this box offers, what `serve` would start on it, and what is worth fixing."""
    from lbhost.doctor import checkup

    given = {"model": model, "runtime_dir": runtime_dir}
    flags = {key: value for key, value in given.items() if value is not None}
    settings = config.load(flags, os.environ, Path(file) if file else None)
    found = checkup.examine(settings, os.environ)
    print(checkup.as_json(found) if json else checkup.as_text(found).rstrip())
    return 0 if found.ok else 1
