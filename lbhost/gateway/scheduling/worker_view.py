"""A worker as the router sees it at one moment, and what a request would cost there. Pure.

Owns what of the prediction (policy.py) is known before the request is.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import msgspec

from lbhost import order

Speeds: TypeAlias = tuple[float, float, float]
"""Prefill tokens/s, step_base s, step_seq s."""

CHUNK = 64
"""Prompt tokens in a step with running streams, about; see worker/batch.py."""

UNDISTURBED = 0.75
"""Share from which a worker counts as having its hardware for itself. What gateway and clients
use in passing shows as 0.2 of a core; see machine/cpustat.py."""

TRUSTED = 2.0
"""Penalty up to which an idle worker counts as a good place: one that has just started does, one
that has just failed a request does not."""


class WorkerView(msgspec.Struct, frozen=True):
    """One READY worker, as the router sees it at one moment."""

    worker: int
    epoch: int
    slots: int
    in_flight: int
    """Requests there; the greater of what the gateway sent and what the board says."""
    long_in_flight: int = 0
    """Those of them with a long prompt, but for flex ones."""
    flex_in_flight: int = 0
    """Those of them whose prompts wait for all others'."""
    prefills: tuple[int, ...] = ()
    """Prompt tokens left to compute of each request there that has no output yet."""
    cached: int = 0
    """Tokens of this request's prompt that the worker probably has in its KV cache; not all."""
    speeds: Speeds | None = None
    """None until the worker has measured its own."""
    steps_s: tuple[float, ...] = ()
    """Seconds of a decode step of 1, 2, … sequences, as far as it has told them."""
    share: float = 1.0
    """What the hardware leaves to it, over 0 and at most 1; see placement/share.py."""
    idle: float | None = None
    """Idle fraction of its core."""
    penalty: float = 1.0
    """Its predictions count for so many times as much; see policy.penalty."""

    ranks: tuple[int, ...] = ()
    """The rank of each of `prefills`; empty: all are order.DEFAULT."""
    adapters: tuple[int, ...] = ()
    """The LoRA adapter of each request in flight; empty: none has any."""
    prefill_adapters: tuple[int, ...] = ()
    """That of each of `prefills`; empty as above."""
    newest_adapter: int = 0
    """The one that it got a request with last."""
    # As they are for a request with a certain adapter; see `seen_with`.
    beside: int = 0
    """Requests in flight with other ones; none of them is in `prefills`."""
    takers: int = 1
    """Adapters that take turns there; see order.takers."""
    loaded: bool = True
    """Whether it computes with that one already, if it computes."""
    ttft_factor: float = 1.0
    output_factor: float = 1.0
    """What predictions of the time to the first token, and of that between tokens, have had to be
    multiplied with of late; see accuracy.py."""

    # Worked out from the above.
    vacant: bool = False
    """Idle, undisturbed, trusted."""
    costs: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Seconds for a prompt token, for an output token, and before the first of them. The last is
    infinite where there is no room, and minus infinity where no speeds are known."""

    def __post_init__(self) -> None:
        active = self.in_flight - self.beside
        if self.speeds is None:
            costs = (0.0, 0.0, -math.inf)
        else:
            speed, base, seq = self.speeds
            weight = self.penalty / self.share * self.takers
            step = self.step_s(active, base, seq)
            output_s = self.step_s(active + 1, base, seq) * weight * self.output_factor
            weight *= self.ttft_factor
            if self.in_flight:
                token_s = (1.0 / speed + step / CHUNK) * weight
                start_s = step * weight if self.in_flight < self.slots else math.inf
            else:
                token_s, start_s = weight / speed, 0.0
            costs = (token_s, output_s, start_s - self.cached * token_s)
        vacant = not self.in_flight and self.share >= UNDISTURBED and self.penalty <= TRUSTED
        msgspec.structs.force_setattr(self, "vacant", vacant)
        msgspec.structs.force_setattr(self, "costs", costs)

    def step_s(self, sequences: int, base_s: float, seq_s: float) -> float:
        """Of a decode step: as told, or by the line that is given."""
        if 0 < sequences <= len(self.steps_s):
            return self.steps_s[sequences - 1]
        return base_s + sequences * seq_s


def seen_with(view: WorkerView, adapter: int) -> WorkerView:
    """The view as it is for a request with this adapter."""
    if not adapter and not view.adapters and not view.newest_adapter:
        return view
    here = view.adapters or (0,) * view.in_flight
    beside = sum(other != adapter for other in here)
    if not beside:
        return msgspec.structs.replace(view, loaded=bool(here) or view.newest_adapter == adapter)
    whose = view.prefill_adapters or (0,) * len(view.prefills)
    own = [i for i, other in enumerate(whose) if other == adapter]
    return msgspec.structs.replace(
        view,
        prefills=tuple(view.prefills[i] for i in own),
        ranks=tuple(view.ranks[i] for i in own) if view.ranks else (),
        beside=beside,
        takers=order.takers(adapter, here),
        loaded=adapter in here,
    )
