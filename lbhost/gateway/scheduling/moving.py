"""Which running requests go on in another worker: decisions only. Pure.

Three reasons. A worker leaves (it drains, or rests from heat): its requests go as far as others
have room, and the rest follows when they have. A priority request finds no slot: the lowest one
that came last gives its slot up and waits in its place. A request is behind what it would have
elsewhere, the time for computing its tokens there again included: a core was taken or a worker
is full while another has room.

The last one is a matter of predictions, which err, and a move costs a pause in the stream. So it
needs a clear margin, at most one request is moved at a time, and none again soon: two workers
cannot play ping-pong.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec

from lbhost import order

SOON_S = 0.2
"""A request that surely ends within this time stays where it is."""

MARGIN = 1.5
"""What a request would take where it is, over what it would take elsewhere, before it is moved…"""

LEAST_S = 1.0
"""…and the seconds that it must gain."""

MOST_PAUSE_S = 1.0
"""A stream is not interrupted for longer than this to be done sooner."""

AGAIN_S = 10.0
"""A request is not moved for one of the two last reasons within this time of its last move…"""

SETTLED_S = 1.0
"""…nor before it has run for so long where it is: what it takes there is not known earlier."""

EVERY_S = 0.5
"""Between two moves for speed's sake."""


class Reason(enum.StrEnum):
    """Why a request was moved."""

    DRAIN = "drain"
    HOT = "hot"
    PRIORITY = "priority"
    """It has given its slot up."""
    SPEED = "speed"
    """It is done sooner elsewhere."""
    STOP = "stop"
    """Its worker ended, and gave it back unasked."""


class Running(msgspec.Struct, frozen=True):
    """A request in a worker, as the decisions see it."""

    attempt: int
    rank: int
    place: float
    """In the queue, if it goes back there: smaller goes first."""
    left: int
    """Output tokens that are expected to come."""
    surely_s: float
    """It ends within this time, whatever it says. Infinite where that is not known."""
    settled: bool = True
    """Whether it was not moved lately and has run here for a while."""


def evacuate(running: Iterable[Running], room: int) -> list[int]:
    """The attempts that go now from a worker that leaves: those first that would stay longest.

    Args:
        room: slots that others have for them.
    """
    going = [one for one in running if one.surely_s > SOON_S]
    going.sort(key=lambda one: (-one.left, one.attempt))
    return [one.attempt for one in going[: max(0, room)]]


def preempt(running: Iterable[Running], place: float) -> int | None:
    """The attempt that gives its slot to a priority request; None: all go before it.

    Of the lowest rank the one that came last.

    Args:
        place: the priority request's in the queue. What would come before it there stays.
    """
    lower = [
        one
        for one in running
        if one.rank > order.PRIORITY and one.place > place and one.settled and one.surely_s > SOON_S
    ]
    last = max(lower, key=lambda one: (one.rank, one.place, one.attempt), default=None)
    return None if last is None else last.attempt


class Offer(msgspec.Struct, frozen=True):
    """What a request would take where it is, and in the best other worker that has room."""

    attempt: int
    stay_s: float
    """Until its end."""
    go_s: float
    """The same elsewhere, with all that is to be computed again."""
    pause_s: float
    """Until its next token there."""


def best(offers: Sequence[Offer]) -> Offer | None:
    """The one that is worth moving and gains most; None: all stay."""
    worth = [
        offer
        for offer in offers
        if offer.stay_s > MARGIN * offer.go_s
        and offer.stay_s - offer.go_s >= LEAST_S
        and offer.pause_s <= MOST_PAUSE_S
    ]
    return max(worth, key=lambda offer: (offer.stay_s - offer.go_s, -offer.attempt), default=None)
