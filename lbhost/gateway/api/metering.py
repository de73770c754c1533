"""What a request's API key has to do with its work: whose it is, its class, what it is charged.

Between the endpoint and the account; a request without a key passes unchanged and free.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lbhost.gateway.account import Account, Charge, rank_of_tier
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.scheduling.group import Group
from lbhost.gateway.scheduling.job import Work


def owned(taken: Taken, exchange: Exchange) -> Taken:
    """The request as its key's, in a class that the key may use. Raises TierNotAllowedError."""
    account = exchange.account
    if account is None:
        return taken
    tier = account.tier(taken.tier)
    works = tuple(
        msgspec.structs.replace(
            work,
            scope=exchange.scope,
            client=account.name,
            weight=account.key.weight,
            rank=rank_of_tier(tier),
        )
        for work in taken.works
    )
    style = taken.style
    if style.tier is not None:
        style = msgspec.structs.replace(style, tier=tier)
    return msgspec.structs.replace(taken, works=works, style=style)


class Meter:
    """Charges one request to its account. `settle` must be called in the end."""

    def __init__(self, account: Account | None) -> None:
        self._account = account
        self._charge: Charge | None = None
        self._best_of = 1

    def begin(self, taken: Taken, expected: Callable[[Work], int], now: float) -> None:
        """Charge what the request is believed to cost.

        Args:
            expected: output tokens of an answer.

        Raises RateLimitError and its kin.
        """
        if self._account is None:
            return
        self._best_of = taken.best_of
        prompts = sum(work.prompt_tokens for work in taken.works)
        outputs = sum(expected(work) for work in taken.works) * taken.best_of
        answers = len(taken.works) * taken.best_of
        self._charge = self._account.begin(prompts + outputs, answers, now)

    def begin_inputs(self, tokens: int, now: float) -> None:
        """The same for a request that has vectors or scores computed for so many tokens.

        Raises RateLimitError and its kin.
        """
        if self._account is not None:
            self._charge = self._account.begin(tokens, 1, now)

    def settle(self, group: Group | None, now: float) -> None:
        """Charge what it has cost: prompts that no worker has had cost nothing."""
        if self._charge is None:
            return
        jobs = [] if group is None else group.jobs
        prompts = sum(job.work.prompt_tokens for job in jobs[:: self._best_of] if job.given)
        outputs = sum(job.completion_tokens for job in jobs)
        self._charge.settle(prompts, outputs, now)
