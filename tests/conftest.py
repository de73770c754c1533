"""Fixtures that every test file shares."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The gateway and the TUI run on asyncio, and so do their tests."""
    return "asyncio"
