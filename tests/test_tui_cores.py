"""The dashboard's strip of cores: a bar each, in the colour of whose work it is."""

from __future__ import annotations

from typing import Any

import pytest

from lbhost.status import CoreStatus
from lbhost_tui import cores
from lbhost_tui.cores import Histories
from lbhost_tui.paint import Parts, Role, hue, width_of


def core(
    cpu: int, idle: float | None = 0.5, others: float | None = 0.25, **more: Any
) -> CoreStatus:
    return CoreStatus(cpu=cpu, idle=idle, others=others, **more)


def plain(parts: Parts) -> str:
    return "".join(text for text, _ in parts)


def test_a_bar_tells_own_work_others_and_idle_apart_without_colours() -> None:
    assert plain(cores.bar(core(0), 8)) == "━━╍╍────"
    assert plain(cores.bar(core(0, 0.0, 0.0), 4)) == "━━━━"
    assert plain(cores.bar(core(0, 0.0, 1.0), 4)) == "╍╍╍╍"
    assert plain(cores.bar(core(0, None, None), 4)) == "    "


def test_a_lent_core_has_its_borrowers_colour_and_says_so() -> None:
    lent = core(3, worker=3, lent_to=1)
    assert cores.colour(lent) is hue(1)
    assert cores.colour(core(3, worker=3)) is hue(3)
    assert cores.colour(core(3)) is Role.BAR
    (line,) = cores.lines([lent], {}, 0.0, 40)
    assert "3→w1" in plain(line)


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 16, 64, 256])
def test_any_number_of_cores_fits_any_width(width: int, count: int) -> None:
    many = [core(cpu, worker=cpu) for cpu in range(count)]
    lines = cores.lines(many, {}, 0.0, width)
    assert cores.rows(count, width) == len(lines[: cores.MOST_ROWS])
    assert all(width_of(line) <= width for line in lines)
    assert cores.rows(0, width) == 0


def test_a_wide_strip_shows_the_last_two_minutes_in_the_colour_of_whose_work_it_was() -> None:
    history = Histories()
    for second in range(0, 60, 2):
        history.add(float(second), core(0, 0.1, 0.0))
    for second in range(60, 120, 2):
        history.add(float(second), core(0, 0.1, 0.8))
    parts = history.parts(119.0, 12, hue(0))
    assert {role for _, role in parts[:5]} == {hue(0)}
    assert {role for _, role in parts[-5:]} == {Role.WARN}
    (line,) = cores.lines([core(0, worker=0)], {0: history}, 119.0, 80)
    assert plain(line).count("▇") > 10
