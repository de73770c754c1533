"""The dashboard in any of Textual's themes: their colours for our roles, and names for our own."""

from __future__ import annotations

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

from lbhost_tui.paint import ANSI, ANSI_THEME, RICH, RICH_THEME, Palette, Role

OURS = {RICH_THEME.name: RICH, ANSI_THEME.name: ANSI}
VARIABLES = {"line": "#5a6470", "faint": "#788594", "head": "#1b1e22"}
"""What our style sheet uses beyond Textual's own names, where a theme says nothing of it."""


def variables(theme: Theme) -> dict[str, str]:
    """The same, fitting to a theme that is not ours."""
    if theme.ansi:
        return {name: ANSI_THEME.variables[name] for name in VARIABLES}
    text, ground = _colours(theme)
    return {
        "line": ground.blend(text, 0.25).hex6,
        "faint": ground.blend(text, 0.6).hex6,
        "head": ground.blend(text, 0.06).hex6,
    }


def palette(theme: Theme) -> Palette:
    """The styles of all roles under a theme."""
    ours = OURS.get(theme.name)
    if ours is not None:
        return ours
    if theme.ansi:
        return ANSI
    text, ground = _colours(theme)
    primary = Color.parse(theme.primary)
    accent = Color.parse(theme.accent or theme.primary)
    second = Color.parse(theme.secondary or theme.primary)
    good, warn, bad = (
        Color.parse(given or usual)
        for given, usual in (
            (theme.success, "#86bf8f"),
            (theme.warning, "#dfb066"),
            (theme.error, "#ec7f84"),
        )
    )
    dim = ground.blend(text, 0.6)
    colours = {
        Role.TEXT: text,
        Role.STRONG: text,
        Role.DIM: dim,
        Role.TITLE: dim,
        Role.KEY: accent,
        Role.GOOD: good,
        Role.BUSY: second,
        Role.WARN: warn,
        Role.BAD: bad,
        Role.BAR: primary,
        Role.TRACK: ground.blend(text, 0.2),
        Role.SPARK: primary,
        Role.HUE0: primary,
        Role.HUE1: accent if accent != primary else second,
        Role.HUE2: second,
        Role.HUE3: primary.blend(bad, 0.5),
        Role.HUE4: primary.blend(good, 0.5),
        Role.HUE5: accent.blend(text, 0.4),
    }
    bold = {Role.STRONG, Role.KEY, Role.BAD}
    return Palette(
        styles={
            role: Style(color=colour.rich_color, bold=True if role in bold else None)
            for role, colour in colours.items()
        },
        selected=Style(bgcolor=ground.blend(text, 0.12).rich_color),
        stale=Style(color=ground.blend(text, 0.4).rich_color, bold=False),
    )


def _colours(theme: Theme) -> tuple[Color, Color]:
    """Text and background. A theme that names neither gets Textual's usual ones."""
    made = theme.to_color_system().generate()
    ground = Color.parse(theme.background or made["background"])
    return Color.parse(theme.foreground or ground.inverse.hex6), ground
