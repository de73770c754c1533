"""The order in which a worker computes its prompts: the one description of it.

The worker serves by it, the router and the simulator predict by it. Pure. Owns no queue and
no state: what has to be remembered between two steps is an `Overtaken`, which the caller keeps.

The prompt with the fewest tokens left goes first; age never changes that, so a long prompt does
not jump ahead of a short one because it has waited, or is half done. Against starving, one token
in PART belongs to the oldest prompt whenever others overtake it. Two bounds follow, in prompt
tokens, for steps of at most `step` of them and turns of at most `grain` (see `turns`):

- *Short*: let `S` be what is computed of a prompt of n tokens and, before it is done, of others
  that then had at most n left. Of all longer ones together less than

      S / (PART - 1) + grain + step / (PART - 1)

  is computed before it is done: its own work, the shorter work, a third of that and about one
  step (besides the one that runs when it comes).
- *Long*: while a prompt is the oldest and T tokens of others are computed, at least

      (T - step) / (PART - 1) - grain

  of its own are: a quarter of the worker, less about a step. So it is done when the older ones'
  work and its own were done on a worker a fourth as fast.

Ranks come before lengths: a lower one goes first. The oldest of priority and default keeps its
part against both; flex has none against them, and gives way between two steps. What has output
already (its worker was lost, or it was moved) goes like priority: its reader has been interrupted.

All of this is among requests with the same LoRA adapter. A batch is computed with one adapter, so
that requests with different ones take turns, prompts and streams alike (`whose_turn`). A turn ends
between two steps, after `stint_s` of computing or when nothing of it is left; one that only flex
requests have ends after a step where others wait. The next has who has waited longest. So whoever
has something to compute among k adapters waits at most

    (k - 1) * (stint_s + a step + what changing the adapter costs)

for its turn, and gets 1/k of the worker while all of them have enough to do (`takers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

PART = 4
"""Of so many prompt tokens at least one is the oldest prompt's, if it wants it."""

PRIORITY = 0
DEFAULT = 1
FLEX = 2


def rank_of(rank: int, *, begun: bool) -> int:
    """The rank of a request's prompt, which for a `begun` one is all that it had before."""
    return min(rank, PRIORITY) if begun and rank < FLEX else rank


class Prompt(msgspec.Struct, frozen=True):
    """A prompt that is not computed yet."""

    number: int
    """Names it, and says how old it is: of two the one with the lower number came first."""
    remaining: int
    """Tokens, at least 1."""
    rank: int = DEFAULT


class Overtaken(msgspec.Struct, frozen=True):
    """What the oldest prompt is owed. A fresh one stands for a worker that had nothing to do."""

    number: int | None = None
    """Which prompt that is."""
    tokens: int = 0
    """Of others that were computed while it was the oldest, less PART - 1 for each of its own."""


class Turn(msgspec.Struct, frozen=True):
    """The next in line. A prompt may come twice: first with its part, then in its place."""

    number: int
    most: int
    """Tokens that it may get."""


def turns(prompts: Sequence[Prompt], overtaken: Overtaken, grain: int) -> list[Turn]:
    """Who is served next, in this order, each as far as a step's room goes.

    Args:
        grain: tokens. A part is paid in multiples of it, so that chunks stay whole.
    """
    line = sorted(prompts, key=lambda p: (p.rank, p.remaining, p.number))
    served = [Turn(prompt.number, prompt.remaining) for prompt in line]
    if not line:
        return served
    oldest = _oldest(prompts)
    if overtaken.number == oldest.number and line[0] is not oldest:
        due = overtaken.tokens // (PART - 1)
        if due < oldest.remaining:
            due -= due % grain
        if due > 0:
            return [Turn(oldest.number, min(due, oldest.remaining)), *served]
    return served


def after(
    prompts: Sequence[Prompt], overtaken: Overtaken, computed: Mapping[int, int]
) -> Overtaken:
    """What the oldest is owed after a step.

    Args:
        prompts: as they were before it.
        computed: tokens by number.
    """
    if not prompts:
        return Overtaken()
    oldest = _oldest(prompts)
    own = computed.get(oldest.number, 0)
    if own >= oldest.remaining:
        return Overtaken()
    owed = overtaken.tokens if overtaken.number == oldest.number else 0
    owed += sum(computed.values()) - own - (PART - 1) * own
    return Overtaken(oldest.number, max(0, owed))


def tokens_until_done(
    tokens: int,
    others: Sequence[int],
    *,
    rank: int = DEFAULT,
    ranks: Sequence[int] | None = None,
) -> int:
    """Prompt tokens that a worker computes until a new prompt is done, its own among them.

    An expectation: that nothing else comes, and that the oldest is one of the longer ones.

    Args:
        tokens: the new prompt's.
        others: tokens left of each prompt that is there.
        rank: the new prompt's. ranks: those of the others, if any is not DEFAULT.
    """
    done = tokens
    longer = 0
    if ranks is None and rank == DEFAULT:
        for remaining in others:
            if remaining <= tokens:
                done += remaining
            else:
                longer += remaining
    else:
        for remaining, other in zip(others, ranks or [DEFAULT] * len(others), strict=True):
            if (other, remaining) <= (rank, tokens):
                done += remaining
            elif other < FLEX or rank == FLEX:
                longer += remaining
    return done + min(longer, done // (PART - 1))


def whose_turn(
    line: Sequence[int], current: int, ranks: Mapping[int, int], spent_s: float, stint_s: float
) -> int:
    """The adapter that the next step computes with.

    Args:
        line: those whose requests have something to compute; who has waited longest comes first.
        current: whose turn it was. ranks: the lowest of each one's requests.
        spent_s: what was computed in this turn.
        stint_s: after so much another one has its turn.
    """
    others = [adapter for adapter in line if adapter != current]
    if not others:
        return current
    gives_way = ranks.get(current, FLEX) >= FLEX > min(ranks[adapter] for adapter in others)
    most_s = 0.0 if gives_way else stint_s
    goes_on = current in line and (not spent_s or spent_s < most_s)
    return current if goes_on else others[0]


def takers(adapter: int, others: Iterable[int]) -> int:
    """Among how many adapters a worker's time is shared when a request with this one is there, too.

    Args:
        others: the adapter of each request that is there.
    """
    return len({adapter, *others})


def _oldest(prompts: Sequence[Prompt]) -> Prompt:
    """The one that has a part: flex has one among flex only."""
    return min(prompts, key=lambda p: (p.rank >= FLEX, p.number))
