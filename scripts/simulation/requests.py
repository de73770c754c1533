"""One request of a simulation: what it needs, and what became of it.

A virtual worker is told a prompt over the very messages that a real one gets. In place of its
tokens the message has one that names the request, so that the worker knows how long prompt and
answer are; nobody else looks there, but the oracle. So no two prompts begin alike: traces do not
tell what was asked, and nothing is answered from a cache.
"""

from __future__ import annotations

from lbhost import wire
from lbhost.gateway.scheduling.job import Work

_GREEDY = wire.Sampling(temperature=0.0)


class Request:
    """Times are simulated seconds."""

    __slots__ = (
        "arrived",
        "ended",
        "error",
        "first",
        "longest_gap",
        "number",
        "output_tokens",
        "prompt_tokens",
    )

    def __init__(self, number: int, arrived: float, prompt_tokens: int, output_tokens: int) -> None:
        self.number = number
        self.arrived = arrived
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.first: float | None = None
        """When its first token came."""
        self.ended: float | None = None
        self.longest_gap = 0.0
        """Longest time between two of its tokens."""
        self.error: str | None = None
        """Why it failed."""

    @property
    def ttft(self) -> float:
        assert self.first is not None
        return self.first - self.arrived

    @property
    def completion(self) -> float:
        assert self.ended is not None
        return self.ended - self.arrived

    @property
    def gap(self) -> float:
        """Mean time between two tokens; 0 with fewer than two."""
        assert self.first is not None
        assert self.ended is not None
        return (self.ended - self.first) / max(1, self.output_tokens - 1)

    def work(self, most_output: int | None) -> Work:
        """As the gateway gets it.

        Args:
            most_output: max_tokens of a client that does not know the length; None: it does,
                and the model is held to it, as load generators do.
        """
        return Work(
            self.number.to_bytes(4, "little"),
            self.prompt_tokens,
            self.output_tokens if most_output is None else max(most_output, self.output_tokens),
            _GREEDY,
            ignore_eos=most_output is None,
        )


def named(prompt: bytes) -> int:
    """The number of the request that has this prompt."""
    return int.from_bytes(prompt[:4], "little")
