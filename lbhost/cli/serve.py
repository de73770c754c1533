"""`lbhost serve`, with flags that are generated from config.Settings: none is repeated here."""

from __future__ import annotations

import enum
import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from lbhost import config, report
from lbhost.cli.app import app, dashboard
from lbhost.config import Settings
from lbhost.source import Source

_UNITS = {"_s": "SECONDS", "_ms": "MS", "_c": "CELSIUS", "_bytes": "BYTES"}

_NUMBERS = {"ctx_size", "max_workers", "min_workers", "queue_tokens", "threads_per_worker"}
"""Settings that are numbers although their default is none."""


def _metavar(field: msgspec.structs.FieldInfo) -> str:
    """What a flag takes: its choices, its unit, or N or TEXT."""
    if field.name == "adapters":
        return "NAME=PATH[:SCALE]"
    if isinstance(field.default, enum.Enum):
        return "|".join(choice.value for choice in type(field.default))
    unit = next((word for end, word in _UNITS.items() if field.name.endswith(end)), None)
    number = isinstance(field.default, int) or field.name in _NUMBERS
    return unit or ("N" if number else "TEXT")


def _serve(**given: Any) -> int:
    file, with_tui = given.pop("config", None), given.pop("tui", False)
    flags = {key: value for key, value in given.items() if value is not None}
    source = Source(flags, dict(os.environ), Path(file).absolute() if file else None)
    settings = source.load()
    if with_tui or os.environ.get("LBHOST_TUI", "0") not in {"", "0", "false", "no"}:
        from lbhost import cockpit

        return cockpit.run(settings, source.arguments(), dashboard=dashboard())
    from lbhost import stream
    from lbhost.supervisor import succession
    from lbhost.supervisor.main import serve

    stream.protect()
    try:
        announce = lambda status: print(report.banner(status), flush=True)  # noqa: E731
        serve(settings, os.environ, announce, source, succession.inherited(os.environ))
    except KeyboardInterrupt:  # told to stop before it served
        return 0
    return 0


def _add_serve() -> None:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for field in msgspec.structs.fields(Settings):
        if field.name not in config.FLAGS:
            continue
        switch = isinstance(field.default, bool)
        shown = ("yes" if field.default else "no") if switch else field.default
        default = "" if field.default in (None, ()) else f" [default: {shown}]"
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
