"""The metrics' text and the rows that the gateway writes on the board."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fake_worker import FIRST_STEP_S, Script
from lbhost.board import (
    Board,
    CoreRow,
    GatewayRow,
    HostRow,
    IdentityRow,
    ProgressRow,
    TrafficRow,
    WorkerState,
)
from lbhost.config import Settings
from lbhost.errors import (
    ContextLengthError,
    DeadlineError,
    EngineError,
    LbhostError,
    NotReadyError,
    QueueFullError,
    UnauthorizedError,
    WorkerLostError,
)
from lbhost.gateway import exposition
from lbhost.gateway.board_writer import WRITE_S, BoardWriter
from lbhost.gateway.metrics import Metrics
from lbhost.gateway.recorder import OUTCOMES, Figures, Recorder, outcome
from lbhost.gateway.scheduling.readings import Readings
from lbhost.gateway.scheduling.sessions import Sessions
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse
from lbhost.purpose import GENERATES
from running_gateway import RunningGateway, running_gateway, until

pytestmark = pytest.mark.anyio


async def samples(gateway: RunningGateway) -> dict[str, float]:
    """All samples by name, or name{worker} and name{outcome}."""
    response = await gateway.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = [v for k, v in sorted(sample.labels.items()) if k != "le"]
            name = f"{sample.name}{{{','.join(labels)}}}" if labels else sample.name
            found[name] = sample.value
    return found


@pytest.fixture
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "TEXT_FRESH_S", 0.0)


@pytest.mark.usefixtures("always_fresh")
async def test_predictions_are_compared_with_what_came_and_published() -> None:
    # It says that it is slow and is not: all is predicted far too late.
    async with running_gateway(script=Script(speeds=(1.0, 0.5, 0.5))) as g:
        before = await samples(g)
        assert "lbhost_worker_ttft_prediction_error_ratio{0}" not in before
        for _ in range(4):
            await g.chat()
        got = await samples(g)
        for what in ("ttft", "completion"):
            assert got[f"lbhost_worker_{what}_prediction_error_ratio{{0}}"] > 1.0
            assert got[f"lbhost_worker_{what}_prediction_bias_ratio{{0}}"] > 1.0
        assert 0.5 <= got["lbhost_worker_narrow_ttft_factor{0}"] < 1.0
        assert 0.5 <= got["lbhost_worker_narrow_output_factor{0}"] < 1.0

        def errors() -> tuple[float | None, float | None]:
            row = g.page.traffic.read(0)
            return (None, None) if row is None else (row.ttft_error, row.completion_error)

        await until(lambda: None not in errors(), "the board has them too")


@pytest.mark.usefixtures("always_fresh")
async def test_requests_tokens_and_latencies_are_counted() -> None:
    async with running_gateway(script=Script(cached_tokens=4)) as g:
        await g.chat()
        await g.chat(stream=True)
        await g.chat(temperature=9)
        got = await samples(g)
        assert got["lbhost_requests_total{ok}"] == 2
        assert got["lbhost_requests_total{invalid}"] == 1
        assert got["lbhost_completion_tokens_total"] == 10
        assert got["lbhost_cached_prompt_tokens_total"] == 8
        assert got["lbhost_prompt_tokens_total"] > 10
        assert got["lbhost_time_to_first_token_seconds_count"] == 2
        assert got["lbhost_inter_token_seconds_count"] == 8
        assert got["lbhost_queue_wait_seconds_count"] == 2
        assert got["lbhost_request_seconds_count"] == 2
        assert got["lbhost_queue_depth"] == 0
        assert got["lbhost_queue_limit"] == 256


@pytest.mark.usefixtures("always_fresh")
async def test_the_same_numbers_have_vllms_names_too() -> None:
    async with running_gateway(script=Script(cached_tokens=4)) as g:
        await g.chat()
        await g.chat(stream=True, max_tokens=3)
        text = (await g.client.get("/metrics")).text
        got = {
            sample.name: sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("vllm:") and not sample.name.endswith("_bucket")
        }
        for sample in got.values():
            assert (sample.labels["engine"], sample.labels["model_name"]) == ("0", "toy")
        ours = await samples(g)
        for theirs, name in (
            ("prompt_tokens_total", "lbhost_prompt_tokens_total"),
            ("generation_tokens_total", "lbhost_completion_tokens_total"),
            ("prefix_cache_hits_total", "lbhost_cached_prompt_tokens_total"),
            ("time_to_first_token_seconds_sum", "lbhost_time_to_first_token_seconds_sum"),
            ("inter_token_latency_seconds_count", "lbhost_inter_token_seconds_count"),
            ("e2e_request_latency_seconds_count", "lbhost_request_seconds_count"),
            ("request_queue_time_seconds_sum", "lbhost_queue_wait_seconds_sum"),
        ):
            assert got[f"vllm:{theirs}"].value == ours[name] > 0
        assert got["vllm:request_time_per_output_token_seconds_count"].value == 2
        assert got["vllm:request_prefill_time_seconds_count"].value == 2
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            assert got[f"vllm:{gauge}"].value == 0
        assert ours["lbhost_requests_finished_total{stop}"] == 1
        assert ours["lbhost_requests_finished_total{length}"] == 1
        buckets = [
            line for line in text.splitlines() if "vllm:time_to_first_token_seconds_bucket" in line
        ]
        assert any('le="+Inf"' in line for line in buckets)


@pytest.mark.usefixtures("always_fresh")
async def test_workers_show_state_share_temperature_and_restarts() -> None:
    async with running_gateway(workers=2) as g:
        g.page.cores.write(0, CoreRow(sampled_ns=1, idle=0.25, others=0.5, temp_c=60.0))
        g.page.host.write(0, HostRow(sampled_ns=1))
        g.workers[1].set_state(WorkerState.DRAINING, cpus="1")

        async def shown() -> dict[str, float]:
            # Copies of the rows are a few ms old, those of the two workers not equally.
            got = await samples(g)
            while (
                got.get("lbhost_worker_temperature_celsius{0}") != 60.0
                or got["lbhost_worker_state{draining,1}"] != 1
            ):
                await asyncio.sleep(0.02)
                got = await samples(g)
            return got

        async with asyncio.timeout(60):
            got = await shown()
        assert got["lbhost_worker_state{ready,0}"] == 1
        assert got["lbhost_worker_state{draining,0}"] == 0
        assert got["lbhost_worker_state{draining,1}"] == 1
        assert got["lbhost_worker_share_ratio{0}"] == 0.5
        assert got["lbhost_worker_core_busy_ratio{0}"] == 0.75
        assert got["lbhost_worker_core_others_ratio{0}"] == 0.5
        assert got["lbhost_worker_restarts_total{0}"] == 0
        assert got["lbhost_worker_health_kills_total{0}"] == 0
        assert got["lbhost_worker_kv_capacity_tokens{0}"] == 4 * 2048
        # Core 1 has no sensor: no sample at all, rather than a 0.
        assert "lbhost_worker_temperature_celsius{1}" not in got


async def test_the_text_is_made_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exposition.TEXT_FRESH_S == 1.0
    monkeypatch.setattr(exposition, "TEXT_FRESH_S", 3600.0)  # however slow the box is
    async with running_gateway() as g:
        first = (await g.client.get("/metrics")).text
        await g.chat()
        assert (await g.client.get("/metrics")).text == first


async def test_the_board_hears_of_traffic() -> None:
    async with running_gateway(script=Script(answer=lambda _: ["a"] * 8)) as g:
        (fake,) = g.workers
        fake.hold()
        request = asyncio.create_task(g.chat())

        def row() -> GatewayRow:
            read = g.page.gateway.read(0)
            assert read is not None
            return read

        def worker() -> tuple[int, int, int]:
            read = g.page.traffic.read(0)
            assert read is not None
            return read.in_flight, read.requests, read.tokens_out

        await until(lambda: worker() == (1, 1, 0), "the worker's row shows the request")
        assert row().in_flight == 1
        fake.release()
        await request
        await until(lambda: worker() == (0, 1, 8), "the worker's row shows the answer")
        await until(lambda: row().requests == 1, "the gateway's row shows it")
        await until(lambda: row().ttft_p50_s is not None, "and its time to first token")
        traffic = g.page.traffic.read(0)
        assert traffic is not None
        assert traffic.epoch == 1
        assert traffic.ttft_s is not None
        assert traffic.tokens_in > 0
        assert row().queue_limit == 256
        await until(lambda: row().tokens_s == 0.0, "rates fall back to 0")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (None, "ok"),
        (ContextLengthError("x"), "invalid"),
        (QueueFullError("x"), "queue_full"),
        (NotReadyError("x"), "not_ready"),
        (DeadlineError("x"), "timeout"),
        (WorkerLostError("x"), "worker_lost"),
        (EngineError("x"), "engine_error"),
        (LbhostError("x"), "error"),
    ],
)
async def test_every_error_has_an_outcome(error: LbhostError | None, name: str) -> None:
    assert outcome(error) == name
    assert name in OUTCOMES


class Watched:
    """A recorder on a clock of its own, and the board that its figures are written on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.page = Board.create(workers=2, cores=1, gpus=0)
        settings = Settings()
        self.sessions = Sessions(Readings(self.page, settings, clock_ns=self.ns), 4)
        self.metrics, total = Metrics(), Figures()
        self.recorder = self.traffic = Recorder(self.metrics, total, clock=lambda: self.now)
        self.states = Plane(Purse(0), self.sessions)
        self.load, self.queue_limit = self, settings.queue_size
        self.number, self.name, self.purpose = 0, "toy", GENERATES
        self.writer = BoardWriter(self.page, [self], total, Purse(0), clock=lambda: self.now)
        self.in_flight = 0
        self.queue_depth = 0
        self.oldest_wait_s: float | None = None
        self.next_start_s: float | None = None
        self.work_s = self.backlog_s = 0.0

    def ns(self) -> int:
        return int(self.now * 1e9)

    def later(self, seconds: float) -> GatewayRow:
        """The gateway's row, so much later."""
        for _ in range(round(seconds / WRITE_S)):
            self.now += WRITE_S
            self.writer.write(0)
        row = self.page.gateway.read(0)
        assert row is not None
        return row

    def worker(self) -> TrafficRow:
        row = self.page.traffic.read(0)
        assert row is not None
        return row

    def computed(self, tokens: int, epoch: int = 1) -> None:
        """Worker 0's process has computed so many prompt tokens by now."""
        self.page.identity.write(0, IdentityRow(present=True, epoch=epoch, cpus=(0,), slots=4))
        self.page.progress.write(0, ProgressRow(epoch=epoch, prompt_tokens=tokens))


@pytest.fixture
def figures() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.page.close()


async def test_a_prompt_shows_while_it_is_computed_and_no_longer(figures: Watched) -> None:
    figures.in_flight = 1
    figures.computed(0)
    figures.later(5)
    for done in range(1, 11):
        figures.computed(done * 500)
        row = figures.later(1)
    assert row.prompt_tokens_s == pytest.approx(500.0, rel=0.1)
    assert row.tokens_s == 0.0
    assert figures.worker().prompt_tokens_s == pytest.approx(500.0, rel=0.1)
    figures.in_flight = 0
    row = figures.later(10)
    assert (row.prompt_tokens_s, figures.worker().prompt_tokens_s) == (0.0, 0.0)


async def test_a_models_row_says_what_came_for_it_and_what_waits(figures: Watched) -> None:
    figures.in_flight, figures.queue_depth, figures.oldest_wait_s = 2, 3, 1.5
    figures.work_s, figures.backlog_s = 40.0, 7.5
    figures.later(1)
    row = figures.page.models.read(0)
    assert row is not None
    assert (row.in_flight, row.queue_depth, row.oldest_wait_s) == (2, 3, 1.5)
    assert (row.work_s, row.backlog_s) == (40.0, 7.5)


async def test_a_restarted_worker_counts_its_prompt_tokens_anew(figures: Watched) -> None:
    figures.in_flight = 1
    figures.computed(10_000)
    figures.later(10)
    figures.computed(300, epoch=2)
    row = figures.later(0.5)
    assert 0.0 < row.prompt_tokens_s <= 300.0


async def test_the_error_rate_is_of_the_last_minute_and_of_what_was_taken_in(
    figures: Watched,
) -> None:
    assert figures.later(1).error_rate is None
    for what in ("ok", "cancelled", "ok", "engine_error"):
        figures.recorder.count(what)
    figures.recorder.count("queue_full")
    figures.recorder.count("invalid")
    figures.recorder.refused(UnauthorizedError("who?"))
    assert figures.later(1).error_rate == 0.25
    assert figures.later(70).error_rate is None


async def test_outcomes_are_counted_under_labels_that_are_known(figures: Watched) -> None:
    figures.recorder.count("invalid")
    figures.recorder.count("not_ready")
    figures.recorder.count("whatever a stranger thinks of")
    family = next(f for f in figures.metrics.registry.collect() if f.name == "lbhost_requests")
    counted = {sample.labels["outcome"]: sample.value for sample in family.samples}
    assert counted == {"invalid": 1.0, "not_ready": 1.0, "error": 1.0}
    row = figures.later(1)
    assert (row.requests, row.rejected, row.errors) == (3, 1, 1)


async def test_the_oldest_wait_is_on_the_board(figures: Watched) -> None:
    figures.queue_depth, figures.oldest_wait_s = 1, 2.5
    assert figures.later(1).oldest_wait_s == 2.5
    figures.queue_depth, figures.oldest_wait_s = 0, None
    assert figures.later(1).oldest_wait_s is None


async def test_the_p95_to_the_first_token_is_told_by_what_it_was_spent_on() -> None:
    async with running_gateway(script=Script(prefill_s=0.05, step_s=0.001)) as g:
        await g.chat()

        def row() -> GatewayRow:
            found = g.page.gateway.read(0)
            assert found is not None
            return found

        await until(lambda: row().ttft_p95_s is not None, "its time to first token shows")
        now = row()
        waited, prefilled = now.ttft_p95_queue_s, now.ttft_p95_prefill_s
        assert waited is not None
        assert prefilled is not None
        assert prefilled >= 0.05 - FIRST_STEP_S
        assert now.ttft_p95_step_s == FIRST_STEP_S
        assert now.ttft_p95_s == pytest.approx(waited + prefilled + now.ttft_p95_step_s)


async def test_a_workers_latencies_end_with_its_process() -> None:
    async with running_gateway() as g:
        await g.chat()

        def ttft() -> float | None:
            row = g.page.traffic.read(0)
            assert row is not None
            return row.ttft_s

        await until(lambda: ttft() is not None, "its time to first token shows")
        g.workers[0].die()
        await g.add(0, epoch=2)
        await until(lambda: ttft() is None, "the new process has none yet")


@pytest.mark.usefixtures("always_fresh")
async def test_all_values_are_finite() -> None:
    async with running_gateway() as g:
        assert all(math.isfinite(value) for value in (await samples(g)).values())
