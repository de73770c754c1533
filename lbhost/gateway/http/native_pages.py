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
from lbhost.gateway.prompt.prompter import Vocabulary
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.sessions import Attempt, Sessions

_json = msgspec.json.Encoder().encode


class NativePages:
    """Both pages, for one model."""

    def __init__(self, sessions: Sessions, vocab: Vocabulary, model: str, n_ctx: int) -> None:
        self._sessions = sessions
        self._n_ctx = n_ctx
        self._props = Props(
            default_generation_settings=DefaultSettings(
                n_ctx,
                {
                    "temperature": native.TEMPERATURE,
                    "top_k": native.TOP_K,
                    "top_p": native.TOP_P,
                    "min_p": native.MIN_P,
                    "n_predict": -1,
                },
            ),
            total_slots=0,
            model_alias=model,
            modalities={"vision": False, "audio": False},
            chat_template=vocab.chat_template or "",
            bos_token=vocab.bos_text or "",
            eos_token=vocab.eos_text or "",
            build_info=FINGERPRINT,
        )

    async def props(self, _: Request) -> Response:
        """GET /props: the model, and what /completion does unless told otherwise."""
        slots = sum(reading.identity.slots for _, reading in self._sessions.readings.present())
        return _ok(msgspec.structs.replace(self._props, total_slots=slots))

    async def slots(self, _: Request) -> Response:
        """GET /slots: those of all workers, numbered through.

        The gateway knows which requests a worker has, not which slot has which: the first of a
        worker's slots are shown with its requests, oldest first.
        """
        entries: list[Slot] = []
        for worker, reading in self._sessions.readings.present():
            session = self._sessions.current(worker)
            attempts = iter(list(session.attempts.values()) if session is not None else [])
            entries += self._of(worker, reading, attempts, len(entries))
        return _ok(entries)

    def _of(
        self, worker: int, reading: WorkerReading, attempts: Iterator[Attempt], first: int
    ) -> Iterator[Slot]:
        for number in range(first, first + reading.identity.slots):
            attempt = next(attempts, None)
            yield Slot(
                id=number,
                n_ctx=self._n_ctx,
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
