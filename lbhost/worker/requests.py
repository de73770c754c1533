"""The engine's bookkeeping: slots, requests, and a slot's part of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lbhost import order
from lbhost.wire import Finish, FinishReason, Submit
from lbhost.worker.interfaces import SamplerLike
from lbhost.worker.text import TextStream

Key = tuple[int, int]
"""(link, request id): ids are unique on a link only."""


class Slot:
    """A sequence of the context. `tokens` is what its KV holds, 4 bytes each."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens = bytearray()
        self.request: Request | None = None
        self.last_used = 0
        self.scope = 0
        """Whose tokens these are; see wire.Submit."""
        self.kept = 0
        """How many of them the store has, from the first on; more than there are while the rest
        is still to be computed."""
        self.unsaved_s = 0.0
        """Seconds that computing the others took."""


class Request:
    """A request from its Submit to its Finish."""

    def __init__(
        self, link: int, submit: Submit, number: int, arrived_s: float, state: int | None = None
    ) -> None:
        self.link = link
        self.number = number
        """Counts the arrivals; see order.Prompt."""
        self.submit = submit
        self.given = submit.prompt + submit.done
        """What the KV must hold before the first token can be picked here."""
        self.prompt_tokens = len(submit.prompt) // 4
        self.key: Key = (link, submit.request)
        self.state = state
        """Descriptor of the KV state that came with it, until it has been looked at."""
        self.arrived_s = arrived_s
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.cached = 0
        self.completion = len(submit.done) // 4
        """Output tokens so far, those of other workers included."""
        self.next_token = b""
        """The token that was sampled last, packed; it is not in the KV yet."""
        self.text = TextStream(submit.stop)
        self.sampler: SamplerLike | None = None

    @property
    def rank(self) -> int:
        """Its place among the prompts; see order.py."""
        begun = bool(self.submit.done) or self.first_token_s is not None
        return order.rank_of(self.submit.rank, begun=begun)

    @property
    def adapter(self) -> int:
        return self.submit.adapter

    @property
    def scored(self) -> bool:
        """Whether the prompt's tokens are to be told with their log-probabilities, by this worker:
        with the first output others have told them."""
        return self.submit.prompt_logprobs and not self.submit.done

    @property
    def forced(self) -> bool:
        """Whether what is computed next are output tokens that its grammar has forced, or that an
        abort has lost."""
        return self.first_token_s is not None and not self.next_token

    @property
    def given_tokens(self) -> int:
        return len(self.given) // 4

    def finish(
        self, reason: FinishReason, now: float, *, error: str | None = None, alone: bool = False
    ) -> Finish:
        """What is told at its end: how far it came, and how long each part of that took.

        Args:
            alone: whether a failed batch was this request's only.
        """
        started = self.started_s if self.started_s is not None else now
        first = self.first_token_s if self.first_token_s is not None else now
        return Finish(
            reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            completion_tokens=self.completion,
            queued_s=started - self.arrived_s,
            prefill_s=first - started,
            decode_s=now - first,
            error=error,
            stop=self.text.stop,
            alone=alone,
        )


class Part(msgspec.Struct):
    """A slot's part of the batch. Without a request its tokens are forgotten after the decode."""

    slot: Slot
    packed: bytes
    output: bool = False
    every: bool = False
    """Logits after every token, not only after the last."""
    padding: int = 0
    """Tokens computed after these for nothing but to fill a tile."""
    index: int = -1


class Entry(Part, kw_only=True):
    """The part of a request."""

    request: Request


def depth(parts: Sequence[Part]) -> int:
    """Tokens of context before each token that these compute, on average."""
    counts = [len(part.packed) // 4 for part in parts]
    before = (len(part.slot.tokens) // 4 * n for part, n in zip(parts, counts, strict=True))
    return sum(before) // max(1, sum(counts))
