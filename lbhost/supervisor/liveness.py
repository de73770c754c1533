"""Whether a process makes progress: working, slow, hung or spinning.

Pure: readings are passed in. Progress is what counts, not an answering thread: llama.cpp
servers have been wedged in a decode for hours while a health thread said 200.
"""

from __future__ import annotations

import enum
import math

import msgspec

LEAST_BUDGET_S = 1.0
STEPS_ALLOWED = 5.0
SPIN_FACTOR = 10.0
"""A slow process is not a hung one: while it burns CPU it gets so many times the budget."""
FIRST_STEP_S = 60.0
"""CPU-burning time allowed to a worker that has not yet measured any step of its own."""
IDLE_CPU = 0.01
"""A process that neither uses nor waits for more than this fraction of a CPU is not computing."""


class Verdict(enum.Enum):
    """What a look at a process says."""

    FINE = "fine"
    HUNG = "hung"
    """No progress, no CPU used and none waited for."""
    SPINNING = "spinning"
    """No progress, although it got the CPU time for many times its work."""


class Look(msgspec.Struct, frozen=True):
    """One reading of a process."""

    now_s: float
    busy: bool
    """Whether it has something to make progress with."""
    progress: tuple[int, ...]
    """Anything that changes with progress: steps, heartbeat."""
    cpu_s: float
    """CPU time that the process has used in its life."""
    waited_s: float | None = None
    """Time that its threads were ready to run and got no CPU, together; None if that is not known.
    Beside others a process gets little CPU or none for a while: it is slow then, not hung. Of
    several threads the main one sleeps until the last of them is through."""
    runnable: bool = False
    """Whether one of its threads runs or waits for a CPU now. A wait is in `waited_s` only when it
    is over: one of 1.4 s was seen, of a process of the lowest priority beside a busy one."""


class Watch(msgspec.Struct, frozen=True):
    """What is remembered between two looks."""

    look: Look
    progress_at_s: float
    """When progress (or having nothing to do) was last seen."""
    cpu_at_s: float
    """When the process was last seen to use CPU, or to wait for one."""
    progress_cpu_s: float
    """The CPU time that it had used when progress was last seen."""


class Budget(msgspec.Struct, frozen=True):
    """How long a process may go without progress."""

    quiet_s: float
    """Without using CPU."""
    burning_s: float
    """Of CPU time used: what others take of the CPU does not count against it."""


def step_budget(predicted_step_s: float) -> Budget:
    """A worker's budget, from what it says that its present step should take.

    0 means that it has not measured a step yet.
    """
    quiet = max(LEAST_BUDGET_S, STEPS_ALLOWED * predicted_step_s)
    burning = SPIN_FACTOR * quiet
    return Budget(quiet, burning if predicted_step_s > 0 else max(burning, FIRST_STEP_S))


def quiet_budget(quiet_s: float, burning_s: float = math.inf) -> Budget:
    """A fixed budget, for what does not count in steps."""
    return Budget(quiet_s, burning_s)


def begin(look: Look) -> Watch:
    """A fresh watch; also what is to be done after a time without looking."""
    return Watch(look, look.now_s, look.now_s, look.cpu_s)


def judge(watch: Watch | None, look: Look, budget: Budget) -> tuple[Watch, Verdict]:
    """Compare a look with what was seen before.

    Returns:
        What to remember for the next look, and the verdict.
    """
    if watch is None:
        return begin(look), Verdict.FINE
    now = look.now_s
    wanted_s = look.cpu_s - watch.look.cpu_s + _waited(watch.look, look)
    computing = look.runnable or wanted_s > IDLE_CPU * (now - watch.look.now_s)
    cpu_at = now if computing else watch.cpu_at_s
    if not look.busy or not watch.look.busy or look.progress != watch.look.progress:
        # Time without work is not time without progress: the count begins with the work.
        return begin(look), Verdict.FINE
    seen = Watch(look, watch.progress_at_s, cpu_at, watch.progress_cpu_s)
    stalled = now - watch.progress_at_s
    if stalled >= budget.quiet_s and now - cpu_at >= budget.quiet_s:
        return seen, Verdict.HUNG
    if look.cpu_s - watch.progress_cpu_s >= budget.burning_s:
        return seen, Verdict.SPINNING
    return seen, Verdict.FINE


def _waited(before: Look, look: Look) -> float:
    if before.waited_s is None or look.waited_s is None:
        return 0.0
    return max(0.0, look.waited_s - before.waited_s)  # a thread may have ended in between
