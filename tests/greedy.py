"""What a real server answers greedily when nobody disturbs it, to compare with."""

from __future__ import annotations

from typing import Any

from faults.answers import Reference, choices, parted
from serving import Server, finished, text_of


def undisturbed(server: Server, prompt: str, **fields: Any) -> Reference:
    """Its answer, and how sure it was of each token."""
    answer = server.complete(prompt, logprobs=2, **fields).json()
    choice = answer["choices"][0]
    return Reference(choice["text"], choices(choice["logprobs"]))


def check_stream(events: list[dict[str, Any]], whole: Reference) -> None:
    """It has ended as it should, with the text of the undisturbed one.

    From a near-tie on it may be another one: what is computed again in one go is rounded
    otherwise than token by token.
    """
    assert finished(events), events[-2:]
    text = text_of(events)
    if text != whole.text:
        at = parted(text, whole.text)
        assert whole.is_near_tie(text), (text[at:], whole.text[at:])
