"""What one API key may do, and what it has done. Pure: the clock is handed in.

Raises what refuses a request; counts what is let through. Knows no key, only its hash.
"""

from __future__ import annotations

import math
from typing import NoReturn

from lbhost import order
from lbhost.errors import (
    ModelNotAllowedError,
    OverLimitError,
    OverTokenLimitError,
    RateLimitError,
    TierNotAllowedError,
    TokenRateLimitError,
)
from lbhost.gateway.token_bucket import TokenBucket
from lbhost.keys import RANKS, Key


class Account:
    """One key's."""

    def __init__(self, key: Key, scope: int, now: float) -> None:
        """`scope`: whose KV states its requests may use; see wire.Submit."""
        self.key = key
        self.scope = scope
        self.open = 0
        """Its requests that have come and are not answered."""
        self.running = 0
        """Answers that are being generated."""
        self.requests = 0
        self.limited = 0
        """Requests that were refused for a limit."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._requests = _bucket(None, key.requests_per_minute, now)
        self._tokens = _bucket(None, key.tokens_per_minute, now)

    @property
    def name(self) -> str:
        """Empty: the one key of --api-key, which has no name and no limits."""
        return self.key.name

    def change(self, key: Key, now: float) -> None:
        """Its table says something else from now on."""
        self.key = key
        self._requests = _bucket(self._requests, key.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, key.tokens_per_minute, now)

    # --- what it may do --------------------------------------------------------------

    def may_use(self, model: str) -> bool:
        return self.key.models is None or model in self.key.models

    def check_model(self, model: str) -> None:
        """Raises ModelNotAllowedError."""
        if not self.may_use(model):
            raise ModelNotAllowedError(
                f"this API key may not use the model {model!r}", param="model"
            )

    def tier(self, asked: str | None) -> str:
        """The service tier of a request that asks for this one, or leaves it open.

        Raises TierNotAllowedError.
        """
        tier: str = self.key.service_tier if asked is None else asked
        if RANKS[tier] < self.key.highest_rank:
            highest = next(name for name, rank in RANKS.items() if rank == self.key.highest_rank)
            raise TierNotAllowedError(
                f"this API key may not use service_tier {tier!r}; the highest is {highest!r}",
                param="service_tier",
            )
        return tier

    # --- what it has done ------------------------------------------------------------

    def admit(self, now: float) -> None:
        """A request has come. Raises RateLimitError: too many in a minute."""
        bucket = self._requests
        if bucket is not None:
            wait_s = bucket.wait_s(1, now)
            if wait_s:
                what = f"requests per min (RPM): Limit {bucket.per_minute}"
                self._refuse(RateLimitError, what, wait_s)
            bucket.take(1, now)
        self.requests += 1

    def begin(self, tokens: int, answers: int, now: float) -> Charge:
        """Its answers are about to be generated.

        Args:
            tokens: that it is believed to cost, prompts and outputs together.

        Raises:
            RateLimitError, OverLimitError: too many answers at once.
            TokenRateLimitError, OverTokenLimitError: too many tokens in a minute.
        """
        most = self.key.max_concurrent
        if most is not None and self.running + answers > most:
            what = f"answers at once: Limit {most}, Running {self.running}, Requested {answers}"
            # Nobody knows when one ends; a second is soon enough to ask again.
            self._refuse(RateLimitError if answers <= most else OverLimitError, what, 1.0)
        bucket = self._tokens
        if bucket is not None:
            wait_s = bucket.wait_s(tokens, now)
            if wait_s:
                used = bucket.per_minute - math.floor(bucket.level(now))
                fits = tokens <= bucket.per_minute
                what = (
                    f"tokens per min (TPM): Limit {bucket.per_minute}, Used {used}, "
                    f"Requested {tokens}"
                )
                self._refuse(TokenRateLimitError if fits else OverTokenLimitError, what, wait_s)
            bucket.take(tokens, now)
        self.running += answers
        return Charge(self, tokens, answers)

    def end(self, charge: Charge, prompt: int, completion: int, now: float) -> None:
        """What was begun has ended; see Charge.settle."""
        self.running -= charge.answers
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        if self._tokens is not None:
            self._tokens.take(prompt + completion - charge.tokens, now)

    def _refuse(self, kind: type[RateLimitError], what: str, wait_s: float) -> NoReturn:
        """`wait_s`: until the same request may pass, where that helps."""
        self.limited += 1
        who = f" for {self.name!r}" if self.name else ""
        if not kind.retryable:
            raise kind(f"Request too large{who} on {what}. Ask for less.")
        raise kind(
            f"Rate limit reached{who} on {what}. Please try again in {duration(wait_s)}.",
            retry_after_s=float(math.ceil(wait_s)),
        )

    # --- what its clients are told ---------------------------------------------------

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-*` as OpenAI writes them, for the limits that there are."""
        return [
            header
            for what, bucket in ((b"requests", self._requests), (b"tokens", self._tokens))
            if bucket is not None
            for header in (
                (b"x-ratelimit-limit-" + what, b"%d" % bucket.per_minute),
                (b"x-ratelimit-remaining-" + what, b"%d" % max(0, int(bucket.level(now)))),
                (b"x-ratelimit-reset-" + what, duration(bucket.reset_s(now)).encode()),
            )
        ]


class Charge:
    """What one request was charged when it began."""

    def __init__(self, account: Account, tokens: int, answers: int) -> None:
        self.tokens = tokens
        self.answers = answers
        self._account: Account | None = account

    def settle(self, prompt: int, completion: int, now: float) -> None:
        """It has cost so many tokens. Only the first call counts."""
        account, self._account = self._account, None
        if account is not None:
            account.end(self, prompt, completion, now)


def duration(seconds: float) -> str:
    """ "6m0s", "1.5s", "120ms": how Go, and so OpenAI's headers, write durations."""
    ms = math.ceil(round(seconds * 1000, 6))
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def rank_of_tier(tier: str) -> int:
    """See lbhost/order.py."""
    return RANKS.get(tier, order.DEFAULT)


def _bucket(old: TokenBucket | None, per_minute: int | None, now: float) -> TokenBucket | None:
    if per_minute is None:
        return None
    if old is None:
        return TokenBucket(per_minute, now)
    old.change(per_minute, now)
    return old
