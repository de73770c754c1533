"""The `lbhost` command: turns words into settings and commands, and errors into one line.

Exit codes: 0 when what was asked has happened, 1 when it has not, 2 for wrong usage or a
model file that is broken.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

import cyclopts

from lbhost.cli import (  # noqa: F401 - their commands join the app
    embed,
    keys,
    machine,
    operate,
    serve,
    talk,
)
from lbhost.cli.app import app
from lbhost.errors import LbhostError, ModelDamagedError, UsageError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    _settle_output()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def _settle_output() -> None:
    """Printing never fails for want of an output, nor of a character in the terminal's encoding."""
    if sys.stdout is None:  # closed, as `>&-` does
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # stderr has backslashes for that


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors go to stderr, one line each."""
    try:
        result = app(list(argv))
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        error.verbose = False
        return _fail(_usage(error), 2)
    except LbhostError as error:
        return _fail(error.message, 2 if isinstance(error, UsageError | ModelDamagedError) else 1)
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
