"""The trial of the AMX kernels: its child's death is an answer, not an accident."""

from __future__ import annotations

import os
import signal

import pytest

from lbhost import amx


def test_kernels_that_crash_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "_multiply", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert not amx._survives_trial()


def test_kernels_that_work_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "_multiply", lambda: None)
    assert amx._survives_trial()


def test_without_amx_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial() -> bool:
        raise AssertionError("tried")

    monkeypatch.setattr(amx, "_survives_trial", trial)
    monkeypatch.setattr(amx, "_has_amx", lambda: False)
    amx.settle.cache_clear()
    amx.settle()
    amx.settle.cache_clear()
