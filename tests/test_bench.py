"""The benchmark's arithmetic, its report, its load generator and its command line."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import msgspec
import pytest

from benchmarks import batched, failover, load
from benchmarks.__main__ import SECTIONS, parse
from benchmarks.batched import Result, Shape
from benchmarks.bench import BenchError
from benchmarks.figures import Figure, Verdict, as_data, at_least, at_most, number, table
from benchmarks.load import Job, Outcome, Plan
from benchmarks.prompts import PromptError, PromptWriter
from benchmarks.stats import (
    Request,
    Spread,
    paired_ratios,
    poisson,
    quantile,
    spread,
    throughput,
    trace,
)

# --- statistics --------------------------------------------------------------------------------


def test_a_pause_ends_with_the_first_text_that_was_not_on_its_way_at_the_kill() -> None:
    assert failover.paused_s([9.9, 10.01, 10.3, 10.4], 10.0) == pytest.approx(0.3)
    assert failover.paused_s([9.9, 10.01], 10.0) is None


def test_quantiles_lie_between_the_nearest_ranks() -> None:
    values = [40.0, 10.0, 20.0, 30.0]
    assert quantile(values, 0.0) == 10.0
    assert quantile(values, 0.5) == 25.0
    assert quantile(values, 0.99) == pytest.approx(39.7)
    assert quantile(values, 1.0) == 40.0
    assert quantile([7.0], 0.99) == 7.0


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_paired_ratio_is_blind_to_drift_that_hits_both() -> None:
    theirs = [100.0, 80.0, 120.0]
    ours = [110.0, 88.0, 132.0]
    assert paired_ratios(ours, theirs) == pytest.approx((1.1, 1.1, 1.1, 3))
    assert spread(ours) == Spread(110.0, 88.0, 132.0, 3)


def test_pairs_must_be_whole() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_ratios([1.0, 2.0], [1.0])


def request(sent: float, *texts: float, tokens: int) -> Request:
    return Request(sent, texts, 128, tokens)


def test_a_request_knows_its_ttft_and_its_gaps() -> None:
    one = request(10.0, 10.5, 10.6, 10.9, tokens=3)
    assert one.ttft == pytest.approx(0.5)
    assert one.gaps == pytest.approx([0.1, 0.3])


def test_throughput_counts_to_the_last_text_unless_told_otherwise() -> None:
    requests = [request(0.0, 1.0, 2.0, tokens=2), request(0.0, 1.0, 4.0, tokens=2)]
    assert throughput(requests) == pytest.approx(4 / 4.0)
    assert throughput(requests, until=2.0) == pytest.approx(3 / 2.0)


def test_tokens_that_come_two_in_a_text_all_count() -> None:
    assert throughput([request(0.0, 1.0, 2.0, tokens=4)], until=1.0) == pytest.approx(2.0)


def test_poisson_arrivals_come_in_order_at_about_their_rate() -> None:
    arrivals = poisson(2.0, 2000, 128, 64, random.Random(1))
    times = [arrival.at for arrival in arrivals]
    assert times == sorted(times)
    assert 2000 / times[-1] == pytest.approx(2.0, rel=0.1)


ROWS = [
    {"TIMESTAMP": "2023-11-16 18:15:46.6805900", "ContextTokens": "374", "GeneratedTokens": "44"},
    {"TIMESTAMP": "2023-11-16 18:15:50.6805900", "ContextTokens": "4000", "GeneratedTokens": "96"},
    {"TIMESTAMP": "2023-11-16 18:15:51.6805900", "ContextTokens": "5", "GeneratedTokens": "9"},
]


def test_a_trace_is_stretched_to_a_rate_and_cut_to_what_fits() -> None:
    first, second, third = trace(ROWS, count=10, rate=2.0, most_tokens=1024)
    assert first == (0.0, 374, 44)
    assert (round(second.at, 6), *second[1:]) == (0.8, 1000, 24)
    assert (round(third.at, 6), *third[1:]) == (1.0, 8, 9)


def test_a_trace_is_cut_to_a_count() -> None:
    assert len(trace(ROWS, count=2, rate=1.0, most_tokens=1024)) == 2


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "under two rows"),
        ([ROWS[0], {"TIMESTAMP": "2023-11-16 18:15:46"}], "no column 'ContextTokens'"),
        ([ROWS[0], ROWS[1] | {"ContextTokens": "many"}], "invalid literal"),
        ([ROWS[0], ROWS[1] | {"TIMESTAMP": "noon"}], "Invalid isoformat"),
        ([ROWS[0], ROWS[0]], "do not rise"),
    ],
)
def test_a_trace_that_is_none_is_refused(rows: list[dict[str, str]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        trace(rows, count=10, rate=1.0, most_tokens=1024)


# --- the report --------------------------------------------------------------------------------


def test_verdicts_go_by_the_median_and_the_direction() -> None:
    measured = Spread(1.1, 0.9, 1.3, 5)
    assert Figure("s", "f", measured, "x", at_least(1.1)).verdict is Verdict.MET
    assert Figure("s", "f", measured, "x", at_least(1.11)).verdict is Verdict.MISSED
    assert Figure("s", "f", measured, "ms", at_most(1.1)).verdict is Verdict.MET
    assert Figure("s", "f", measured, "ms", at_most(1.0)).verdict is Verdict.MISSED
    assert Figure("s", "f", measured, "ms").verdict is Verdict.NONE


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.4567, "0.457"), (1.256, "1.26"), (31.25, "31.2"), (312.5, "312")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_the_table_shows_measured_range_target_and_verdict() -> None:
    measured = Spread(1.25, 1.2, 1.3, 5)
    text = table([Figure("server", "tok/s", measured, "x", at_least(1.1), "250 : 200")])
    row = text.splitlines()[-1]
    assert " ".join(row.split()) == "server tok/s 1.25x 1.20..1.30 (5) >= 1.10x met 250 : 200"


def test_the_data_name_the_target_by_its_direction() -> None:
    (data,) = as_data([Figure("idle", "cpu", Spread(0.5, 0.5, 0.5, 1), "%", at_most(1))])
    assert data["target"] == {"at_most": 1}
    assert data["verdict"] == "met"


# --- the load generator ------------------------------------------------------------------------


def event(data: object) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


def text(piece: str) -> bytes:
    return event({"choices": [{"text": piece, "finish_reason": None}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 3}})
DONE = event(b"[DONE]")
GOOD = [text("a"), text(""), text("b"), USAGE, DONE]


async def against(
    answer: list[bytes],
    jobs: list[Job],
    *,
    clients: int = 1,
    status: str = "200 OK",
    prompts: list[str] | None = None,
) -> tuple[Outcome, int]:
    """What the load generator makes of a server that always answers this, and how many requests
    were open at once at most. What it asked is added to `prompts`."""
    open_now = most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        body = await reader.readexactly(length)
        if prompts is not None:
            prompts.append(msgspec.json.decode(body)["prompt"])
        open_now += 1
        most = max(most, open_now)
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for data in answer:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0)
        open_now -= 1
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        plan = Plan("127.0.0.1", port, "m", jobs, clients, timeout_s=30.0)
        outcome = await load.run(plan)
    return outcome, most


JOB = Job("words", 8, 3)


@pytest.mark.anyio
async def test_a_request_is_timed_by_its_pieces_of_text() -> None:
    outcome, _ = await against(GOOD, [JOB])
    assert outcome.failures == []
    (one,) = outcome.requests
    assert len(one.texts) == 2, "an empty text is no token"
    assert one.sent < one.texts[0] <= one.texts[1]
    assert (one.prompt_tokens, one.completion_tokens) == (8, 3)


@pytest.mark.anyio
async def test_a_closed_loop_keeps_to_its_number_of_clients() -> None:
    outcome, most = await against(GOOD, [JOB] * 12, clients=3)
    assert (len(outcome.requests), most) == (12, 3)
    assert outcome.dry_s is not None
    assert outcome.dry_s >= min(one.sent for one in outcome.requests)


@pytest.mark.anyio
async def test_a_turn_goes_on_from_what_was_said_before() -> None:
    jobs = [Job("one", 8, 3), Job("two", 8, 3), Job(" more", 5, 3, after=0)]
    prompts: list[str] = []
    outcome, _ = await against(GOOD, jobs, clients=3, prompts=prompts)
    assert outcome.failures == []
    assert sorted(prompts) == ["one", "oneab more", "two"]


@pytest.mark.anyio
async def test_an_open_loop_does_not_wait_for_answers() -> None:
    jobs = [Job("words", 8, 3, at=0.0)] * 5
    outcome, _ = await against(GOOD, jobs)
    assert len(outcome.requests) == 5
    assert outcome.dry_s is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([text("a"), event({"error": {"message": "worker lost"}})], "worker lost"),
        ([text("a")], "cut off"),
        ([USAGE, DONE], "without text or usage"),
        ([text("a"), DONE], "without text or usage"),
        ([event(b"{")], "DecodeError"),
        (
            [text("a"), event({"usage": {"prompt_tokens": 7, "completion_tokens": 3}}), DONE],
            "7+3 tokens",
        ),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_failure(
    answer: list[bytes], complaint: str
) -> None:
    outcome, _ = await against(answer, [JOB])
    assert outcome.requests == []
    assert complaint in outcome.failures[0]


@pytest.mark.anyio
async def test_a_refusal_is_a_failure_that_names_the_status() -> None:
    outcome, _ = await against([b"busy"], [JOB], status="429 Too Many Requests")
    assert "429" in outcome.failures[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "plan",
    [
        Plan("192.0.2.1", 80, "m", [JOB], 1, 1.0),
        Plan("127.0.0.1", 80, "m", [JOB] * (load.MOST_REQUESTS + 1), 1, 1.0),
    ],
)
async def test_a_load_is_bounded_and_stays_on_the_loopback(plan: Plan) -> None:
    with pytest.raises(ValueError, match=r"loopback|more than"):
        await load.run(plan)


# --- prompts -----------------------------------------------------------------------------------


class LetterVocab:
    """A word is one token, every fifth length two, and a BOS comes first."""

    def __init__(self, words: int) -> None:
        self._pieces = [b" word" + b"abcdefghij"[i % 10 :] + b"x" * (i // 10) for i in range(words)]
        self._pieces += [b" Not", b"!", b" 12", b"\xc3", b""]
        self.n_tokens = len(self._pieces)

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        assert add_bos
        assert not parse_special
        return [0] + [1 for word in text.split() for _ in range(2 if len(word) % 5 == 0 else 1)]


def test_prompts_have_their_exact_length_and_share_no_first_word() -> None:
    vocab = LetterVocab(200)
    writer = PromptWriter(vocab, random.Random(1))
    prompts = [writer.write(length) for length in (16, 127, 128) * 40]
    for prompt, length in zip(prompts, (16, 127, 128) * 40, strict=True):
        assert len(vocab.tokenize(prompt, add_bos=True, parse_special=False)) == length
        assert prompt.replace(" ", "").isalpha()
    firsts = {prompt.split()[0] for prompt in prompts}
    assert len(firsts) == len(prompts)
    longer = writer.write(200, prompts[0])
    assert longer.startswith(prompts[0] + " ")
    assert len(vocab.tokenize(longer, add_bos=True, parse_special=False)) == 200


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(PromptError, match="3 plain words"):
        PromptWriter(LetterVocab(3), random.Random(1))


# --- llama-batched-bench -----------------------------------------------------------------------

FAKE_BATCHED_BENCH = """#!/bin/sh
# Waits until as many run as should, to show that they do, and says what it was asked for.
touch "$0.$$"
while [ "$(ls "$0".* | wc -l)" -lt {together} ]; do sleep 0.01; done
case "$*" in *"-npl 3"*) echo broken >&2; exit 1;; esac
echo "log line"
echo "{{\\"speed_pp\\": 500.0, \\"speed_tg\\": 100.0, \\"t\\": 2.5}}"
"""


def fake_batched_bench(tmp_path: Path, together: int) -> Path:
    program = tmp_path / "llama-batched-bench"
    program.write_text(FAKE_BATCHED_BENCH.format(together=together))
    program.chmod(0o755)
    return program


def test_processes_of_llama_batched_bench_run_at_once(tmp_path: Path) -> None:
    program = fake_batched_bench(tmp_path, together=2)
    core = min(os.sched_getaffinity(0))
    results = batched.run(program, Path("model"), [Shape((core,), 4, 128, 64)] * 2)
    assert results == [Result(500.0, 100.0, 2.5)] * 2


def test_a_failing_llama_batched_bench_is_one_line(tmp_path: Path) -> None:
    program = fake_batched_bench(tmp_path, together=1)
    core = min(os.sched_getaffinity(0))
    with pytest.raises(BenchError, match="llama-batched-bench failed: broken"):
        batched.run(program, Path("model"), [Shape((core,), 3, 128, 64)])


# --- the command line --------------------------------------------------------------------------


def test_sections_can_be_picked() -> None:
    given = parse(["engine", "idle", "--pairs", "7"])
    assert (given.sections, given.pairs) == (["engine", "idle"], 7)
    assert set(given.sections) <= set(SECTIONS)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["engines"], "unknown section 'engines'"),
        (["--pairs", "0"], "--pairs is a number from 1 to 100"),
        (["--trace", "nowhere.csv"], "no such file nowhere.csv"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
