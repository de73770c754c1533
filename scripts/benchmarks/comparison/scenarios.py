"""The scenarios: a name, a load, what disturbs the machine meanwhile. A table, and nothing done."""

from __future__ import annotations

import enum
from typing import NamedTuple

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64

PREFIX_TOKENS = 1000
CONVERSATIONS = 32
TURNS = 6
TURN_TOKENS = (64, 32)
"""What a turn adds: prompt and answer."""


class Weights(enum.StrEnum):
    """Which model is served."""

    Q4_0 = "starter model as Q4_0"
    SHIPPED = "starter model as shipped"
    SHAPE_1B = "1B shape, random weights, Q4_0"


class Arrivals(enum.StrEnum):
    """What sends the requests."""

    CLOSED = "closed"
    """Clients that send the next request when the last one is answered."""
    MIX = "mix"
    """Open loop, Poisson: 80% short prompts, 20% long ones."""
    BURST = "burst"
    """The mix, with BURST_FACTOR times the rate for a while."""
    PLAIN = "plain"
    """Open loop, Poisson: all requests alike."""
    TRACE = "trace"
    """Open loop: a recorded trace."""
    PREFIX = "prefix"
    """Closed loop; all prompts begin with the same PREFIX_TOKENS, which nobody has seen."""
    TURNS = "turns"
    """Closed loop: more conversations than slots, of TURNS turns each, in turn."""


class Disturbance(enum.StrEnum):
    """What happens meanwhile."""

    NONE = "none"
    SPIN = "spin"
    """Another program spins on the first core."""
    HALF = "half"
    """Another program uses half of the first core."""
    STOP = "stop"
    """After a quarter of the time one worker is stopped (SIGSTOP), and stays so."""
    QUOTA = "quota"
    """The whole server runs in a cgroup with 1.5 CPUs."""


class Scenario(NamedTuple):
    """One load to measure all servers under."""

    about: str
    arrivals: Arrivals = Arrivals.CLOSED
    clients: int = 0
    """Closed loop."""
    share: float = 0.0
    """Open loop: of the capacity that a closed loop of the same requests showed."""
    each: int = 6
    """Closed loop: requests a client, at most."""
    output_tokens: int = OUTPUT_TOKENS
    weights: Weights = Weights.Q4_0
    disturbance: Disturbance = Disturbance.NONE
    repeated: bool = False
    """The same prompts again in every round, so that caches answer; the first is not counted."""


def _closed(clients: int, about: str = "", each: int = 6, output: int = OUTPUT_TOKENS) -> Scenario:
    who = "1 client" if clients == 1 else f"{clients} clients"
    what = f"{who}, {PROMPT_TOKENS}/{output} tokens{about}"
    return Scenario(what, clients=clients, each=each, output_tokens=output)


def _overload(times: int) -> Scenario:
    about = f"open loop at {times}00% of capacity, {PROMPT_TOKENS}/{OUTPUT_TOKENS} tokens"
    return Scenario(about, Arrivals.PLAIN, share=float(times))


def _mix(percent: int) -> Scenario:
    about = f"open loop at {percent}% of capacity: 80% 32/16 tokens, 20% 1200/128"
    return Scenario(about, Arrivals.MIX, share=percent / 100)


SCENARIOS: dict[str, Scenario] = {
    "clients-1": _closed(1, each=16),
    "clients-2": _closed(2, each=10),
    "clients-8": _closed(8),
    "clients-32": _closed(32, each=3),
    "repeated-8": _closed(8, ", the same prompts in every round")._replace(repeated=True),
    "mix-35": _mix(35),
    "mix-60": _mix(60),
    "mix-85": _mix(85),
    "repeated-mix": _mix(60)._replace(
        about="the mix at 60%, the same prompts in every round", repeated=True
    ),
    "prefix-8": Scenario(
        f"8 clients, {PREFIX_TOKENS} tokens that all begin with and 32 of their own, 64 out, cold",
        Arrivals.PREFIX,
        clients=8,
        each=2,
    ),
    "turns-32": Scenario(
        f"{CONVERSATIONS} conversations of {TURNS} turns, +{TURN_TOKENS[0]}/{TURN_TOKENS[1]} tokens"
        " each, in turn, by 8 clients",
        Arrivals.TURNS,
        clients=8,
    ),
    "burst": Scenario(
        "the mix at 20% of capacity, ten times that for 5 s", Arrivals.BURST, share=0.2
    ),
    "neighbour-2": _closed(2, ", a program spins on the first core", 10)._replace(
        disturbance=Disturbance.SPIN
    ),
    "neighbour-8": _closed(8, ", a program spins on the first core")._replace(
        disturbance=Disturbance.SPIN
    ),
    "half-8": _closed(8, ", a program uses half of the first core")._replace(
        disturbance=Disturbance.HALF
    ),
    "stopped": Scenario(
        f"open loop at 40% of capacity, {PROMPT_TOKENS}/{OUTPUT_TOKENS} tokens;"
        " one worker is stopped after a quarter of the time",
        Arrivals.PLAIN,
        share=0.4,
        disturbance=Disturbance.STOP,
    ),
    "overload-1": _overload(1),
    "overload-2": _overload(2),
    "overload-5": _overload(5),
    "azure": Scenario("a recorded trace (--trace) at 80% of capacity", Arrivals.TRACE, share=0.8),
    "shipped-8": _closed(8, ", the file as shipped; lbhost as `lbhost tune` left it")._replace(
        weights=Weights.SHIPPED
    ),
    "1b-1": _closed(1, "; 1B shape", 16, 32)._replace(weights=Weights.SHAPE_1B),
    "1b-8": _closed(8, "; 1B shape", 2, 32)._replace(weights=Weights.SHAPE_1B),
    "quota-8": _closed(8, ", in a cgroup with 1.5 CPUs")._replace(disturbance=Disturbance.QUOTA),
}
