"""llama-server's read-only pages, /props and /slots, as far as they mean something here.

Reads the board's rows and what the gateway has in flight. Never tells a prompt, an answer, or a
path on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from lbhost.gateway.api import native
from lbhost.gateway.api.pages import DefaultSettings, NextToken, Props, Slot
from lbhost.gateway.api.replies import FINGERPRINT
from lbhost.gateway.catalogue import Catalogue
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.sessions import Attempt
from lbhost.gateway.served_model import ServedModel, Variant

_json = msgspec.json.Encoder().encode


class NativePages:
    """Both pages."""

    def __init__(self, models: Catalogue) -> None:
        self._models = models
        self._props = {one.name: _props(one) for one in models}

    async def props(self, request: Request) -> Response:
        """GET /props: the model, and what /completion does unless told otherwise.

        Of several models the one that the query names in `model`, or the first.
        """
        asked = self._asked(request)[0]
        model = asked.model
        slots = sum(reading.identity.slots for _, reading in model.sessions.readings.present())
        props = self._props[model.name]
        return _ok(msgspec.structs.replace(props, total_slots=slots, model_alias=asked.name))

    async def slots(self, request: Request) -> Response:
        """GET /slots: those of all workers, numbered through; of the model in the query, if any.

        The gateway knows which requests a worker has, not which slot has which: the first of a
        worker's slots are shown with its requests, oldest first.
        """
        entries: list[Slot] = []
        for model in dict.fromkeys(asked.model for asked in self._asked(request)):
            for worker, reading in model.sessions.readings.present():
                session = model.sessions.current(worker)
                attempts = iter(list(session.attempts.values()) if session is not None else [])
                entries += _of(model.n_ctx, worker, reading, attempts, len(entries))
        return _ok(entries)

    def _asked(self, request: Request) -> list[Variant]:
        """Raises ModelNotFoundError, ModelNotAllowedError."""
        exchange: Exchange = request.scope["state"]["exchange"]
        name = request.query_params.get("model")
        if name:
            return [self._models.named(name, exchange.account)]
        self._models.check_any(exchange.account)
        return self._models.allowed(exchange.account)


def _props(model: ServedModel) -> Props:
    return Props(
        default_generation_settings=DefaultSettings(
            model.n_ctx,
            {
                "temperature": native.TEMPERATURE,
                "top_k": native.TOP_K,
                "top_p": native.TOP_P,
                "min_p": native.MIN_P,
                "n_predict": -1,
            },
        ),
        total_slots=0,
        model_alias=model.name,
        modalities={"vision": False, "audio": False},
        chat_template=model.vocab.chat_template or "",
        bos_token=model.vocab.bos_text or "",
        eos_token=model.vocab.eos_text or "",
        build_info=FINGERPRINT,
    )


def _of(
    n_ctx: int, worker: int, reading: WorkerReading, attempts: Iterator[Attempt], first: int
) -> Iterator[Slot]:
    for number in range(first, first + reading.identity.slots):
        attempt = next(attempts, None)
        yield Slot(
            id=number,
            n_ctx=n_ctx,
            is_processing=attempt is not None,
            worker=worker,
            worker_state=reading.identity.state.name.lower(),
            **({} if attempt is None else _running(attempt)),
        )


def _running(attempt: Attempt) -> dict[str, Any]:
    job = attempt.job
    prefilled = attempt.last_token is not None
    tokens = job.work.prompt_tokens
    done = job.completion_tokens
    return {
        "id_task": job.number,
        "n_prompt_tokens": tokens,
        "n_prompt_tokens_processed": tokens if prefilled else 0,
        "next_token": [NextToken(done, job.work.max_tokens - done)],
    }


def _ok(value: Any) -> Response:
    return Response(_json(value), media_type="application/json")
