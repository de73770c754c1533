"""Which workers rest because their cores are too hot. Pure.

Never all of them: a slow answer is better than none, and the hardware throttles for itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbhost.board import WorkerState
from lbhost.supervisor.lifecycle import Event


def decide(
    states: Mapping[int, WorkerState],
    temps: Mapping[int, float | None],
    *,
    warm_c: float,
    hot_c: float,
) -> dict[int, Event]:
    """HOT and COOL events for the workers that should get one now.

    Args:
        states: by worker id.
        temps: the hottest of each worker's cores, degrees Celsius; None where not known.
    """
    events: dict[int, Event] = {}
    ready = {i for i, state in states.items() if state is WorkerState.READY}
    resting = {i for i, state in states.items() if state is WorkerState.RESTING}
    for i in sorted(resting):
        temp = temps.get(i)
        if temp is None or temp <= warm_c:
            events[i] = Event.COOL
            ready.add(i)
    hot = {i: temp for i in ready if (temp := temps.get(i)) is not None and temp >= hot_c}
    for i in sorted(hot, key=lambda i: (-hot[i], i)):
        if len(ready) > 1:
            events[i] = Event.HOT
            ready.discard(i)
    if not ready and resting:
        coolest = min(resting, key=lambda i: (temps.get(i) or 0.0, i))
        events[coolest] = Event.COOL
    return events
