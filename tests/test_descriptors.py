"""How many descriptors connections and KV states may have."""

from __future__ import annotations

import resource

import pytest

from lbhost.gateway.http import descriptors


def test_connections_leave_descriptors_for_the_rest() -> None:
    assert descriptors.room(1024, 64) == 16
    assert descriptors.room(1024, 20) == descriptors.FEWEST
    assert descriptors.room(1024, 20_000) == 1024
    assert descriptors.room(1024, resource.RLIM_INFINITY) == 1024


def test_states_get_the_descriptors_that_connections_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {resource.RLIMIT_NOFILE: (300, 1000)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    assert descriptors.states_within(100, 200) == 100
    assert limits[resource.RLIMIT_NOFILE][0] > 300
    assert descriptors.states_within(100, 850) == 1000 - 850 - 2 * descriptors.RESERVED
    assert descriptors.states_within(100, 5000) == descriptors.FEWEST
