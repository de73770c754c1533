"""The types that settings share, and how one value becomes its setting's type. Pure.

config.py and model_entry.py are made of it; knows no setting.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from lbhost.errors import UsageError


def says(text: str) -> Meta:
    """What `--help` says of a setting. No docstring: those are gone under `python -OO`."""
    return Meta(description=text)


Names: TypeAlias = str | tuple[str, ...]
"""Several words: a list in lbhost.toml, or comma-separated. See `names`."""

Count = Annotated[int, Meta(ge=1, le=1024)]
Seconds = Annotated[float, Meta(ge=0.001, le=86400)]

_COUNTS_OR_AUTO = frozenset({"workers"})


def names(given: Names) -> tuple[str, ...]:
    """The single ones, as they are written, each once."""
    listed = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(word.strip() for word in listed if word.strip()))


def words(given: Names) -> frozenset[str]:
    """The single ones, in lower case; a slash at the end does not count."""
    return frozenset(word.lower().rstrip("/") for word in names(given))


LONGEST_NAME = 256
"""Of a model, in characters."""


def require_name(name: str, what: str) -> None:
    """Raises ValueError unless a model may be called so: a name is shown in terminals and logs, and
    clients have to be able to write it."""
    if not name.isprintable() or name != name.strip() or len(name) > LONGEST_NAME:
        may = f"printable characters, at most {LONGEST_NAME}, no spaces around them"
        raise ValueError(f"{what}: expected {may}, got {shown(name)}")


def shown(value: object) -> str:
    """The value as a refusal shows it: not all of a very long one."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def size(key: str, text: str, other: str = "") -> int:
    """ "512M" is 512 MiB. Raises ValueError; `other` is what else the setting may be."""
    found = re.fullmatch(r"(\d{1,15})\s*([kmgt]?)(i?b)?", text.strip().lower())
    if found is None:
        raise ValueError(f"{key} is {other}a size such as 512M or 2G, not {text!r}")
    return int(found[1]) << 10 * " kmgt".index(found[2] or " ")


def nearest(word: str, known: Iterable[str], spelt: Callable[[str], str] = str) -> str:
    """ " Did you mean X?" for an error message, or nothing.

    Args:
        spelt: how one of them is written where the word comes from.
    """
    close = difflib.get_close_matches(word, tuple(known), n=1, cutoff=0.5)
    return f"; did you mean {spelt(close[0])!r}?" if close else ""


def checked(
    key: str,
    value: Any,
    hints: Mapping[str, Any],
    where: str,
    *,
    secret: bool = False,
    spelt: Callable[[str], str] = str,
) -> Any:
    """The value in its field's type.

    Args:
        hints: the types of all fields by key.
        where: what the refusal names.
        secret: whether no message may hold the value.
        spelt: how a key is written where this one comes from.

    Raises:
        UsageError: unknown key, wrong type or range.
    """
    if key not in hints:
        raise UsageError(f"{where}: unknown key{nearest(key, hints, spelt)}")
    try:
        if key in _COUNTS_OR_AUTO:
            # As a number first: to `int | str` the text "3" is a good text.
            return value if value in ("auto", None) else msgspec.convert(value, Count, strict=False)
        found = msgspec.convert(value, hints[key], strict=False)
        if isinstance(found, str | tuple) and any("\0" in str(one) for one in found):
            raise msgspec.ValidationError("Expected text without zero characters")
        return found
    except msgspec.ValidationError as error:
        reason = _reason(key, hints[key], error)
        got = "got something else (not shown: it is a secret)" if secret else f"got {shown(value)}"
        raise UsageError(f"{where}: {reason}, {got}") from None


def _reason(key: str, hint: Any, error: msgspec.ValidationError) -> str:
    kind = getattr(hint, "__origin__", hint)  # without what Annotated adds
    choices = kind if isinstance(kind, type) else next(iter(getattr(kind, "__args__", ())), None)
    if isinstance(choices, type) and issubclass(choices, enum.Enum):
        return "expected one of " + ", ".join(str(choice.value) for choice in choices)
    words = str(error).partition(", got ")[0].replace("`", "")
    words = words.replace("Expected", "expected").replace("float", "number")
    return f"{words} or 'auto'" if key in _COUNTS_OR_AUTO else words
