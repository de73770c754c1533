"""The text of /metrics: every model's metrics and the gateway's own, under one name each.

With one model its series are as they are. With several each series says which model's it is, in
the label `model`; those of the whole gateway, and of requests that named no model, have none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

TEXT_FRESH_S = 1.0
"""Making the text takes tens of milliseconds with many workers: one copy serves for so long."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LABEL = "model"

_NAMED_ALREADY = "vllm:"
"""What begins so has the model's name in a label that others have given it."""


class Exposition:
    """See the module.

    Args:
        models: each with its name.
        own: of the gateway as a whole.
        several: whether series say which model's they are.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, CollectorRegistry]],
        own: CollectorRegistry,
        *,
        several: bool,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(
            _Merged(models if several else [("", one) for _, one in models], own)
        )
        self._text = b""
        self._made = -TEXT_FRESH_S

    def text(self) -> bytes:
        """At most TEXT_FRESH_S old."""
        now = time.monotonic()
        if now - self._made >= TEXT_FRESH_S:
            self._text = generate_latest(self._registry)
            self._made = now
        return self._text


class _Merged(Collector):
    """Families of one name become one: the format has room for no second."""

    def __init__(
        self, models: Sequence[tuple[str, CollectorRegistry]], own: CollectorRegistry
    ) -> None:
        self._sources = [*models, ("", own)]

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for model, registry in self._sources:
            for family in registry.collect():
                whole = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                named = model and not family.name.startswith(_NAMED_ALREADY)
                labels = {LABEL: model} if named else {}
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels={**labels, **sample.labels}))
        yield from merged.values()
