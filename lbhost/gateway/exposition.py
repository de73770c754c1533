"""The text of /metrics: every model's metrics and the gateway's own, under one name each.

With one model its series are as they are. With several each series says which model's it is, in
the label `model`; those of the whole gateway, and of requests that named no model, have none.

Who asks may see only a part: some models, some adapters, one API key.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

TEXT_FRESH_S = 1.0
"""Making the text takes tens of milliseconds with many workers: one copy serves for so long."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LABEL = "model"

_NAMED_ALREADY = "vllm:"
"""What begins so has the model's name in a label that others have given it."""


_MOST_TEXTS = 64
"""Kept, for those who see different things."""


class View(msgspec.Struct, frozen=True):
    """What somebody may see."""

    models: frozenset[str]
    """By their own names."""
    adapters: frozenset[str]
    key: str
    """The name of the API key that sees no other's figures."""

    def shows(self, sample: Sample) -> bool:
        """Whether a series of one of its models, or of the gateway as a whole, is in it."""
        labels = sample.labels
        adapter, key = labels.get("adapter"), labels.get("key")
        return (adapter is None or adapter in self.adapters) and (key is None or key == self.key)


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
        self._models = tuple(models)
        self._own = own
        self._several = several
        self._texts: dict[View | None, tuple[float, bytes]] = {}
        """When each was made, the oldest first."""

    def text(self, view: View | None = None) -> bytes:
        """At most TEXT_FRESH_S old. `view`: who asks sees no more than that; None: everything."""
        now = time.monotonic()
        made, text = self._texts.get(view, (-TEXT_FRESH_S, b""))
        if now - made < TEXT_FRESH_S:
            return text
        registry = CollectorRegistry()
        registry.register(self._merged(view))
        text = generate_latest(registry)
        self._texts.pop(view, None)
        while len(self._texts) >= _MOST_TEXTS:
            del self._texts[next(iter(self._texts))]
        self._texts[view] = now, text
        return text

    def _merged(self, view: View | None) -> _Merged:
        seen = [(n, one) for n, one in self._models if view is None or n in view.models]
        return _Merged([(n if self._several else "", one) for n, one in seen], self._own, view)


class _Merged(Collector):
    """Families of one name become one: the format has room for no second."""

    def __init__(
        self,
        models: Sequence[tuple[str, CollectorRegistry]],
        own: CollectorRegistry,
        view: View | None,
    ) -> None:
        self._sources = [*models, ("", own)]
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view = self._view
        merged: dict[str, Metric] = {}
        for model, registry in self._sources:
            for family in registry.collect():
                whole = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                named = model and not family.name.startswith(_NAMED_ALREADY)
                labels = {LABEL: model} if named else {}
                for sample in family.samples:
                    if view is None or view.shows(sample):
                        labelled = sample._replace(labels={**labels, **sample.labels})
                        whole.samples.append(labelled)
        yield from merged.values()
