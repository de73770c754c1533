"""The ledger of cores: whose each CPU is, and who else runs there for a while. Pure.

A CPU has at most one owner of each model: the kernel shares it among those that compute, and the
router sees that. A spare, a worker that runs out its requests without a core of its
own, and GPU workers (which leave their cores nearly idle, and may be more than there are cores)
borrow theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from lbhost.placement.placement import Placement


class Ledger(msgspec.Struct, frozen=True):
    """Who owns and who borrows each CPU, by CPU number."""

    owners: Mapping[int, tuple[int, ...]]
    borrowers: Mapping[int, tuple[int, ...]]


def ledger(
    models: Iterable[Mapping[int, Placement | None]], places: Mapping[int, Placement]
) -> Ledger:
    """Book homes and places.

    Args:
        models: for each, by worker id, where it is at home; None if nowhere.
        places: by worker id, where its process runs now; those that have one.

    Raises:
        ValueError: two workers of one model have one home.
    """
    owners: dict[int, tuple[int, ...]] = {}
    for homes in models:
        own: dict[int, int] = {}
        for worker, home in homes.items():
            for cpu in home.cpus if home is not None and home.gpu is None else ():
                if cpu in own:
                    raise ValueError(f"CPU {cpu} is worker {own[cpu]}'s and worker {worker}'s home")
                own[cpu] = worker
        for cpu, worker in own.items():
            owners[cpu] = (*owners.get(cpu, ()), worker)
    borrowers: dict[int, list[int]] = {}
    for worker, place in places.items():
        for cpu in place.cpus:
            if worker not in owners.get(cpu, ()):
                borrowers.setdefault(cpu, []).append(worker)
    return Ledger(owners, {cpu: tuple(who) for cpu, who in borrowers.items()})


def allot(
    workers: Iterable[int], homes: Mapping[int, Placement | None], groups: Sequence[Placement]
) -> dict[int, Placement | None]:
    """A home for as many workers as there is room for.

    Who has a home that is still to be had keeps it, with its KV cache; the others get what is
    free, best first, the lowest id first.

    Args:
        workers: ids that want one.
        homes: what they have had until now.
        groups: what there is, best first (`plan.plan`).

    Returns:
        By id; None for those that find no room.
    """
    wanting = sorted(workers)
    free = list(groups)
    found: dict[int, Placement | None] = dict.fromkeys(wanting)
    for worker in wanting:
        home = homes.get(worker)
        if home is not None and home in free:
            free.remove(home)
            found[worker] = home
    for worker in wanting:
        if found[worker] is None and free:
            found[worker] = free.pop(0)
    return found
