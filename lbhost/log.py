"""Structured logs on stderr: readable on a terminal, JSON for machines.

Every process calls `configure` once. A log line never holds a prompt or an answer.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from lbhost.choices import LogFormat, LogLevel


def configure(form: LogFormat, level: LogLevel, process: str) -> None:
    """Set up structlog for this process; `process` names it in every line ("worker 0")."""
    as_text = form is LogFormat.TEXT or (form is LogFormat.AUTO and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        if as_text
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_text else "iso", utc=not as_text),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def get() -> Any:
    """A logger. `get().info("worker ready", worker=0)`."""
    return structlog.get_logger()
