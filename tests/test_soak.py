"""scripts/chaos --soak: what counts as growth, and what breaks a promise."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from faults import soak
from faults.__main__ import parse
from faults.answers import Answer, Reference
from faults.soak import Look

MB = 1_000_000


def looks(
    rss: list[float], role: str = "lbhost worker 0", pid: int = 7, every_s: float = 10.0
) -> list[Look]:
    """At one process; `rss` in MB."""
    return [Look(i * every_s, role, pid, int(size * MB), 20 + i) for i, size in enumerate(rss)]


def complete(**more: Any) -> Answer:
    fields: dict[str, Any] = {
        "question": 0,
        "stream": True,
        "sent": 1.0,
        "status": 200,
        "text": "so",
        "finish": "length",
        "done": True,
        "ended": 2.0,
        **more,
    }
    return Answer(**fields)


def judged(
    seen: list[Look], answers: list[Answer] | None = None, vectors: Counter[str] | None = None
) -> soak.Soak:
    return soak.judge(
        seen,
        600.0,
        [complete()] if answers is None else answers,
        {0: Reference("so")},
        Counter({"200": 5, "429": 1}) if vectors is None else vectors,
        3,
        [],
    )


def test_a_quarter_of_the_time_is_warm_up_and_five_minutes_at_most() -> None:
    assert soak.warm_up_s(60.0) == 15.0
    assert soak.warm_up_s(7200.0) == 300.0


def test_growth_is_the_slope_of_what_came_after_the_warm_up() -> None:
    steady = [100.0 + 0.05 * i for i in range(60)]  # 0.3 MB a minute
    (found,) = soak.growths(looks([20.0, 90.0, *steady]), 20.0)
    assert found.mb_min == pytest.approx(0.3)
    assert (found.first, found.last, found.looks) == (100 * MB, int(102.95 * MB), 60)
    assert found.descriptors == (22, 81)


def test_processes_are_told_apart_and_the_fastest_growing_is_first() -> None:
    slow = looks([10.0] * 10, pid=1)
    fast = looks([10.0 + i for i in range(10)], "lbhost gateway", 2)
    short = looks([10.0, 90.0], "lbhost prompt helper", 3)
    found = soak.growths([*slow, *fast, *short], 0.0)
    assert [(one.pid, one.mb_min is None) for one in found] == [(2, False), (1, False), (3, True)]
    assert found[0].mb_min == pytest.approx(6.0)
    assert found[1].mb_min == pytest.approx(0.0)


def test_what_stays_as_it_is_keeps_all_promises() -> None:
    found = judged(looks([100.0] * 60))
    assert not found.broken
    assert found.seconds == 450.0
    assert "+0.000 MB/min" in soak.report(found)


def test_a_process_that_grows_by_a_megabyte_a_minute_breaks_one() -> None:
    found = judged(looks([100.0 + 0.17 * i for i in range(60)]))
    assert found.broken == ["lbhost worker 0 (7) grows by 1.02 MB a minute"]
    assert "BROKEN lbhost worker 0" in soak.report(found)


def test_a_process_that_is_replaced_breaks_one_however_little_it_grew() -> None:
    steady = looks([100.0] * 60, "lbhost gateway", 2)
    first, second = looks([100.0] * 40), looks([100.0] * 60, pid=8)[40:]
    assert judged([*steady, *first, *second]).broken == ["lbhost worker 0 (7) has ended"]
    assert not judged([*steady, *first[:10], *looks([100.0] * 60, pid=8)[10:]]).broken


def test_a_run_that_saw_nothing_proves_nothing() -> None:
    assert len(judged(looks([100.0] * 2)).broken) == 1


@pytest.mark.parametrize("fields", [{"text": "no"}, {"done": False}, {"error": "gone"}])
def test_each_lost_answer_breaks_one(fields: dict[str, Any]) -> None:
    found = judged(looks([100.0] * 60), [complete(), complete(**fields)])
    assert len(found.broken) == 1


def test_answers_and_vectors_must_have_come() -> None:
    steady = looks([100.0] * 60)
    assert judged(steady, []).broken == ["nothing was answered"]
    assert judged(steady, vectors=Counter({"429": 2})).broken == ["there were no vectors"]
    odd = judged(steady, vectors=Counter({"200": 2, "500": 1})).broken
    assert odd == ["requests for vectors: {'500': 1}"]


def test_the_configuration_has_text_and_vectors(tmp_path: Path) -> None:
    path = tmp_path / 'a "quoted" name.gguf'
    text, vectors = tomllib.loads(soak.configuration(path, path))["models"]
    assert (text["name"], text["path"]) == ("text", str(path))
    assert (vectors["name"], vectors["kind"], vectors["workers"]) == ("vectors", "embedding", 1)


@pytest.mark.parametrize(
    "argv",
    [
        ["--soak", "--kills", "3"],
        ["--soak", "kill-worker"],
        ["--soak", "--minutes", "1"],
        ["--rude", "0"],
        ["--rude", "3", "--at-once", "0"],
        ["--embedding-model", "some.gguf"],
        ["--at-once", "5"],
        ["--soak", "--at-once", "5"],
    ],
)
def test_what_cannot_be_run_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(argv)
    assert refused.value.code == 2
