"""The application that every command joins, and what commands share."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, get_args

from cyclopts import App, Parameter, Token
from rich.console import Console

from lbhost import __version__, setting_sources
from lbhost.errors import LbhostError
from lbhost.folders import default_runtime_dir

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
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="JSON instead of text.")]
ConfigFile = Annotated[
    str | None, Parameter(name="--config", help="Settings from here.", show_default=False)
]
DASHBOARDS = "lbhost.dashboard"
"""The entry points under which a dashboard offers itself."""


def where(given: str | None) -> Path:
    """The runtime dir that a command is about."""
    flags = {} if given is None else {"runtime_dir": given}
    settings = setting_sources.load(flags, os.environ)
    return Path(settings.runtime_dir or default_runtime_dir(os.environ))


def whole(kind: object, tokens: Sequence[Token]) -> int | str:
    """Of a parameter: a number without a fraction, which cyclopts would round; or `auto`, where
    the type has that.

    Raises:
        ValueError: something else.
    """
    words = [word for one in get_args(kind) for word in get_args(one)]
    given = tokens[0].value
    if given in words:
        return given
    if re.fullmatch(r"[+-]?\d{1,18}", given, re.ASCII):
        return int(given)
    raise ValueError(" or ".join(["expected a whole number", *words]) + f", got {given!r}")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """As for whatever else prints: see `run`."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console() -> Console:
    """Tables and colours as the terminal takes them; 80 columns and no colour in a pipe."""
    return _Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def dashboard() -> Callable[..., int]:
    """The installed dashboard. Raises LbhostError if there is none."""
    # By entry point: lbhost does not depend on its dashboard, and starts faster without.
    found = next(iter(entry_points(group=DASHBOARDS)), None)
    if found is None:
        raise LbhostError("no dashboard is installed: install lbhost again")
    try:
        run_dashboard: Callable[..., int] = found.load()
    except (ImportError, AttributeError) as error:
        raise LbhostError(f"the dashboard {found.value} cannot be loaded: {error}") from error
    return run_dashboard
