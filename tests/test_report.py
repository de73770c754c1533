"""What the command line shows of a server: sizes, the view of its status, the banner."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

import fake_admin
from lbhost import report


def test_sizes_and_durations_are_short() -> None:
    assert [report.size(n) for n in (0, 999, 1 << 20, 820 << 20, 1363 << 20, 12 << 30)] == [
        *("0B", "999B", "1M", "820M", "1.3G", "12G"),
    ]
    assert [report.duration(s) for s in (0, 59.9, 61, 3720, 90000)] == [
        *("0s", "59s", "1m01s", "1h02m", "1d1h"),
    ]


def test_several_models_are_groups_over_their_workers() -> None:
    status = fake_admin.status(kind="chat")
    models = [
        fake_admin.model("chat", workers=1, workers_up=1),
        fake_admin.model("vectors", failure="no memory", workers_up=0),
    ]
    workers = [
        msgspec.structs.replace(worker, model=model.name)
        for worker, model in zip(status.workers, models, strict=True)
    ]
    status = msgspec.structs.replace(status, models=models, workers=workers)
    shown = io.StringIO()
    Console(file=shown, width=80).print(report.status_view(status))
    lines = [line.strip() for line in shown.getvalue().splitlines()]
    heads = [line.split()[0] if line else "" for line in lines]
    chat, vectors = heads.index("chat"), heads.index("vectors")
    assert lines[0].startswith("2 models")
    assert lines[chat].startswith("chat (chat)  ready  1/1 workers")
    assert lines[chat + 2].startswith("0 ready")
    assert lines[vectors + 2].startswith("1 ready")
    assert "vectors: no memory" in lines
    said = report.banner(status)
    assert "serves 2 models" in said
    assert "vectors  not served: no memory" in said


@pytest.mark.parametrize(
    ("kind", "path"),
    [("chat", "chat/completions"), ("embedding", "embeddings"), ("rerank", "rerank")],
)
def test_what_serve_says_to_try_fits_the_model(kind: str, path: str) -> None:
    assert f"/v1/{path} " in report.banner(fake_admin.status(kind=kind))
