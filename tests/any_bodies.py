"""Bodies that no client would send, for property tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lbhost.errors import InvalidRequestError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
"""Any value, and NaN and the like, which Python's json writes and nobody else reads."""

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The machines that run the tests are shared and slow."""


def some_fields(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Up to four of the fields, with any values."""
    return st.dictionaries(st.sampled_from(names), JSON, max_size=4)


def refusal(parse: Callable[[bytes, int], object], body: dict[str, Any]) -> str | None:
    """The field that a dialect finds wrong; "" for the body as a whole, None for nothing.

    Raises whatever else the dialect's parser raises: it must not.
    """
    try:
        parse(json.dumps(body).encode(), 1000)
    except InvalidRequestError as error:
        return error.param or ""
    return None
