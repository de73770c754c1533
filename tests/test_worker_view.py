"""A worker as a request with a LoRA adapter sees it."""

from __future__ import annotations

import msgspec
import pytest

from lbhost.choices import Policy
from lbhost.gateway.scheduling.policy import ASSUMED_SPEEDS, predict
from lbhost.gateway.scheduling.worker_view import seen_with
from test_policy import SHORT, picks, view


def test_a_request_goes_to_the_worker_that_computes_with_its_adapter() -> None:
    own = msgspec.structs.replace(view(0, in_flight=1), adapters=(1,))
    other = msgspec.structs.replace(view(1, in_flight=1), adapters=(2,))
    for adapter, best in ((1, 0), (2, 1)):
        seen = [seen_with(one, adapter) for one in (own, other)]
        assert picks(Policy.COST, seen) == {best}
    idle = [seen_with(one, 1) for one in (own, view(1))]
    assert picks(Policy.COST, idle) == {1}, "an idle one is nobody's"


def test_of_idle_workers_that_are_alike_the_one_with_the_adapter_gets_it() -> None:
    views = [msgspec.structs.replace(view(i), newest_adapter=i) for i in range(3)]
    for adapter in range(3):
        assert picks(Policy.COST, [seen_with(one, adapter) for one in views]) == {adapter}
    assert picks(Policy.COST, [seen_with(one, 3) for one in views]) == {0, 1, 2}


def test_adapters_that_take_turns_take_so_many_times_as_long() -> None:
    """Each has its part of the time, and the steps in it carry its own requests alone."""
    prefills, whose = (100, 200, 300), (1, 2, 1)
    mixed = msgspec.structs.replace(
        view(in_flight=3, prefills=prefills), adapters=(1, 2, 1), prefill_adapters=whose
    )
    seen = seen_with(mixed, 1)
    assert (seen.prefills, seen.beside, seen.takers) == ((100, 300), 1, 2)
    alone = view(in_flight=2, prefills=(100, 300))
    twice = 2 * predict(SHORT, alone, ASSUMED_SPEEDS)
    assert predict(SHORT, seen, ASSUMED_SPEEDS) == pytest.approx(twice)
    assert seen.loaded
    assert (seen_with(mixed, 3).takers, seen_with(mixed, 3).loaded) == (3, False)
    plain = view(in_flight=2, prefills=(100,))
    beside = seen_with(plain, 1)
    assert (beside.prefills, beside.beside, beside.takers) == ((), 2, 2)
    assert seen_with(mixed, 0).prefills == ()


def test_a_full_worker_is_full_whatever_its_requests_adapters() -> None:
    full = msgspec.structs.replace(view(in_flight=4), adapters=(1, 1, 2, 2))
    assert picks(Policy.COST, [seen_with(full, 3)]) == {None}


def test_without_adapters_a_view_is_as_it_was() -> None:
    one = view(in_flight=2, prefills=(5,))
    assert seen_with(one, 0) is one
