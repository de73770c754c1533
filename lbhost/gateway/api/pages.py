"""What the pages tell that need no body: their types. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ModelMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    n_ctx: int
    """Tokens of prompt and answer together."""
    kind: str = "chat"
    """Or "embedding", or "rerank"."""
    aliases: tuple[str, ...] = ()
    """More names for it."""
    base: str = ""
    """The model of which this is one with a LoRA adapter."""


class ModelCard(msgspec.Struct, frozen=True):
    """A model that is served."""

    id: str
    created: int
    meta: ModelMeta
    object: Literal["model"] = "model"
    owned_by: str = "lbhost"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Health(msgspec.Struct, frozen=True):
    """All is well; else it is an error."""

    status: Literal["ok"] = "ok"


class DefaultSettings(msgspec.Struct, frozen=True):
    """Of /completion, unless told otherwise."""

    n_ctx: int
    params: dict[str, Any]


class Props(msgspec.Struct, frozen=True, kw_only=True):
    """llama-server's /props, as far as it means something here."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    modalities: dict[str, bool]
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool = False


class NextToken(msgspec.Struct, frozen=True):
    n_decoded: int
    n_remain: int


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One of llama-server's /slots; the last four where it is processing."""

    id: int
    n_ctx: int
    speculative: bool = False
    is_processing: bool
    worker: int
    worker_state: str
    id_task: int | msgspec.UnsetType = msgspec.UNSET
    n_prompt_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n_prompt_tokens_processed: int | msgspec.UnsetType = msgspec.UNSET
    next_token: list[NextToken] | msgspec.UnsetType = msgspec.UNSET
