"""How things are coloured: roles, the two palettes, and lines made of (text, role) parts.

Widgets say what a piece of text *is* (a warning, a bar, a title) and never which colour it
gets. Pure; draws nothing itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.theme import BUILTIN_THEMES, Theme


class Role(enum.Enum):
    """What a piece of text is."""

    TEXT = "text"
    STRONG = "strong"
    DIM = "dim"
    TITLE = "title"
    KEY = "key"
    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    BAR = "bar"
    TRACK = "track"
    SPARK = "spark"
    HUE0 = "hue0"
    HUE1 = "hue1"
    HUE2 = "hue2"
    HUE3 = "hue3"
    HUE4 = "hue4"
    HUE5 = "hue5"


_HUES = (Role.HUE0, Role.HUE1, Role.HUE2, Role.HUE3, Role.HUE4, Role.HUE5)


def hue(worker: int) -> Role:
    """The colour that a worker has wherever it is shown."""
    return _HUES[worker % len(_HUES)]


Part: TypeAlias = tuple[str, Role]
Parts: TypeAlias = tuple[Part, ...]


@dataclass
class Palette:
    """A style for each role, and what happens to a selected or outdated line.

    All widgets of a screen share one, so that another theme is another content of it.
    """

    styles: Mapping[Role, Style]
    selected: Style
    stale: Style

    def become(self, other: Palette) -> None:
        """Look like the other from now on."""
        self.styles, self.selected, self.stale = other.styles, other.selected, other.stale


def _rgb(**roles: str) -> dict[Role, Style]:
    return {Role[name.upper()]: Style.parse(style) for name, style in roles.items()}


RICH = Palette(
    styles=_rgb(
        text="#c5cdd6",
        strong="bold #eef2f6",
        dim="#788594",
        title="#788594",
        key="bold #8fb8de",
        good="#86bf8f",
        busy="#7cb7c9",
        warn="#dfb066",
        bad="bold #ec7f84",
        bar="#7fa6c4",
        track="#36424e",
        spark="#7fa6c4",
        hue0="#7fa6c4",
        hue1="#a992c9",
        hue2="#6fb3a5",
        hue3="#c98fae",
        hue4="#a3b86c",
        hue5="#8f9fd0",
    ),
    selected=Style.parse("on #2a2e33"),
    stale=Style.parse("not bold #566370"),
)
"""For terminals with 256 colours and more."""

ANSI = Palette(
    styles=_rgb(
        text="default",
        strong="bold default",
        dim="dim default",
        title="dim default",
        key="bold cyan",
        good="green",
        busy="cyan",
        warn="yellow",
        bad="bold red",
        bar="cyan",
        track="dim default",
        spark="cyan",
        hue0="cyan",
        hue1="magenta",
        hue2="blue",
        hue3="green",
        hue4="bright_cyan",
        hue5="bright_magenta",
    ),
    selected=Style.parse("bold"),
    stale=Style.parse("not bold dim default"),
)
"""For 16 colours and for none: the terminal's own, on its own background."""


RICH_THEME = Theme(
    name="lbhost",
    primary="#7fa6c4",
    secondary="#7cb7c9",
    accent="#8fb8de",
    success="#86bf8f",
    warning="#dfb066",
    error="#ec7f84",
    foreground="#c5cdd6",
    background="#121417",
    surface="#191c1f",
    panel="#212529",
    variables={"line": "#363c42", "faint": "#788594", "head": "#1b1e22"},
)

_ANSI_BASE = BUILTIN_THEMES["ansi-dark"]
ANSI_THEME = replace(
    _ANSI_BASE,
    name="lbhost-ansi",
    primary="ansi_cyan",
    accent="ansi_cyan",
    variables={
        **_ANSI_BASE.variables,
        "line": "ansi_bright_black",
        "faint": "ansi_default",
        "head": "ansi_default",
    },
)


def width_of(parts: Parts) -> int:
    """Terminal cells that the parts take."""
    return sum(cell_len(text) for text, _ in parts)


def fit(parts: Parts, width: int, *, right: bool = False) -> Parts:
    """The parts cut (with "…") or padded to exactly `width` cells."""
    total = width_of(parts)
    if total == width:
        return parts
    if total < width:
        pad: Part = (" " * (width - total), Role.TEXT)
        return (pad, *parts) if right else (*parts, pad)
    kept: list[Part] = []
    room = width - 1
    for text, role in parts:
        size = cell_len(text)
        if size > room:
            kept.append((set_cell_size(text, max(room, 0)).rstrip() + "…", role))
            break
        kept.append((text, role))
        room -= size
    return fit(tuple(kept), width, right=right) if width > 0 else ()


def crop(parts: Parts, start: int, width: int) -> Parts:
    """`width` cells of the line, from cell `start` on; blanks where it has ended."""
    out: list[Part] = []
    at = 0
    for text, role in parts:
        kept = ""
        for char in text:
            inside = max(0, min(at + cell_len(char), start + width) - max(at, start))
            kept += char if inside == cell_len(char) else " " * inside
            at += cell_len(char)
        if kept:
            out.append((kept, role))
    return fit(tuple(out), width)


def spread(left: Parts, right: Parts, width: int) -> Parts:
    """`left` at the left edge and `right` at the right one; `right` is kept whole."""
    room = width - width_of(right)
    if room < 1:
        return fit(right, width)
    return (*fit(left, room), *right)


def merge(parts: Parts) -> Parts:
    """The same line in as few parts as possible: blanks join their neighbours.

    Every part costs some 20 bytes of escape codes on the way to the terminal.
    """
    out: list[Part] = []
    for text, role in parts:
        if not text:
            continue
        if out and (role is out[-1][1] or text.isspace()):
            out[-1] = (out[-1][0] + text, out[-1][1])
        elif out and out[-1][0].isspace():
            out[-1] = (out[-1][0] + text, role)
        else:
            out.append((text, role))
    return tuple(out)


def strip(
    parts: Parts, palette: Palette, base: Style, *, selected: bool = False, stale: bool = False
) -> Strip:
    """The parts as a line that Textual can show, on the background of `base`."""
    if selected:
        base = base + palette.selected
    if stale:
        text = "".join(text for text, _ in parts)
        return Strip([Segment(text, base + palette.stale)])
    styles = palette.styles
    return Strip([Segment(text, base + styles[role]) for text, role in merge(parts)])


def join(groups: Sequence[Parts], gap: int) -> Parts:
    """The groups in one line, `gap` blanks apart."""
    out: list[Part] = []
    for group in groups:
        if out:
            out.append((" " * gap, Role.TEXT))
        out.extend(group)
    return tuple(out)
