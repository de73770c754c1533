"""Our metrics once more under the names that vLLM gives them, for dashboards made for it.

Only where the meaning is the same. Owns no numbers: reads the counters of metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbhost.gateway.metrics import Load, Metrics
from lbhost.gateway.scheduling.sessions import Sessions


class VllmNames(Collector):
    """Names as of vLLM 0.11: `vllm:time_to_first_token_seconds` and the like."""

    def __init__(self, metrics: Metrics, sessions: Sessions, load: Load, model: str) -> None:
        self._sessions = sessions
        self._load = load
        self._labels = {"engine": "0", "model_name": model}
        self._named: tuple[tuple[str, Collector], ...] = (
            ("prompt_tokens", metrics.prompt_tokens),
            ("generation_tokens", metrics.completion_tokens),
            ("prefix_cache_queries", metrics.prompt_tokens),
            ("prefix_cache_hits", metrics.cached_tokens),
            ("request_success", metrics.finished),
            ("time_to_first_token_seconds", metrics.ttft),
            ("inter_token_latency_seconds", metrics.inter_token),
            ("request_time_per_output_token_seconds", metrics.output_token),
            ("request_queue_time_seconds", metrics.queue_wait),
            ("request_prefill_time_seconds", metrics.prefill_time),
            ("request_decode_time_seconds", metrics.decode_time),
            ("e2e_request_latency_seconds", metrics.request_time),
        )

    def collect(self) -> Iterator[Metric]:
        readings = [reading for _, reading in self._sessions.readings.present()]
        room = sum(reading.progress.kv_total for reading in readings)
        used = sum(reading.progress.kv_used for reading in readings)
        for name, text, value in (
            ("num_requests_running", "Requests given to workers", self._load.in_flight),
            ("num_requests_waiting", "Requests waiting for a worker", self._load.queue_depth),
            ("kv_cache_usage_perc", "Part of the KV cells in use", used / room if room else 0.0),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge
        for name, source in self._named:
            yield from self._renamed(f"vllm:{name}", source)

    def _renamed(self, name: str, source: Collector) -> Iterator[Metric]:
        for ours in source.collect():
            theirs = Metric(name, ours.documentation, ours.type)
            for sample in ours.samples:
                ending = sample.name.removeprefix(ours.name)
                theirs.add_sample(name + ending, {**self._labels, **sample.labels}, sample.value)
            yield theirs
