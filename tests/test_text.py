"""Text from token bytes: characters are whole, and stop strings never show."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.worker.text import TextStream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 10_000), max_size=20))
def test_text_is_whole_wherever_tokens_cut_it(text: str, cuts: list[int]) -> None:
    stream = TextStream()
    parts = [stream.feed(piece) for piece in pieces(text.encode(), cuts)]
    assert "".join(parts) + stream.finish() == text


def test_an_incomplete_character_is_held_back() -> None:
    stream = TextStream()
    assert stream.feed(b"a\xf0\x9f") == "a"
    assert stream.feed(b"\x98\x80b") == "😀b"


def test_an_incomplete_character_at_the_end_is_replaced() -> None:
    stream = TextStream()
    stream.feed(b"a\xf0\x9f")
    assert stream.finish() == "�"


def test_invalid_bytes_are_replaced_and_do_not_stick() -> None:
    assert TextStream().feed(b"a\xff\xfeb") == "a��b"


@given(
    st.text("abc", max_size=60),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_stop_strings_end_the_text_wherever_tokens_cut_it(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream = TextStream(tuple(stops))
    got = ""
    for piece in pieces(text.encode(), cuts):
        got += stream.feed(piece)
        assert not any(stop in got for stop in stops)
        if stream.stopped:
            break
    got += stream.finish()
    found = [text.index(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(found)
    if not found:
        assert got == text
    else:
        # A later piece could hold an earlier-starting longer stop; what is promised is that
        # the text ends where some stop string begins, and that none of it shows.
        assert text.startswith(got)
        assert any(text.startswith(got + stop) for stop in stops)
        assert not any(stop in got for stop in stops)


def test_what_may_begin_a_stop_string_waits_until_it_does_not() -> None:
    stream = TextStream(("STOP",))
    assert stream.feed(b"go ST") == "go "
    assert stream.feed(b"ILL S") == "STILL "
    assert stream.finish() == "S"


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(("\n\n",))
    assert stream.feed(b"one\n") == "one"
    assert stream.feed(b"\ntwo") == ""
    assert stream.stopped
    assert stream.feed(b"three") == ""
    assert stream.finish() == ""


@pytest.mark.parametrize("stops", [("",), ()])
def test_an_empty_stop_string_stops_nothing(stops: tuple[str, ...]) -> None:
    stream = TextStream(stops)
    assert stream.feed(b"abc") == "abc"
    assert not stream.stopped
