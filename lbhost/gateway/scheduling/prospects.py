"""Whether a request can be done in time: refused at once, it costs nobody anything. Pure.

Owns the margins. Says nothing as long as too little was measured.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lbhost.errors import LbhostError, TooLateError, TooSlowError
from lbhost.gateway.scheduling.accuracy import Accuracy

MARGIN = 1.5
"""A request is refused when it is predicted to take so many times what it has."""

LEAST_SEEN = 16
"""Answers whose predictions were compared before any prediction is trusted."""

TRUSTED_ERROR = 0.5
"""Median relative error up to which predictions are trusted."""

LEAST_FREED = 8
"""Places that came free while somebody waited before the predicted wait is trusted."""


class Limits(msgspec.Struct, frozen=True):
    """Seconds that are left to a request."""

    to_begin_s: float | None
    """Until it must be with a worker; None: as long as it takes."""
    to_end_s: float


def trusted(accuracies: Iterable[Accuracy]) -> bool:
    """Whether the times that requests take are predicted well enough here to act on it."""
    known = [one.completion for one in accuracies if len(one.completion)]
    seen = sum(len(errors) for errors in known)
    if seen < LEAST_SEEN:
        return False
    wrong = sum(len(errors) * (errors.absolute or 0.0) for errors in known)
    return wrong / seen <= TRUSTED_ERROR


def refusal(wait_s: float | None, service_s: float, limits: Limits) -> LbhostError | None:
    """Why a request had better not be queued; None when it may be in time.

    Args:
        wait_s: predicted until a worker has room; None where that is not known.
        service_s: predicted for it alone on an idle worker.
    """
    if service_s > MARGIN * limits.to_end_s:
        return TooSlowError(
            f"this would take about {service_s:.0f} s, and {limits.to_end_s:.0f} s are left; "
            "ask for fewer tokens"
        )
    if wait_s is None:
        return None
    late_s = wait_s + service_s - limits.to_end_s
    left_s = limits.to_end_s
    needed_s = wait_s + service_s
    if limits.to_begin_s is not None and wait_s - limits.to_begin_s > late_s:
        late_s, left_s, needed_s = wait_s - limits.to_begin_s, limits.to_begin_s, wait_s
    if needed_s <= MARGIN * left_s:
        return None
    return TooLateError(
        f"a worker would have room in about {wait_s:.0f} s, which is too late for this request",
        retry_after_s=max(1.0, late_s),
    )
