"""Finding special texts ("<|im_end|>") in a stranger's message, in one pass.

An alternation of 253 texts tries each of them wherever they begin alike; this is a tree of their
common beginnings, so that every position costs at most the length of the longest.

Pure. Knows neither tokens nor templates.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def pattern(texts: Collection[str]) -> re.Pattern[str] | None:
    """Matches the longest of the texts at each place; None when there are none."""
    wanted = sorted({text for text in texts if text})
    return re.compile(_branches(wanted, 0)) if wanted else None


def _branches(texts: list[str], start: int) -> str:
    """What follows the first `start` characters, which all of these sorted texts share."""
    end = _shared(texts, start)
    stem = re.escape(texts[0][start:end])
    ends_here = len(texts[0]) == end
    longer = texts[1:] if ends_here else texts
    if not longer:
        return stem
    groups: dict[str, list[str]] = {}
    for text in longer:
        groups.setdefault(text[end], []).append(text)
    inner = "|".join(_branches(group, end) for group in groups.values())
    return f"{stem}(?:{inner}){'?' if ends_here else ''}"


def _shared(texts: list[str], start: int) -> int:
    """How long the beginning is that the first and the last, and so all, have in common."""
    first, last = texts[0], texts[-1]
    end = start
    while end < len(first) and end < len(last) and first[end] == last[end]:
        end += 1
    return end
