"""What became of a request, and whether a promise was broken. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

import msgspec


class Question(msgspec.Struct, frozen=True):
    """One request that may be sent any number of times."""

    prompt: str
    max_tokens: int


class Answer(msgspec.Struct, kw_only=True):
    """One request on its way, and what came back. Times are seconds of one monotonic clock."""

    question: int
    """Index into the questions."""
    stream: bool
    sent: float
    status: int | None = None
    """None: no head came."""
    worker: int | None = None
    """Where it was first."""
    text: str = ""
    texts: list[float] = []
    """When each piece of text came."""
    finish: str | None = None
    done: bool = False
    """A stream's [DONE], or a whole plain answer."""
    error: str | None = None
    """What the server said, or what cut the connection off."""
    cut: bool = False
    """The connection broke: the client knows that something is missing."""
    ended: float = 0.0
    choices: tuple[Choice, ...] = ()
    """As Reference has them, where they were asked for."""


class Choice(msgspec.Struct, frozen=True):
    """A greedy answer's token."""

    begins: int
    """Where in the text."""
    margin: float
    """By how much it was more likely than the next best, in log-probability."""
    second: str = ""
    """The next best one's text."""


NEAR_TIE = 0.5
"""Where the two most likely tokens differ by less than this in log-probability, which one is picked
is decided by rounding: tokens of the starter model that were computed again in one go, as a whole
attention tile, moved that difference by up to 0.42 against token by token (8 times each at any
place of 3 texts of 48 tokens); three of those 8 took another token at a difference of 0.30."""


class Reference(msgspec.Struct, frozen=True):
    """An undisturbed greedy answer."""

    text: str
    choices: tuple[Choice, ...] = ()

    def margin(self, other: str) -> float:
        """Of the token at which another text leaves this one; infinite where nothing is known.

        Two tokens' texts may begin alike (" river", " rivers"): the token that another one took the
        place of then stands before the first character that differs.
        """
        at = parted(other, self.text)
        before = [choice for choice in self.choices if choice.begins <= at]
        for choice in before[:-1]:
            taken = other.startswith(choice.second, choice.begins)
            if taken and choice.begins + len(choice.second) > at:
                return choice.margin
        return before[-1].margin if before else math.inf

    def is_near_tie(self, other: str) -> bool:
        """Whether another text leaves this one where the token might as well have been another."""
        return self.margin(other) < NEAR_TIE


def choices(scores: dict[str, Any]) -> tuple[Choice, ...]:
    """A Reference's. `scores`: the `logprobs` of a greedy text completion, with the best few.

    What is likelier than the token that was taken may not be taken (the end, where it is to be
    ignored), nor is it anywhere else the next best.
    """
    taken = list(zip(scores["tokens"], scores["token_logprobs"], strict=True))
    tops: list[dict[str, float]] = scores["top_logprobs"]
    barred = {
        text
        for (_, logprob), top in zip(taken, tops, strict=True)
        for text, other in top.items()
        if other > logprob
    }
    found: list[Choice] = []
    for offset, (token, logprob), top in zip(scores["text_offset"], taken, tops, strict=True):
        others = {text: other for text, other in top.items() if text not in barred | {token}}
        second = max(others, key=lambda text: others[text], default=None)
        if second is None:
            found.append(Choice(offset, math.inf))
        else:
            found.append(Choice(offset, logprob - others[second], second))
    return tuple(found)


class Verdict(enum.StrEnum):
    """Every answer is exactly one of these."""

    COMPLETED = "completed"
    NEAR_TIE = "near-tie"
    """Complete, and from a near-tie on another text than the undisturbed one."""
    DIFFERENT = "different"
    """Complete, with another text than the undisturbed one."""
    TRUNCATED = "truncated"
    """Ended as if all were well, and was not finished."""
    REFUSED = "refused"
    """Not accepted: 429 or 503, with a retry-after."""
    FAILED = "failed"


def verdict(answer: Answer, reference: Reference) -> Verdict:
    """What became of a request."""
    if answer.status in (429, 503) and not answer.text:
        return Verdict.REFUSED
    if answer.error is not None or answer.cut or answer.status != 200:
        return Verdict.FAILED
    if not (answer.done and answer.finish in ("stop", "length")):
        return Verdict.TRUNCATED
    if answer.text == reference.text:
        return Verdict.COMPLETED
    return Verdict.NEAR_TIE if reference.is_near_tie(answer.text) else Verdict.DIFFERENT


def parted(text: str, reference: str) -> int:
    """Characters that both begin with."""
    shorter = min(len(text), len(reference))
    return next((i for i in range(shorter) if text[i] != reference[i]), shorter)


def open_at(answer: Answer, moments: Sequence[float], slack_s: float) -> bool:
    """Whether a request was under way at one of these moments, or came so shortly after it."""
    return any(answer.sent - slack_s <= moment <= answer.ended for moment in moments)


def recoveries(
    answers: Sequence[Answer], struck: Sequence[tuple[float, int]], stopped_s: float
) -> list[float]:
    """Seconds from each stroke to the next text of each stream that it hit.

    Args:
        struck: when, and which worker. A stream counts only while nothing has hit it before: where
            it went then, nobody outside knows.
        stopped_s: a stream that was silent for longer than this before the stroke is left out: it
            was waiting for something else.
    """
    found: list[float] = []
    for answer in answers:
        if not (answer.stream and answer.texts):
            continue
        hits = [when for when, worker in sorted(struck) if worker == answer.worker]
        first = next((when for when in hits if answer.sent <= when < answer.ended), None)
        if first is None:
            continue
        before = [at for at in answer.texts if at <= first]
        after = [at for at in answer.texts if at > first]
        if before and after and first - before[-1] <= stopped_s:
            found.append(after[0] - first)
    return found
