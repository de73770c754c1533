"""Every setting: what it is, its default, and what it may be. Where values come from is
setting_sources.py's matter.
"""

from __future__ import annotations

from typing import Annotated, get_type_hints

import msgspec
from msgspec import Meta

from lbhost.adapters import Adapter
from lbhost.choices import FlashAttention, LogFormat, LogLevel, Policy
from lbhost.model_entry import ModelEntry
from lbhost.purpose import KindChoice, PoolingChoice
from lbhost.setting_values import Count, Names, Seconds, names, require_name, says, size

MOST_WORKERS = 1024
DEFAULT_WARM_C, DEFAULT_HOT_C = 80.0, 95.0
"""A chip's own limits stand in for these, and for nothing that somebody chose."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of lbhost's settings. A field's name is its key in lbhost.toml.

    `--like-this` is its flag and `LBHOST_LIKE_THIS` its environment variable.
    """

    model: Annotated[
        str,
        Meta(min_length=1),
        says(
            "GGUF file, `starter` (from the starter extra), hf:REPO[:FILE] (needs the hub "
            "extra), or ollama:NAME[:TAG]; `lbhost models` lists what is here."
        ),
    ] = "starter"
    alias: Annotated[
        str | None,
        says("Name that clients use for the model; default: the file's name without .gguf."),
    ] = None
    aliases: Annotated[
        Names, says("More names that clients may use for the model, comma-separated.")
    ] = ""
    kind: Annotated[
        KindChoice,
        says("What the model is served for; auto: what its file says (chat if it says nothing)."),
    ] = KindChoice.AUTO
    pooling: Annotated[
        PoolingChoice,
        says("How an embedding model's token vectors become one; auto: as its file says, or mean."),
    ] = PoolingChoice.AUTO
    adapters: Annotated[
        tuple[Adapter, ...],
        says(
            "LoRA adapters of the model, NAME=PATH[:SCALE], comma-separated; a request whose "
            "`model` is NAME is answered with that one."
        ),
    ] = ()
    host: Annotated[str, Meta(min_length=1), says("Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535), says("TCP port to listen on; 0 picks a free one.")
    ] = 8080
    api_key: Annotated[
        Annotated[str, Meta(min_length=8, max_length=512)] | None,
        says(
            "If set, requests must carry `Authorization: Bearer KEY` or `x-api-key: KEY` (health "
            "checks need not)."
        ),
    ] = None
    keys_file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        says(
            "File of named API keys with their limits, which `lbhost keys new NAME` adds to; read "
            "again when it changes."
        ),
    ] = None
    insecure_no_key: Annotated[
        bool,
        says(
            "Listen beyond this machine although no API key is set: whoever reaches the port may "
            "use the server."
        ),
    ] = False
    allowed_hosts: Annotated[
        Names,
        says(
            "Host names that requests may carry, comma-separated, beside addresses, localhost and "
            "--host; `*` allows any. Without it only servers on a loopback address check."
        ),
    ] = ""
    allowed_origins: Annotated[
        Names,
        says(
            "Origins of web pages that may use the server, comma-separated (https://app.example); "
            "`*` allows any. Pages of the server's own origin always may."
        ),
    ] = ""
    workers: Annotated[
        Count | str,
        says(
            "How many workers; `auto`: one per GPU, or else as many as the cores this process may "
            "use have room for."
        ),
    ] = "auto"
    min_workers: Annotated[
        Annotated[int, Meta(ge=0, le=1024)] | None,
        says(
            "With this or max_workers there are as many workers as the load needs, and at least so "
            "many. Default: 1, or 0 with idle_timeout."
        ),
    ] = None
    max_workers: Annotated[
        Count | None,
        says(
            "And at most so many; default: what workers says. A number there is how many there are "
            "at the start."
        ),
    ] = None
    idle_timeout_s: Annotated[
        float,
        Meta(ge=0, le=30 * 86400),
        says(
            "A model without a request for so long sleeps, unless min_workers is over 0: its "
            "workers go, and the next request brings one. 0: it never does."
        ),
    ] = 0.0
    idle_unload: Annotated[
        bool, says("A model that sleeps gives its weights up, too; waking it loads them again.")
    ] = False
    threads_per_worker: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        says(
            "CPU threads of each worker; more than one makes a worker span several cores. Default: "
            "1, or with --workers auto what was measured to be faster."
        ),
    ] = None
    probe: Annotated[
        bool,
        says(
            "Measure once, in some seconds, how many workers of how many threads suit this model "
            "and box, where neither --workers nor --threads-per-worker says. Wider workers get "
            "more slots in proportion."
        ),
    ] = True
    tuned: Annotated[
        bool, says("Use what `lbhost tune` has chosen for this model on this box, if it has.")
    ] = True
    flash_attention: Annotated[
        FlashAttention, says("Flash attention of CPU workers; auto: where it pays.")
    ] = FlashAttention.AUTO
    lend: Annotated[bool, says("Lend cores that no request needs to workers that have one.")] = True
    slots: Annotated[int, Meta(ge=1, le=64), says("Sequences that each worker runs at once.")] = 4
    ctx_size: Annotated[
        Annotated[int, Meta(ge=64, le=1_048_576)] | None,
        says("Tokens per slot, prompt and output together; default: what the memory allows."),
    ] = None
    state_cache: Annotated[
        int | str,
        says(
            "Memory for KV states, so that nothing is computed twice on this box: bytes, or with "
            "K, M or G; 0: none; auto: a quarter of what is free at the start, at most 8G."
        ),
    ] = "auto"
    embedding_cache: Annotated[
        int | str,
        says(
            "Disk that vectors of earlier requests may take, in ~/.cache/lbhost: bytes, or with K, "
            "M or G; 0: none are kept."
        ),
    ] = "1G"
    state_dir: Annotated[
        str | None,
        says(
            "Folder (mode 0700) that keeps KV states while no server runs, so that a restarted one "
            "knows what it had computed."
        ),
    ] = None
    state_dir_size: Annotated[
        int | str, says("What state_dir may take: bytes, or with K, M or G.")
    ] = "4G"
    memory_limit: Annotated[
        int | str,
        says(
            "Memory that each worker may have of its own, beside the weights that all share: "
            "bytes, or with K, M or G; none: no limit. One that is over it hands on its requests "
            "and is replaced."
        ),
    ] = "none"
    share_prefixes: Annotated[
        bool,
        says(
            "Let requests with different API keys go on from each other's prompts. Who knows a "
            "prompt can then tell by the time of the answer whether another key has sent it."
        ),
    ] = False
    policy: Annotated[Policy, says("How a request's worker is chosen.")] = Policy.COST
    runtime_dir: Annotated[
        str | None, says("Folder (mode 0700) for admin.sock; default under XDG_RUNTIME_DIR.")
    ] = None
    inter_token_target_ms: Annotated[
        int,
        Meta(ge=10, le=10_000),
        says(
            "Prefill is cut into chunks: time by which a step with running streams exceeds this is "
            "weighed against how long the others wait for their first tokens."
        ),
    ] = 150
    queue_size: Annotated[
        int,
        Meta(ge=1, le=100_000),
        says("Requests that may wait for a worker; one more is answered 429."),
    ] = 256
    queue_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000_000)] | None,
        says(
            "Tokens of prompts and expected answers that may wait for a worker, half of them flex "
            "ones; one request more is answered 429. Default: what the workers are measured to "
            "compute in --queue-timeout, and half as much again."
        ),
    ] = None
    prompt_helpers: Annotated[
        int, Meta(ge=1, le=16), says("Processes that parse and tokenise long prompts.")
    ] = 2
    queue_timeout_s: Annotated[
        Seconds,
        says(
            "How long a request may wait for a worker before it is answered 503; what would wait "
            "much longer is refused at once, with the time after which to come again. In a flood "
            "all that is taken waits about so long: where late answers are worth nothing, less. "
            "It does not run while a model wakes."
        ),
    ] = 60.0
    request_timeout_s: Annotated[
        Seconds, says("How long a request may take from arrival to its last token.")
    ] = 600.0
    shutdown_grace_s: Annotated[
        float,
        Meta(ge=0, le=86400),
        says("How long running requests may go on after SIGTERM or Ctrl-C."),
    ] = 30.0
    max_connections: Annotated[int, Meta(ge=1, le=100_000), says("Client connections at once.")] = (
        1024
    )
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30), says("Largest request body.")] = (
        4 * 1024 * 1024
    )
    max_header_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 20), says("Largest request line and headers together.")
    ] = 16 * 1024
    header_timeout_s: Annotated[
        Seconds, says("How long a client may take to send its headers.")
    ] = 10.0
    body_timeout_s: Annotated[Seconds, says("How long a client may take to send its body.")] = 30.0
    keep_alive_s: Annotated[Seconds, says("How long an idle connection stays open.")] = 75.0
    warm_c: Annotated[
        Annotated[float, Meta(ge=30, le=120)] | None,
        says(
            "Core temperature above which a worker gets less work; default: what the chip says, "
            f"else {DEFAULT_WARM_C:g}."
        ),
    ] = None
    hot_c: Annotated[
        Annotated[float, Meta(ge=31, le=125)] | None,
        says(
            "Core temperature at which a worker rests; default: what the chip says, "
            f"else {DEFAULT_HOT_C:g}. Set one of the two, and the chip's limits do not count."
        ),
    ] = None
    nice: Annotated[
        int,
        Meta(ge=0, le=19),
        says("Niceness of the workers, so that accepting and streaming never wait for a decode."),
    ] = 5
    restart_budget: Annotated[
        int,
        Meta(ge=1, le=1000),
        says("Restarts of one worker within restart_window_s; one more crash and it is FAILED."),
    ] = 5
    restart_window_s: Annotated[Seconds, says("See restart_budget.")] = 60.0
    log_format: Annotated[LogFormat, says("Text for people or JSON for machines.")] = LogFormat.AUTO
    log_level: Annotated[LogLevel, says("Least severe messages to write.")] = LogLevel.INFO
    models: Annotated[
        tuple[ModelEntry, ...],
        says("Several models instead of one: a table [[models]] of lbhost.toml for each."),
    ] = ()

    @property
    def threads(self) -> int:
        """CPU threads of each worker."""
        return self.threads_per_worker or 1

    @property
    def state_cache_bytes(self) -> int | None:
        """Bytes that KV states may take; None: auto."""
        if self.state_cache == "auto":
            return None
        return size("state_cache", str(self.state_cache), "'auto' or ")

    @property
    def embedding_cache_bytes(self) -> int:
        """Bytes that vectors may take."""
        return size("embedding_cache", str(self.embedding_cache))

    @property
    def state_dir_bytes(self) -> int:
        """Bytes that state_dir may take."""
        return size("state_dir_size", str(self.state_dir_size))

    @property
    def memory_limit_bytes(self) -> int | None:
        """Bytes that a worker may have of its own; None: no limit."""
        if self.memory_limit == "none":
            return None
        return size("memory_limit", str(self.memory_limit), "'none' or ")

    @property
    def autoscaled(self) -> bool:
        """Whether the load says how many workers there are."""
        bounds = (self.min_workers, self.max_workers)
        return bounds != (None, None) or self.idle_timeout_s > 0

    @property
    def least_workers(self) -> int:
        """Fewest workers; 0: the model may sleep."""
        if self.min_workers is None:
            return 0 if self.idle_timeout_s > 0 else 1
        return self.min_workers

    def served(self) -> tuple[Settings, ...]:
        """One effective Settings for each model that is served: these, with what its table of
        `models` says put in. Its `model` and `alias` are its own then, and its `models` empty.
        Without tables these are the only model's.

        Raises:
            ValueError: a table does not fit together with the rest.
        """
        return tuple(self._of(entry, i) for i, entry in enumerate(self.models)) or (self,)

    def _of(self, entry: ModelEntry, index: int) -> Settings:
        own = {key: getattr(entry, key) for key in ModelEntry.__struct_fields__ if key in KEYS}
        given = {key: value for key, value in own.items() if value is not None}
        try:
            return msgspec.structs.replace(
                self, **given, model=entry.path, alias=entry.name, models=()
            )
        except ValueError as error:
            raise ValueError(f"models[{index}]: {error}") from None

    def _require_different_names(self) -> None:
        """Raises ValueError if an adapter is called like the model, or is one of several that are
        called alike."""
        taken = {self.alias, *names(self.aliases)}
        for i, adapter in enumerate(self.adapters):
            if adapter.name in taken:
                raise ValueError(f"adapters[{i}].name: {adapter.name!r} is there already")
            taken.add(adapter.name)

    def __post_init__(self) -> None:
        # These raise ValueError.
        _ = self.state_cache_bytes, self.embedding_cache_bytes, self.state_dir_bytes
        _ = self.memory_limit_bytes
        if isinstance(self.workers, str) and self.workers != "auto":
            raise ValueError(f"workers is 'auto' or a number from 1 to 1024, not {self.workers!r}")
        least, most = self.min_workers or 0, self.max_workers or MOST_WORKERS
        if least > most:
            raise ValueError(f"min_workers ({least}) must not be above max_workers ({most})")
        if not isinstance(self.workers, str) and not least <= self.workers <= most:
            within = f"from min_workers to max_workers ({least} to {most})"
            raise ValueError(f"workers ({self.workers}) must be {within}")
        for name in (self.alias or "", *names(self.aliases)):
            require_name(name, "alias" if name == self.alias else "aliases")
        self._require_different_names()
        self.served()
        warm_c = DEFAULT_WARM_C if self.warm_c is None else self.warm_c
        hot_c = DEFAULT_HOT_C if self.hot_c is None else self.hot_c
        if hot_c <= warm_c:
            raise ValueError(f"hot_c ({hot_c:g}) must be above warm_c ({warm_c:g})")


KEYS: tuple[str, ...] = Settings.__struct_fields__
FLAGS: tuple[str, ...] = tuple(key for key in KEYS if key != "models")
"""Settings that are flags and environment variables too."""
OF_ONE_MODEL = ("model", "alias", "aliases", "adapters", "kind", "pooling")
"""What each table of `models` says for itself."""
SECRET = frozenset({"api_key"})
"""Settings whose value no message may hold."""


def described(key: str) -> str:
    """What a setting is, in a sentence."""
    hint = get_type_hints(Settings, include_extras=True)[key]
    return next((meta.description for meta in hint.__metadata__ if meta.description), "")


def flag_name(key: str) -> str:
    """`shutdown_grace_s` is `--shutdown-grace`: flags drop the unit."""
    name = key.removesuffix("_s").removesuffix("_ms").removesuffix("_c")
    return name.replace("_", "-")
