"""Token buckets and what an API key is charged, by a clock that the tests move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.errors import (
    LbhostError,
    ModelNotAllowedError,
    OverLimitError,
    OverTokenLimitError,
    RateLimitError,
    TierNotAllowedError,
    TokenRateLimitError,
)
from lbhost.gateway.account import Account, duration
from lbhost.gateway.token_bucket import TokenBucket
from lbhost.keys import Key


def account(**limits: object) -> Account:
    return Account(Key(name="alice", hash="", **limits), 7, 0.0)  # type: ignore[arg-type]


def told(one: Account, now: float) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in one.headers(now)}


def test_a_bucket_fills_evenly_up_to_a_minutes_worth() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(60, 0.0)
    assert (bucket.level(0.0), bucket.wait_s(1, 0.0), bucket.reset_s(0.0)) == (0.0, 1.0, 60.0)
    assert bucket.level(10.0) == 10.0
    assert bucket.level(1000.0) == 60.0
    bucket.take(90, 1000.0)  # it cost more than was believed
    assert bucket.wait_s(1, 1000.0) == 31.0
    bucket.take(-1000, 1000.0)
    assert bucket.level(1000.0) == 60.0


def test_another_limit_leaves_the_part_that_is_used() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(45, 0.0)
    bucket.change(120, 0.0)
    assert (bucket.level(0.0), bucket.per_minute) == (30.0, 120)


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500)), max_size=60),
)
def test_in_no_time_more_is_let_through_than_the_limit_says(
    per_minute: int, asked: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    now, taken = 0.0, 0
    for later, amount in asked:
        now += later
        if bucket.wait_s(amount, now) == 0.0:
            bucket.take(amount, now)
            taken += amount
        assert taken <= per_minute * (1 + now / 60) + 1e-6


def test_requests_over_the_rate_are_refused_and_told_when_to_come_back() -> None:
    one = account(requests_per_minute=2)
    one.admit(0.0)
    assert told(one, 0.0) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
    }
    one.admit(0.0)
    with pytest.raises(RateLimitError) as refused:
        one.admit(0.5)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert refused.value.retry_after_s == 30.0
    assert "in 29.5s" in refused.value.message
    assert told(one, 0.5)["x-ratelimit-remaining-requests"] == "0"
    one.admit(30.5)
    assert (one.requests, one.limited) == (3, 1)


def test_tokens_are_charged_by_estimate_and_settled_once() -> None:
    one = account(tokens_per_minute=600)
    charge = one.begin(400, 1, 0.0)
    with pytest.raises(TokenRateLimitError) as refused:
        one.begin(300, 1, 0.0)
    assert (refused.value.type, refused.value.retry_after_s) == ("tokens", 10.0)
    for _ in range(2):
        charge.settle(100, 50, 0.0)
    assert told(one, 0.0)["x-ratelimit-remaining-tokens"] == "450"
    assert (one.prompt_tokens, one.completion_tokens, one.running) == (100, 50, 0)
    one.begin(450, 1, 0.0).settle(500, 250, 0.0)  # longer than was believed: a debt
    assert told(one, 0.0)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(TokenRateLimitError) as refused:
        one.begin(1, 1, 0.0)
    assert refused.value.retry_after_s == 31.0


def test_what_can_never_pass_is_not_to_be_tried_again() -> None:
    one = account(tokens_per_minute=600, max_concurrent=2)
    with pytest.raises(OverTokenLimitError) as tokens:
        one.begin(601, 1, 0.0)
    with pytest.raises(OverLimitError) as answers:
        one.begin(1, 3, 0.0)
    for refused in (tokens, answers):
        assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        assert not refused.value.retryable


def test_answers_at_once_are_counted_until_they_end() -> None:
    one = account(max_concurrent=2)
    first = one.begin(10, 2, 0.0)
    with pytest.raises(RateLimitError) as refused:
        one.begin(10, 1, 0.0)
    assert refused.value.retryable
    first.settle(0, 0, 0.0)
    one.begin(10, 1, 0.0)
    assert one.running == 1
    assert one.headers(0.0) == []


@pytest.mark.parametrize(
    ("default", "highest", "asked", "got"),
    [
        ("default", None, None, "default"),
        ("default", None, "flex", "flex"),
        ("default", None, "priority", None),
        ("default", "priority", "priority", "priority"),
        ("default", "priority", None, "default"),
        ("flex", None, None, "flex"),
        ("flex", None, "default", None),
        ("priority", None, None, "priority"),
    ],
)
def test_a_key_has_a_tier_and_a_highest_one(
    default: str, highest: str | None, asked: str | None, got: str | None
) -> None:
    one = account(service_tier=default, highest_service_tier=highest)
    if got is not None:
        assert one.tier(asked) == got
        return
    with pytest.raises(TierNotAllowedError, match=repr(asked)) as refused:
        one.tier(asked)
    assert (refused.value.status, refused.value.param) == (403, "service_tier")


def test_a_key_may_be_for_some_models_only() -> None:
    account().check_model("any")
    with pytest.raises(ModelNotAllowedError) as refused:
        account(models=("a",)).check_model("b")
    assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")


def test_changed_limits_keep_what_was_used() -> None:
    one = account(requests_per_minute=2, tokens_per_minute=10)
    one.admit(0.0)
    one.change(Key(name="alice", hash="", requests_per_minute=4), 0.0)
    assert told(one, 0.0)["x-ratelimit-remaining-requests"] == "2"
    assert "x-ratelimit-limit-tokens" not in told(one, 0.0)
    one.begin(1000, 1, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.0061, "7ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (60.0, "1m0s"),
        (86.4, "1m26.4s"),
        (3661.0, "1h1m1s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_every_refusal_of_a_key_is_one_of_lbhosts_errors() -> None:
    kinds = (RateLimitError, TokenRateLimitError, OverLimitError, OverTokenLimitError)
    assert all(issubclass(kind, LbhostError) and kind.status == 429 for kind in kinds)
