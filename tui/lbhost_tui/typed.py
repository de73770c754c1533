"""What is typed in full after `:`, in the words of the CLI: `scale 2 --model chat`. Pure.

Only what no list could hold: numbers, and options. The rest is offered by commands.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lbhost.status import Status
from lbhost_tui import actions
from lbhost_tui.actions import Action

MOST_WORKERS = 1024


def plain(query: str) -> str:
    """What was typed, without what a shell or an editor would have before it, and in lower case."""
    words = query.lower().removeprefix(":").split()
    return " ".join(words[1:] if words[:1] == ["lbhost"] else words)


def order(query: str, status: Status) -> Action | None:
    """The order that this is; None if it is none, or not yet.

    Args:
        query: as `plain` makes it.
    """
    verb, *words = query.split() or [""]
    if verb == "scale":
        return _scale(words, status)
    if verb == "drain":
        return _drain(words, status)
    return None


def _scale(words: Sequence[str], status: Status) -> Action | None:
    """`scale N|auto [--model NAME]`, and `scale NAME N|auto` for short."""
    left, options = _options(words, {"--model"})
    named = options.get("--model")
    if named is None and len(left) > 1:
        *name, count = left
        named = " ".join(name)
    elif len(left) == 1:
        count = left[0]
    else:
        return None
    names = {alias.lower(): m.name for m in status.models for alias in (*m.aliases, m.name)}
    model = None if named is None else names.get(named)
    several = len(status.models) > 1
    if (model is None) is (several or named is not None):
        return None  # which one is meant has to be said where there are several
    if not several:
        model = None
    if count == "auto":
        return actions.scale_auto(model)
    if not re.fullmatch(r"[0-9]{1,4}", count) or int(count) > MOST_WORKERS:
        return None
    return actions.scale_to(status, int(count), model)


def _drain(words: Sequence[str], status: Status) -> Action | None:
    """`drain ID --timeout S`."""
    left, options = _options(words, {"--timeout"})
    timeout = options.get("--timeout")
    worker = next((w for w in status.workers if [str(w.id)] == left), None)
    if worker is None or timeout is None or not re.fullmatch(r"[0-9]{1,5}", timeout):
        return None
    return actions.drain(status, worker, int(timeout))


def _options(words: Sequence[str], known: set[str]) -> tuple[list[str], Mapping[str, str]]:
    """The words that are no option, and the options' values: `--model chat` or `--model=chat`."""
    left: list[str] = []
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, sign, value = word.partition("=")
        if name in known and (sign or rest):
            found[name] = value if sign else rest.pop(0)
        else:
            left.append(word)
    return left, found
