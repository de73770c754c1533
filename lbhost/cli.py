"""The `lbhost` command: turns words into settings and commands, and errors into one line.

Exit codes: 0 when what was asked has happened, 1 when it has not, 2 for wrong usage. The
flags of `serve` are generated from config.Settings; nothing about them is repeated here.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import cyclopts
import msgspec
from cyclopts import App, Parameter

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
WorkerId = Annotated[int, Parameter(help="The worker's number.")]


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


def _field_docs() -> dict[str, str]:
    """The docstring under each field of Settings, which is the flag's help."""
    source = inspect.getsource(Settings)
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


_UNITS = {"_s": "SECONDS", "_ms": "MS", "_c": "CELSIUS", "_bytes": "BYTES"}


def _metavar(field: msgspec.structs.FieldInfo) -> str:
    """What a flag takes: its choices, its unit, or N or TEXT."""
    if isinstance(field.default, enum.Enum):
        return "|".join(choice.value for choice in type(field.default))
    unit = next((word for end, word in _UNITS.items() if field.name.endswith(end)), None)
    number = isinstance(field.default, int) or field.name == "ctx_size"
    return unit or ("N" if number else "TEXT")


def _serve(**given: Any) -> int:
    file, with_tui = given.pop("config", None), given.pop("tui", False)
    flags = {key: value for key, value in given.items() if value is not None}
    settings = config.load(flags, os.environ, Path(file) if file else None)
    if with_tui or os.environ.get("LBHOST_TUI", "0") not in {"", "0", "false", "no"}:
        from lbhost import cockpit

        return cockpit.run(settings, _serve_arguments(flags, file), tui=_tui())
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
    arguments = [f"--{config.flag_name(key)}={value}" for key, value in flags.items()]
    return [*arguments, *([f"--config={file}"] if file else [])]


def _add_serve() -> None:
    docs = _field_docs()
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for field in msgspec.structs.fields(Settings):
        default = "" if field.default is None else f" [default: {field.default}]"
        flag = Parameter(
            name=f"--{config.flag_name(field.name)}",
            help=docs[field.name] + default,
            metavar=_metavar(field),
            show_default=False,
            allow_leading_hyphen=True,
        )
        hint = Annotated[str | None, flag]
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


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _command(runtime_dir: str | None, act: Callable[[AdminClient], str]) -> None:
    with AdminClient(_runtime_dir(runtime_dir)) as client:
        print(act(client))


@app.command
def status(*, json: AsJson = False, runtime_dir: RuntimeDir = None) -> None:
    """What the server and its workers are doing."""
    with AdminClient(_runtime_dir(runtime_dir)) as client:
        if json:
            answer = client.status_json()
            print(msgspec.json.format(answer, indent=2).decode())
        else:
            print(report.status_table(client.status(), colour=_colour()))


@app.command
def drain(
    worker: WorkerId,
    /,
    *,
    timeout: Annotated[
        float | None,
        Parameter(help="Seconds after which its requests are cut off.", show_default=False),
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
    workers: Annotated[int, Parameter(help="How many workers there are to be.")],
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
    backlog: Annotated[int, Parameter(help="How many past events.")] = 100,
    json: AsJson = False,
    runtime_dir: RuntimeDir = None,
) -> None:
    """The event log."""
    colour = _colour()
    with AdminClient(_runtime_dir(runtime_dir)) as client:
        for event in client.events(backlog=max(0, backlog), follow=follow):
            line = msgspec.json.encode(event).decode() if json else None
            print(line or report.event_line(event, colour=colour), flush=follow)


# --- other commands ---------------------------------------------------------------------


@app.command
def tui(
    *,
    export_svg: Annotated[
        Path | None, Parameter(help="Write the screen to this file and end.", show_default=False)
    ] = None,
    runtime_dir: RuntimeDir = None,
) -> int:
    """The dashboard of a running server."""
    return int(_tui()(_runtime_dir(runtime_dir), export_svg=export_svg))


def _tui() -> Callable[..., int]:
    # By name: lbhost does not depend on its dashboard, and starts faster without.
    try:
        module = importlib.import_module("lbhost_tui.app")
    except ImportError as error:
        raise LbhostError(f"the dashboard cannot be loaded: {error}") from error
    run_tui: Callable[..., int] = module.run
    return run_tui


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
) -> int:
    """What this box offers, what `serve` would start on it, and what is worth fixing."""
    from lbhost.doctor import checkup

    flags = {} if model is None else {"model": model}
    settings = config.load(flags, os.environ, Path(file) if file else None)
    found = checkup.examine(settings, os.environ)
    print(checkup.as_json(found) if json else checkup.as_text(found).rstrip())
    return 0 if found.ok else 1
