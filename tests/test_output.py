"""What a worker writes: lines that are harmless, kept within bounds, and passed on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from lbhost import log
from lbhost.choices import LogFormat, LogLevel
from lbhost.supervisor import log_allowance, output
from lbhost.supervisor.log_allowance import AGAIN, BURST, PER_S, LogAllowance
from lbhost.supervisor.output import Output
from lbhost.supervisor.output_lines import LONGEST, LONGEST_PARTIAL, Splitter, Written, read

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0


def ours(event: str, level: str = "info", **more: object) -> bytes:
    """A line as a worker's structlog writes it."""
    return json.dumps({"event": event, "level": level, "process": "worker 7", **more}).encode()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def told(found: Output) -> list[tuple[str, str]]:
    return [(line.level, line.message) for line in found.after(0)]


def test_a_log_line_of_ours_is_level_words_and_fields() -> None:
    found = read(ours("decode failed", "error", why="no room", timestamp="2026-11-30T12:00:00Z"))
    assert found is not None
    assert (found.level, found.lines) == ("error", ("decode failed why=no room",))


def test_a_traceback_is_a_line_each() -> None:
    trace = "Traceback (most recent call last):\n  File x\nValueError: y"
    found = read(ours("worker crashed", "error", exception=trace))
    assert found is not None
    assert found.lines == (
        *("worker crashed", "Traceback (most recent call last):", "  File x", "ValueError: y"),
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"GGML_ASSERT(n > 0) failed", "GGML_ASSERT(n > 0) failed"),
        (b"\x1b]0;title\x07\x1b[2Jgone", r"\x1b]0;title\x07\x1b[2Jgone"),
        ("\u202etxt\u0085 \u2066".encode(), r"\u202etxt\x85 \u2066"),
        (b"a\tb\r", "a    b"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"event": 3}', '{"event": 3}'),
        (b'{"no": "event"}', '{"no": "event"}'),
        (b"{" * 5000, "{" * LONGEST + "\u2026 (5000 characters)"),
        (b"x" * 9000, "x" * LONGEST + "\u2026 (9000 characters)"),
    ],
)
def test_whatever_is_written_is_harmless_to_a_terminal(line: bytes, shown: str) -> None:
    found = read(line)
    assert found is not None
    assert found.lines == (shown,)
    assert found.level == ""


def test_a_line_of_ours_cannot_say_what_a_terminal_would_obey() -> None:
    found = read(ours("\x1b[31mred", "louder", **{"\x1b]k": "\x07"}))
    assert found is not None
    assert found.level == ""
    assert all(line.isprintable() for line in found.lines)


def test_lines_come_in_pieces_and_without_an_end() -> None:
    lines = Splitter()
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed(b"o\n\nthree") == [b"two", b""]
    assert lines.end() == [b"three"]
    assert lines.end() == []
    assert [len(line) for line in lines.feed(b"x" * (LONGEST_PARTIAL + 1))] == [LONGEST_PARTIAL + 1]
    assert read(b"  ") is None


async def test_lines_are_kept_over_processes_and_passed_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(LogFormat.JSON, LogLevel.INFO, "supervisor")
    found = Output(7, clock=lambda: 5.0)
    with found.open(1) as first:
        first.sendall(ours("llama.cpp: n_ctx = 9", "debug") + b"\n" + ours("it is so", x=1) + b"\n")
        await until(lambda: found.last == 2)
        first.sendall(b"GGML_ASSERT(0)")
    found.drain()
    with found.open(2) as second:
        second.sendall(b"again\n")
        await until(lambda: found.last == 4)
    found.end()
    assert found.closed
    assert [(line.epoch, line.message) for line in found.after(0)] == [
        (1, "llama.cpp: n_ctx = 9"),
        (1, "it is so x=1"),
        (1, "GGML_ASSERT(0)"),
        (2, "again"),
    ]
    err = capsys.readouterr().err.splitlines()
    assert "n_ctx" not in " ".join(err), "what is below the log's level is kept, not passed on"
    assert json.loads(err[0])["process"] == "worker 7"
    assert json.loads(err[0])["x"] == 1
    assert err[1:] == ["worker 7: GGML_ASSERT(0)", "worker 7: again"]


async def test_a_text_log_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LogFormat.TEXT, LogLevel.INFO, "supervisor")
    found = Output(0)
    with found.open(1) as end:
        end.sendall(ours("\x1b]0;x\x07said", process="supervisor", exc_info=True) + b"\n")
        await until(lambda: found.last == 1)
    found.end()
    err = capsys.readouterr().err
    assert "said" in err
    assert "worker 0" in err
    assert "\x1b]" not in err
    assert "\x07" not in err


async def test_memory_is_bounded_and_a_flood_loses_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "KEPT_CHARACTERS", 1000)
    monkeypatch.setattr(output, "PAUSE_S", 0.001)
    found = Output(0)
    with found.open(1) as end:
        for number in range(300):
            await until(lambda: _takes(end, b"%0200d\n" % number))  # noqa: B023 - at once
        end.sendall(b"last\n")
        await until(lambda: found.after(0) and found.after(0)[-1].message == "last")
        assert sum(len(line.message) for line in found.after(0)) <= 1000
        seen = found.last
        end.sendall(b"x\n" * 10_000)
        await until(lambda: any("left out" in message for _, message in told(found)))
        found.drain()
        assert found.last - seen < 1000
    capsys.readouterr()


def _takes(end: object, data: bytes) -> bool:
    try:
        return bool(end.send(data))  # type: ignore[attr-defined]
    except BlockingIOError:
        return False


async def test_who_writes_never_waits() -> None:
    found = Output(0)
    with found.open(1) as end:
        assert sum(_takes(end, b"x" * 32_768) for _ in range(100)) < 100
    found.end()


KEYS = ("x", "exception", "timestamp", "logger", "level", "event", "stack")
NESTED = [b"[" * depth + b"]" * depth for depth in (100, *range(700, 1000), 15_000)]


@pytest.mark.parametrize("form", [LogFormat.JSON, LogFormat.TEXT])
@pytest.mark.parametrize(
    "values",
    [
        NESTED,
        [b'{"a":' * depth + b"0" + b"}" * depth for depth in (30, *range(700, 1000))],
        [b"5", b"true", b"null", b"1e300", b"9" * 25, b"9" * 5000, b'"a\\nb"', b'{"a": [1, "b"]}'],
    ],
)
@pytest.mark.parametrize("key", KEYS)
async def test_no_line_can_stop_who_reads_it(
    key: str, values: list[bytes], form: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure(form, LogLevel.INFO, "supervisor")
    found = Output(0)
    for value in values:
        seen = found.last
        with found.open(1) as end:
            end.sendall(b'{"event": "so", "%s": %s}\n' % (key.encode(), value))
        found.drain()
        assert found.last > seen
    found.end()
    capsys.readouterr()


async def test_a_traceback_is_no_way_round_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    found = Output(0)
    with found.open(1) as end:
        end.sendall(ours("crashed", exception="y\n" * 10_000) + b"\n")
        end.sendall(b"".join(ours(f"{i}", exception="x\n" * 50) + b"\n" for i in range(40)))
    found.drain()
    assert [m for _, m in told(found)[-51:]] == ["39", *["x"] * 50]
    assert found.last < 600
    capsys.readouterr()


async def test_a_text_log_takes_no_line_for_anothers(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(LogFormat.TEXT, LogLevel.INFO, "supervisor")
    found = Output(0)
    with found.open(1) as end:
        end.sendall(ours("said\n12:00:00 [error    ] the server is broken") + b"\n")
    found.drain()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_log_gets_all_until_it_is_flooded_then_pieces() -> None:
    allowance = LogAllowance()
    line = 1024
    taken = [allowance.takes(line, 1, 5.0) for _ in range(2 * BURST // line)]
    assert taken == [True] * (BURST // line) + [False] * (BURST // line)
    soon_s, later_s = 5.0 + 0.9 * AGAIN / PER_S, 5.0 + AGAIN / PER_S
    assert not allowance.takes(line, 1, soon_s), "no single lines"
    assert allowance.takes(line, 1, later_s)
    assert allowance.left_out() == BURST // line + 1
    assert allowance.left_out() == 0
    assert sum(allowance.takes(line, 1, later_s) for _ in range(BURST)) == AGAIN // line - 1
    allowance.renew()
    assert allowance.takes(BURST, 1, later_s), "the last words of a process are told"


async def test_what_the_log_does_not_get_is_kept_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log_allowance, "BURST", 40)
    monkeypatch.setattr(log_allowance, "PER_S", 0)
    found = Output(3)
    for number in range(3):
        found.add(Written("", (f"{number}" * 30,)))
    with found.open(1) as end:
        end.sendall(b"last words\n")
    found.drain()
    kept = [message for _, message in told(found)]
    assert kept == ["0" * 30, "1" * 30, "2" * 30, "last words"]
    assert capsys.readouterr().err.splitlines() == [
        f"worker 3: {kept[0]}",
        "worker 3: (2 lines are not here: it writes too much)",
        "worker 3: last words",
    ]


async def test_a_new_process_is_told_of_though_the_one_before_has_flooded_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log_allowance, "BURST", 40)
    monkeypatch.setattr(log_allowance, "PER_S", 0)
    found = Output(3)
    found.open(1).close()
    await until(lambda: found._source is None)
    for number in range(2):
        found.add(Written("", (f"{number}" * 30,)))
    with found.open(2):
        found.add(Written("", ("hello",)))
        assert "worker 3: hello" in capsys.readouterr().err
    found.drain()
