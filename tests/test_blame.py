"""Whether a worker's work may have ended it."""

from __future__ import annotations

import pytest

from lbhost.supervisor.blame import by_its_work


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "exit code 1"])
def test_a_crash_may_be_the_works(how: str) -> None:
    assert by_its_work(how, asked=False, found_hung=False, stopped=False)
    assert not by_its_work(how, asked=True, found_hung=False, stopped=False)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "signal 64"])
def test_what_others_do_is_not(how: str) -> None:
    assert not by_its_work(how, asked=False, found_hung=False, stopped=False)


def test_a_hang_may_be_the_works_unless_somebody_stopped_the_process() -> None:
    assert by_its_work("SIGKILL", asked=False, found_hung=True, stopped=False)
    assert not by_its_work("SIGKILL", asked=False, found_hung=True, stopped=True)
