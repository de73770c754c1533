"""What the router believes of a worker's row."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from lbhost.board import ProgressRow
from lbhost.gateway.scheduling.readings import believable

SOUND = ProgressRow(
    epoch=3, prefill_tok_s=400.0, step_base_s=0.0, step_seq_s=0.01, steps_s=(0.01, 0.02)
)


def test_what_was_measured_or_not_yet_is_believed() -> None:
    for row in (SOUND, ProgressRow(), ProgressRow(steps_s=(0.01,))):
        assert believable(row) is row


@pytest.mark.parametrize(
    "told",
    [
        {"prefill_tok_s": 0.0},
        {"prefill_tok_s": -1.0},
        {"prefill_tok_s": 5e-324},
        {"prefill_tok_s": math.inf},
        {"prefill_tok_s": math.nan},
        {"step_base_s": -0.1},
        {"step_seq_s": math.nan},
        {"steps_s": (0.01, math.inf)},
    ],
)
def test_speeds_that_no_measurement_gives_count_as_none(told: dict[str, Any]) -> None:
    seen = believable(msgspec.structs.replace(SOUND, **told))
    assert (seen.prefill_tok_s, seen.step_base_s, seen.step_seq_s, seen.steps_s) == (
        None,
        None,
        None,
        (),
    )
    assert seen.epoch == SOUND.epoch
