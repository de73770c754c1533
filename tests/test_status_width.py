"""What `lbhost status` says of several models, however long their names and great their figures."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

import fake_admin
from lbhost import report


@pytest.mark.parametrize("scaling", ["fixed", "auto", "pinned"])
def test_a_models_lines_fit_into_80_columns(scaling: str) -> None:
    served = fake_admin.model(
        "Some-Very-Long-Name-of-a-Model-4B-Instruct-2507",
        kind="embedding",
        state="sleeping",
        scaling=scaling,
        workers=64,
        workers_up=64,
        min_workers=0,
        max_workers=1024,
        tokens_s=12345.6,
        prompt_tokens_s=123456.0,
        queue_depth=256,
    )
    models = [served, fake_admin.model("chat", scaling=scaling, min_workers=1, max_workers=2)]
    status = msgspec.structs.replace(fake_admin.status(), models=models)
    shown = io.StringIO()
    Console(file=shown, width=200).print(report.status_view(status))
    lines = shown.getvalue().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("Some-Very-Long"))
    assert max(map(len, lines[begin:])) <= 80
    assert "(embedding)  sleeping  64/64 workers" in lines[begin]
    assert lines[begin + 1].startswith("  queue 256, in flight 0, 123456 in/s, 12345.6 out/s")
    assert (scaling == "fixed") is ("0 to 1024" not in lines[begin])
