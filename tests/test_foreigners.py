"""What the sampler takes for strangers' use of the CPUs: nothing that the server itself uses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import trees
from lbhost.linux import children, ran_on
from sampled_box import Box


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Box]:
    box = Box(trees.intel_desktop(tmp_path / "box"))
    yield box
    box.sampler.close()


def test_what_the_servers_other_processes_use_is_no_strangers(desktop: Box) -> None:
    desktop.watch(0, 0)
    desktop.runs(7, cpu=1, used_s=0.0)
    desktop.step(times=2)
    for turn in range(1, 9):  # a gateway on core 1, beside a program that takes a fifth of it
        desktop.runs(7, cpu=1, used_s=0.1 * turn)
        desktop.step({1: (15, 0, 0)})
    core = desktop.core(1)
    assert core.others == pytest.approx(0.6)
    assert 0.1 < (core.foreign or 0.0) <= 0.2
    assert (core.lasting or 0.0) > 0.5
    assert desktop.core(0).foreign == pytest.approx(0.0)


def test_nor_is_what_they_start(desktop: Box) -> None:
    desktop.runs(7, cpu=1, used_s=3.0)
    desktop.step(times=2)
    desktop.runs(8, cpu=2, used_s=0.25, under=7)  # a prompt helper that has just come
    desktop.step({2: (25, 0, 0)})
    desktop.runs(8, cpu=2, used_s=0.5)
    desktop.step({2: (25, 0, 0)})
    assert desktop.core(2).others == pytest.approx(1.0)
    assert desktop.core(2).foreign == pytest.approx(0.0)


def test_a_process_that_is_said_to_run_elsewhere_now_and_then_evens_out(desktop: Box) -> None:
    desktop.runs(7, cpu=1, used_s=0.0)
    desktop.step(times=2)
    seen = []
    for turn in range(1, 25):  # half of the time on either core, seen on one of them
        desktop.runs(7, cpu=turn % 2, used_s=0.2 * turn)
        desktop.step({0: (10, 0, 0), 1: (10, 0, 0)})
        seen += [desktop.core(0).foreign or 0.0, desktop.core(1).foreign or 0.0]
    assert max(seen) < 0.2


def test_once_foreigners_are_forgotten_only_those_that_go_on_are_believed_in(
    desktop: Box,
) -> None:
    desktop.step({0: (25, 0, 0), 1: (25, 0, 0)}, times=12)
    before = desktop.core(0)
    assert before.foreign == pytest.approx(1.0)
    desktop.sampler.forget_foreigners()
    assert desktop.core(0) == msgspec.structs.replace(before, foreign=0.0)
    desktop.step({1: (25, 0, 0)})
    assert desktop.core(0).foreign == pytest.approx(0.0)
    assert (desktop.core(0).lasting or 0.0) > 0.7  # what the router believes is as it was
    assert 0.0 < (desktop.core(1).foreign or 0.0) < 0.35  # somebody who starts, or who stays
    desktop.step({1: (25, 0, 0)})
    assert (desktop.core(1).foreign or 0.0) > 0.35


def test_a_process_tells_where_it_ran_and_what_it_has_started() -> None:
    pid = os.getpid()
    assert ran_on(pid) in range(os.cpu_count() or 1)
    assert ran_on(2**22 + 1) is None
    assert children(2**22 + 1) == []
    if Path(f"/proc/{pid}/task/{pid}/children").exists():  # not every kernel tells
        with subprocess.Popen(["sleep", "600"]) as one:
            started = children(pid)
            one.kill()
        assert one.pid in started
