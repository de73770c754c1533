"""A model's Prometheus metrics; their text is made in exposition.py.

Owns the counters and histograms; the gauges are read from the board and the dispatcher when
somebody asks. Names carry units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbhost import board
from lbhost.gateway.scheduling.accuracy import Accuracy
from lbhost.gateway.scheduling.sessions import Sessions

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0)
_INTER_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 5.0)
_QUEUE = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_REQUEST = (0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class Load(Protocol):
    """What is asked of the dispatcher and the server."""

    @property
    def queue_depth(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def oldest_wait_s(self) -> float | None: ...
    @property
    def next_start_s(self) -> float | None: ...
    @property
    def work_s(self) -> float: ...
    @property
    def backlog_s(self) -> float: ...


class Metrics:
    """All counters of one model but those of recorder.Answers."""

    def __init__(self) -> None:
        # A time stamp beside every counter and histogram doubles the text for nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        registry = self.registry
        self.retries = Counter(
            "lbhost_retries", "Requests that lost their worker and went on", registry=registry
        )
        self.moved = Counter(
            "lbhost_moved",
            "Requests that their worker gave back and that went on, by why",
            ["reason"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "lbhost_prompt_tokens", "Prompt tokens of ended requests", registry=registry
        )
        self.cached_tokens = Counter(
            "lbhost_cached_prompt_tokens", "Those of them reused from a cache", registry=registry
        )
        self.completion_tokens = Counter(
            "lbhost_completion_tokens", "Tokens generated", registry=registry
        )
        self.adapter_answers = Counter(
            "lbhost_adapter_answers",
            "Answers generated with a LoRA adapter",
            ["adapter"],
            registry=registry,
        )
        self.adapter_tokens = Counter(
            "lbhost_adapter_completion_tokens",
            "Tokens of these answers",
            ["adapter"],
            registry=registry,
        )
        self.inputs = Counter(
            "lbhost_inputs",
            "Texts that were embedded and documents that were ranked, by workers",
            registry=registry,
        )
        self.ttft = Histogram(
            "lbhost_time_to_first_token_seconds",
            "From arrival to the first token",
            buckets=_TTFT,
            registry=registry,
        )
        self.inter_token = Histogram(
            "lbhost_inter_token_seconds",
            "Between two steps of one sequence",
            buckets=_INTER_TOKEN,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "lbhost_queue_wait_seconds",
            "From arrival to being given to a worker",
            buckets=_QUEUE,
            registry=registry,
        )
        self.request_time = Histogram(
            "lbhost_request_seconds",
            "From arrival to the end, of answered requests",
            buckets=_REQUEST,
            registry=registry,
        )
        self.finished = Counter(
            "lbhost_requests_finished",
            "Requests that were answered in full, by why the answer ended",
            ["finished_reason"],
            registry=registry,
        )
        self.output_token = Histogram(
            "lbhost_time_per_output_token_seconds",
            "Mean time between two tokens of an answered request",
            buckets=_INTER_TOKEN,
            registry=registry,
        )
        self.prefill_time = Histogram(
            "lbhost_request_prefill_seconds",
            "What answered requests' prompts took in the worker",
            buckets=_REQUEST,
            registry=registry,
        )
        self.decode_time = Histogram(
            "lbhost_request_decode_seconds",
            "From answered requests' first token to the last",
            buckets=_REQUEST,
            registry=registry,
        )
        self.helper_restarts = Counter(
            "lbhost_prompt_helper_restarts", "Prompt helpers started again", registry=registry
        )
        self.helper_jobs = Counter(
            "lbhost_prompt_helper_jobs",
            "Long bodies given to helpers, by how it ended",
            ["outcome"],
            registry=registry,
        )
        self.helper_time = Histogram(
            "lbhost_prompt_helper_seconds",
            "What a long body took in a helper",
            buckets=_QUEUE,
            registry=registry,
        )


class BoardCollector(Collector):
    """Gauges: what gateway and workers are like at this moment."""

    def __init__(self, sessions: Sessions, load: Load, queue_limit: Callable[[], int]) -> None:
        self._sessions = sessions
        self._load = load
        self._queue_limit = queue_limit

    def collect(self) -> Iterator[Metric]:
        for name, text, value in (
            ("queue_depth", "Requests waiting for a worker", self._load.queue_depth),
            ("queue_limit", "Requests that may wait", self._queue_limit()),
            ("requests_in_flight", "Requests given to workers", self._load.in_flight),
        ):
            gauge = GaugeMetricFamily(f"lbhost_{name}", text)
            gauge.add_metric([], value)
            yield gauge
        gauge = GaugeMetricFamily("lbhost_queue_oldest_wait_seconds", "Of the oldest that waits")
        gauge.add_metric([], self._load.oldest_wait_s or 0.0)
        yield gauge
        yield from self._workers()

    def _workers(self) -> Iterator[Metric]:
        present = self._sessions.readings.present()
        state = GaugeMetricFamily(
            "lbhost_worker_state", "1 for the state that it is in", labels=["worker", "state"]
        )
        for index, reading in present:
            for known in board.WorkerState:
                is_in = float(reading.identity.state is known)
                state.add_metric([str(index), known.name.lower()], is_in)
        yield state
        gauges: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for index, _ in present:
            for name, text, value in self._of(index):
                family = gauges.get(name)
                if family is None:
                    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                    family = gauges[name] = kind(f"lbhost_worker_{name}", text, labels=["worker"])
                if value is not None:
                    family.add_metric([str(index)], value)
        yield from gauges.values()

    def _of(self, index: int) -> Iterator[tuple[str, str, float | None]]:
        """Name, help and value of a worker's metrics; None where the machine does not say."""
        reading = self._sessions.readings.worker(index)
        session = self._sessions.current(index)
        if reading is None:
            return
        identity, progress = reading.identity, reading.progress
        tally = self._sessions.tally(index)
        yield "slots", "Sequences it runs at once", identity.slots
        yield "slots_busy", "Of them busy", progress.slots_busy
        yield "in_flight", "Requests given to it", len(session.attempts) if session else 0
        yield "prefill_pending_tokens", "Prompt tokens to compute", progress.prefill_pending
        yield "kv_used_tokens", "KV cells in use", progress.kv_used
        yield "kv_capacity_tokens", "KV cells", progress.kv_total
        yield "resident_memory_bytes", "Resident set", progress.rss_bytes
        yield "share_ratio", "What the hardware leaves to it", reading.share
        busy = None if reading.idle is None else 1.0 - reading.idle
        yield "core_busy_ratio", "How busy its cores or its GPU are", busy
        yield "core_others_ratio", "Used by others of its cores", reading.others
        yield "temperature_celsius", "Of its hottest core or its GPU", reading.temp_c
        computed = progress.prompt_tokens
        yield "prompt_tokens_computed_total", "Prompt tokens this process computed", computed
        yield "steps_total", "Engine steps of this process", progress.steps
        yield "wide_steps_total", "Of them on lent cores too", progress.wide_steps
        yield "lent_cores", "Cores that it computes on beside its own", len(progress.lent)
        switches = progress.adapter_switches
        yield "adapter_switches_total", "Times this process changed the LoRA adapter", switches
        yield "restarts_total", "Times it was started again", identity.restarts
        yield "health_kills_total", "Times it was killed for hanging", identity.health_kills
        over = identity.memory_restarts
        yield "memory_restarts_total", "Times it was replaced for its memory limit", over
        yield "requests_total", "Requests given to it", tally.requests
        yield "completion_tokens_total", "Tokens it generated", tally.tokens_out
        yield "errors_total", "Requests it failed or died with", tally.errors
        yield "timeouts_total", "Requests it did not finish in time", tally.timeouts
        yield from _accuracy(self._sessions.accuracy(index))


def _accuracy(accuracy: Accuracy) -> Iterator[tuple[str, str, float | None]]:
    """How good the router's predictions for a worker were."""
    for what, text, errors in (
        ("ttft", "the time to the first token", accuracy.ttft),
        ("completion", "the time to the last token", accuracy.completion),
    ):
        name = f"{what}_prediction"
        yield f"{name}_error_ratio", f"Median relative error's size of {text}", errors.absolute
        yield f"{name}_bias_ratio", f"Median relative error of {text}", errors.signed
    now = time.monotonic()
    for when, factors in (("narrow", accuracy.narrow), ("wide", accuracy.wide)):
        text = "with lent cores" if when == "wide" else "without lent cores"
        yield (
            f"{when}_ttft_factor",
            f"Corrects the time to the first token {text}",
            factors.ttft.at(now),
        )
        yield (
            f"{when}_output_factor",
            f"Corrects the time between tokens {text}",
            factors.output.at(now),
        )
