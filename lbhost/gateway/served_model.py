"""All that the gateway has for one model, from a request's body to its workers' links.

Owns the model's vocabulary, helpers, queue, sessions, KV states and metrics. What models share
(the board's readings, cores that are lent, keys, the cache of vectors) is handed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from lbhost import adapters, control
from lbhost.adapters import NONE, AdapterFile
from lbhost.config import Settings
from lbhost.gateway import vector_cache
from lbhost.gateway.metrics import BoardCollector, Metrics
from lbhost.gateway.prompt import helper_process
from lbhost.gateway.prompt.helper_messages import Setup
from lbhost.gateway.prompt.helpers import Helpers
from lbhost.gateway.prompt.intake import Intake
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.prompt.prompter import Vocabulary
from lbhost.gateway.recorder import Figures, Recorder
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.lender import Lender
from lbhost.gateway.scheduling.neighbours import Neighbours
from lbhost.gateway.scheduling.readings import ModelReadings, Readings
from lbhost.gateway.scheduling.sessions import Sessions
from lbhost.gateway.scheduling.sleep import Sleep
from lbhost.gateway.states.collector import StatesCollector
from lbhost.gateway.states.disk import Disk
from lbhost.gateway.states.disk_thread import DiskThread
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse
from lbhost.gateway.vllm_names import VllmNames
from lbhost.purpose import Purpose


class Common(msgspec.Struct, frozen=True):
    """What all models of a gateway share."""

    readings: Readings
    total: Figures
    """Of all models together."""
    purse: Purse
    neighbours: Neighbours | None
    """None: there is but one model."""
    lender: Lender
    wake: Callable[[int], None]
    """Tells the supervisor that a request has come for a model that sleeps, by its number."""
    most_states: int
    """That each model may keep: every one holds a descriptor."""
    helper_command: Sequence[str] = helper_process.COMMAND


class Variant(msgspec.Struct, frozen=True, eq=False):
    """What a request may ask for: a model as it is, or with one of its LoRA adapters."""

    model: ServedModel
    name: str
    aliases: tuple[str, ...] = ()
    number: int = NONE
    """The adapter's; see adapters.py."""
    adapter: AdapterFile | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All that it may be asked for by."""
        return (self.name, *self.aliases)

    @property
    def purpose(self) -> Purpose:
        return self.model.purpose

    def adapted(self, taken: Taken) -> Taken:
        """The request's work as it is done with the adapter, which shares no KV with other work."""
        if self.adapter is None:
            return taken
        works = tuple(
            msgspec.structs.replace(
                work,
                adapter=self.number,
                adapter_name=self.name,
                scope=self.adapter.scope(work.scope),
            )
            for work in taken.works
        )
        return msgspec.structs.replace(taken, works=works)


class ServedModel:
    """One model. Lives on the gateway's event loop."""

    def __init__(
        self, number: int, configure: control.Configure, vocab: Vocabulary, common: Common
    ) -> None:
        """`number`: its place among the models."""
        settings: Settings = configure.settings
        self.number = number
        self.name = configure.model_alias
        self.aliases = configure.aliases
        numbered = zip(adapters.numbers(configure.adapters), configure.adapters, strict=True)
        self.variants = (
            Variant(self, self.name, self.aliases),
            *(Variant(self, one.name, number=at, adapter=one) for at, one in numbered),
        )
        """It as it is, and with each adapter."""
        self.purpose = configure.purpose
        self.n_ctx = configure.n_ctx
        self.vocab = vocab
        self.vector_identity = vector_cache.identity(configure)
        self.counters = Metrics()
        self.sessions = Sessions(
            ModelReadings(common.readings, number),
            settings.slots,
            common.neighbours,
            Sleep(partial(common.readings.asleep, number), partial(common.wake, number)),
        )
        if common.neighbours is not None:
            common.neighbours.add(self.sessions)
        common.lender.add(self.sessions)
        self.traffic = Recorder(self.counters, common.total)
        self.states = Plane(
            common.purse if self.purpose.generates else Purse(0),
            self.sessions,
            disk=_disk(settings) if self.purpose.generates else None,
            most_entries=common.most_states,
        )
        self.dispatcher = Dispatcher(
            settings, self.sessions, self.traffic, states=self.states, lender=common.lender
        )
        self.helpers = Helpers(
            _setup(configure),
            count=settings.prompt_helpers,
            wait_s=settings.queue_timeout_s,
            counters=self.counters,
            command=common.helper_command,
        )
        others = _other_names(configure)
        self.intake = Intake(vocab, self.n_ctx, self.name, self.helpers, self.purpose, others)
        self.preparing: Counter[str] = Counter()
        """Requests that are read, by the client."""
        register = self.counters.registry.register
        register(BoardCollector(self.sessions, self.dispatcher, lambda: self.settings.queue_size))
        register(VllmNames(self.counters, self.sessions, self.dispatcher, self.name))
        register(StatesCollector(self.states))
        self.settings = settings

    @property
    def load(self) -> Dispatcher:
        """Whose queue depth and requests in flight are the model's."""
        return self.dispatcher

    @property
    def queue_limit(self) -> int:
        return self.settings.queue_size

    def __repr__(self) -> str:
        return f"ServedModel({self.name!r}, {self.dispatcher!r})"

    def piece(self, token: int) -> bytes:
        """What a token stands for, special ones written out."""
        return self.vocab.piece(token, special=True)

    def adopt(self, settings: Settings) -> None:
        """Other settings from now on; nothing that runs is disturbed."""
        self.settings = settings
        self.helpers.wait_s = settings.queue_timeout_s
        self.dispatcher.adopt(settings)

    async def close(self) -> None:
        """Drop links and helpers."""
        self.dispatcher.close()
        await self.helpers.close()


def _setup(configure: control.Configure) -> Setup:
    settings = configure.settings
    return Setup(
        model_path=configure.model_path,
        n_ctx=configure.n_ctx,
        alias=configure.model_alias,
        nice=settings.nice,
        log_format=settings.log_format,
        log_level=settings.log_level,
        purpose=configure.purpose,
        aliases=_other_names(configure),
    )


def _other_names(configure: control.Configure) -> tuple[str, ...]:
    """All that the model may be asked for by, with adapters or without, beside its own name."""
    return (*configure.aliases, *(adapter.name for adapter in configure.adapters))


def _disk(settings: Settings) -> DiskThread | None:
    """Where states are kept; the supervisor has made sure of the folder."""
    if settings.state_dir is None or settings.state_cache_bytes == 0:
        return None
    return DiskThread(Disk(Path(settings.state_dir), settings.state_dir_bytes))
