"""Other values for lbhost's constants, for as long as this process lives: to find the best ones."""

from __future__ import annotations

import importlib
import re

_SETTING = re.compile(r"(?P<module>[a-z_.]+)\.(?P<name>_?[A-Z][A-Z0-9_]*)=(?P<value>[-+.e0-9]+)")


def apply(setting: str) -> None:
    """Set one, given as `gateway.scheduling.policy.LONG_PROMPT=1024`.

    Raises:
        ValueError: there is no such number in lbhost, or the value is none of its kind.
    """
    found = _SETTING.fullmatch(setting)
    if found is None:
        raise ValueError(f"{setting!r} is not like worker.batch.MIN_CHUNK=32")
    try:
        module = importlib.import_module(f"lbhost.{found['module']}")
    except ImportError as error:
        raise ValueError(f"there is no module lbhost.{found['module']}") from error
    before = getattr(module, found["name"], None)
    if isinstance(before, bool) or not isinstance(before, int | float):
        raise ValueError(f"lbhost.{found['module']} has no number {found['name']}")
    setattr(module, found["name"], type(before)(found["value"]))
