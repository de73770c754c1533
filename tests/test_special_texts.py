"""Special texts are found in one pass, the longest at each place."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lbhost.gateway.prompt import special_texts

TEXTS = st.sets(st.text("ab<|(", min_size=1, max_size=5), min_size=1, max_size=8)


@given(texts=TEXTS, text=st.text("ab<|(", max_size=60))
def test_it_finds_what_an_alternation_by_length_finds(texts: set[str], text: str) -> None:
    longest_first = sorted(texts, key=len, reverse=True)
    plain = re.compile("|".join(map(re.escape, longest_first)))
    ours = special_texts.pattern(texts)
    assert ours is not None
    assert [m.span() for m in ours.finditer(text)] == [m.span() for m in plain.finditer(text)]


def test_there_is_none_without_texts() -> None:
    assert special_texts.pattern(()) is None
    assert special_texts.pattern(("",)) is None


def test_many_alike_texts_share_their_beginning() -> None:
    texts = [f"<|reserved_special_token_{i}|>" for i in range(250)]
    pattern = special_texts.pattern(texts)
    assert pattern is not None
    assert pattern.pattern.count("reserved") == 1
    assert pattern.findall("".join(texts)) == texts
