"""What each named API key has used, as metrics. Their labels are the names in the keys file.

A key that is taken out of the file takes its figures with it: labels stay bounded.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbhost.gateway.keyring import Keyring


class KeyMetrics(Collector):
    """Reads the accounts when somebody asks."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "lbhost_key_requests", "Requests within the key's rate", labels=["key"]
        )
        limited = CounterMetricFamily(
            "lbhost_key_limited", "Requests refused for one of the key's limits", labels=["key"]
        )
        tokens = CounterMetricFamily(
            "lbhost_key_tokens", "Tokens of the key's ended requests", labels=["key", "kind"]
        )
        running = GaugeMetricFamily(
            "lbhost_key_running", "The key's answers that are being generated", labels=["key"]
        )
        for account in self._keyring.named:
            name = account.name
            requests.add_metric([name], account.requests)
            limited.add_metric([name], account.limited)
            tokens.add_metric([name, "prompt"], account.prompt_tokens)
            tokens.add_metric([name, "completion"], account.completion_tokens)
            running.add_metric([name], account.running)
        yield from (requests, limited, tokens, running)
