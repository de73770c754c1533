"""What some settings let one choose from."""

from __future__ import annotations

import enum


class Policy(enum.StrEnum):
    """How the gateway picks a worker. See gateway/scheduling/policy.py."""

    COST = "cost"
    ROUND_ROBIN = "round-robin"
    LEAST_CONNECTIONS = "least-connections"
    RANDOM_TWO = "random-two"
    IDLE_CPU = "idle-cpu"


class FlashAttention(enum.StrEnum):
    """`auto` is on where it pays with this build of llama.cpp, or what `lbhost tune` found."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogFormat(enum.StrEnum):
    """`auto` is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogLevel(enum.StrEnum):
    """Least severe level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
