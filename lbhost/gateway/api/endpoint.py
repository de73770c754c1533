"""The endpoints that take a body: one HTTP request from it to the last byte of its answer.

A plain ASGI application; what goes out is in answer.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from itertools import compress

from starlette.types import Receive, Scope, Send

from lbhost.errors import (
    DeadlineError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedMediaTypeError,
)
from lbhost.gateway import vector_cache
from lbhost.gateway.api import model_name, vectors
from lbhost.gateway.api.answer import Answer, ClientGoneError
from lbhost.gateway.api.client_watch import Client, while_wanted
from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.embeddings import CachedInputs, EmbeddingUsage
from lbhost.gateway.api.metering import Meter, owned
from lbhost.gateway.api.parameters import RANKS
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.catalogue import Catalogue
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.live import Live
from lbhost.gateway.prompt.inputs import Inputs
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.prompt.questions import Told
from lbhost.gateway.recorder import outcome
from lbhost.gateway.scheduling import group, parts
from lbhost.gateway.served_model import ServedModel, Variant
from lbhost.gateway.vector_cache import VectorCache

LARGE_INPUTS = 64
"""Of a request for vectors: one that has more waits for others that do."""


class Completions:
    """POST to one of the paths of dialects.DIALECTS or questions.PATHS."""

    def __init__(
        self,
        kind: Kind,
        models: Catalogue,
        cache: VectorCache,
        live: Live,
        *,
        time_limit_s: float,
        most_answers: int,
    ) -> None:
        """For one of the endpoints.

        Args:
            live: where the operator sees the request and may end it.
            time_limit_s: counts from a request's arrival; the dispatcher keeps it for the rest.
            most_answers: that one request may have generated.
        """
        self._kind = kind
        self._models = models
        self._cache = cache
        self._live = live
        self._most_answers = most_answers
        self._time_limit_s = time_limit_s
        self._large = asyncio.Lock()
        self._waiting = 0
        """Requests that want it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises LbhostError only before anything was sent."""
        exchange: Exchange = scope["state"]["exchange"]
        answer = Answer(exchange, send)
        exchange.ended_as = "error"
        meter = Meter(exchange.account)
        try:
            self._models.check_any(exchange.account)
            if exchange.account is not None:
                exchange.account.admit(time.monotonic())
            check_media_type(scope)
            await self._answer(answer, meter, receive)
            jobs = answer.group
            if jobs is not None and jobs.cancelled:
                exchange.ended_as = "cancelled"
            else:
                exchange.ended_as = outcome(None if jobs is None else jobs.error)
        except (ClientGoneError, asyncio.CancelledError) as error:
            exchange.ended_as = "cancelled"
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            exchange.body.release()
            if answer.group is not None:
                answer.group.cancel()
                self._live.ended(answer.group)
                exchange.details = {**answer.details(answer.group), **exchange.details}
            meter.settle(answer.group, time.monotonic())

    def _asked(self, body: bytes, exchange: Exchange) -> Variant:
        """Which model it is for; from here on the request counts as that one's.

        Raises InvalidRequestError, ModelNotFoundError, ModelNotAllowedError.
        """
        asked = self._models.only_choice
        if asked is None:
            name = model_name.of_body(body)
            asked = self._models.pick(name, self._kind, exchange.account)
            exchange.counter, exchange.model = asked.model.traffic, asked.name
        return asked

    async def _answer(self, answer: Answer, meter: Meter, receive: Receive) -> None:
        body = await _read(receive)
        asked = self._asked(body, answer.exchange)
        model = asked.model
        client = Client(receive)
        try:
            taken = await self._prepare(model, body, client, answer.exchange)
            del body  # it may be large, and a stream long
            if isinstance(taken, Told):
                await answer.tell(taken.body)
            elif isinstance(taken, Inputs):
                await self._vectors(model, answer, meter, taken, client)
            else:
                await self._text(asked, answer, meter, taken, client)
        finally:
            client.forget()

    async def _text(
        self, asked: Variant, answer: Answer, meter: Meter, taken: Taken, client: Client
    ) -> None:
        exchange, model = answer.exchange, asked.model
        self._check_answers(taken)
        taken = asked.adapted(owned(taken, exchange))
        meter.begin(taken, model.dispatcher.expected_tokens, time.monotonic())
        works = group.spread(taken.works, taken.best_of)
        jobs = answer.group = group.submit(
            model.dispatcher, works, exchange.began, exchange.complete
        )
        self._live.began(jobs, exchange, asked.name, model.dispatcher)
        client.on_gone(jobs.cancel)
        reply = DIALECTS[self._kind].reply(
            secrets.token_hex(12),
            asked.name,
            taken.style,
            request_id=exchange.request_id,
            pieces=model.piece,
            echoes=taken.echoes,
            n=taken.n,
        )
        if works[0].stream:
            await answer.stream(jobs, reply)
        else:
            await answer.whole(jobs, reply, n=taken.n, best_of=taken.best_of)

    async def _vectors(
        self, model: ServedModel, answer: Answer, meter: Meter, taken: Inputs, client: Client
    ) -> None:
        exchange, cache = answer.exchange, self._cache
        tier: str | None = taken.tier
        if exchange.account is not None:
            tier = exchange.account.tier(tier)  # refused whether or not there is work to do
        inputs = taken.each()
        keys = vector_cache.names(inputs, exchange.scope, model.vector_identity)
        async with contextlib.AsyncExitStack() as turn:
            if len(keys) > LARGE_INPUTS:
                settings = model.settings
                wait_s = math.inf if tier == "flex" else settings.queue_timeout_s
                await self._take_turn(turn, client, exchange, settings.queue_size, wait_s)
            known = dict(zip(keys, await cache.get(keys), strict=True))
            cached = [known[key] is not None for key in keys]
            tokens = sum(taken.lengths)
            cached_tokens = sum(compress(taken.lengths, cached))
            exchange.details = {
                "inputs": len(inputs),
                "cached_inputs": sum(cached),
                "prompt_tokens": tokens,
                "cached_tokens": cached_tokens,
            }
            # What comes twice in a request is computed once.
            wanted = {key: one for key, one in zip(keys, inputs, strict=True) if known[key] is None}
            meter.begin_inputs(sum(map(len, wanted.values())) // 4, time.monotonic())
            if wanted:
                await turn.aclose()
                computed = await self._computed(model, answer, taken, wanted, client)
                cache.put(computed)
                known |= computed
                if len(keys) > LARGE_INPUTS:
                    await self._take_turn(turn, client, exchange)
            body = await vectors.body(
                self._kind,
                taken,
                [known[key] or b"" for key in keys],
                EmbeddingUsage(tokens, tokens, CachedInputs(cached_tokens, sum(cached))),
                model=model.name,
                request_id=exchange.request_id,
            )
        await answer.tell(body)  # which may wait for the client: nobody else does

    async def _take_turn(
        self,
        turn: contextlib.AsyncExitStack,
        client: Client,
        exchange: Exchange,
        most: float = math.inf,
        wait_s: float = math.inf,
    ) -> None:
        """Large requests look vectors up and write them one at a time: each takes up to 20 MB for
        that, and a thousand at once would take the box's memory.

        Args:
            most: requests that may wait. wait_s: for so long at the most; the time limit of the
                request counts in any case. What was computed already has no other limit.

        Raises:
            QueueFullError: as many wait already.
            DeadlineError: its turn has not come in time.
            ClientGoneError: the client did not wait for it.
        """
        if self._waiting >= most:
            raise QueueFullError(
                f"{self._waiting} requests of more than {LARGE_INPUTS} inputs are waiting already",
                retry_after_s=1,
            )
        self._waiting += 1
        try:
            async with while_wanted(client, min(wait_s, self._left_s(exchange))):
                await turn.enter_async_context(self._large)
        except TimeoutError as error:
            waited = time.monotonic() - exchange.began
            raise DeadlineError(
                f"others of more than {LARGE_INPUTS} inputs still went first {waited:.1f} s after "
                "it had come",
                retry_after_s=1,
            ) from error
        finally:
            self._waiting -= 1

    def _left_s(self, exchange: Exchange) -> float:
        """Seconds that a request's time limit leaves it."""
        return exchange.began + self._time_limit_s - time.monotonic()

    async def _computed(
        self,
        model: ServedModel,
        answer: Answer,
        taken: Inputs,
        wanted: dict[bytes, bytes],
        client: Client,
    ) -> dict[bytes, bytes]:
        """The vectors that were not kept. Raises LbhostError, ClientGoneError."""
        exchange = answer.exchange
        cut = parts.cut(
            list(wanted.values()),
            rank=RANKS[taken.tier],
            scope=exchange.scope,
            workers=model.dispatcher.workers,
            most=self._most_answers,
        )
        works = owned(Taken(tuple(cut), tier=taken.tier), exchange).works
        jobs = answer.group = group.submit(
            model.dispatcher, works, exchange.began, exchange.complete
        )
        self._live.began(jobs, exchange, model.name, model.dispatcher)
        client.on_gone(jobs.cancel)
        await answer.computed(jobs)
        return dict(zip(wanted, vectors.of_jobs(jobs.jobs), strict=True))

    def _check_answers(self, taken: Taken) -> None:
        """Raises InvalidRequestError: more answers than a request may ask for."""
        count = len(taken.works) * taken.best_of
        if count > self._most_answers:
            param = "best_of" if taken.best_of > taken.n else "n" if taken.n > 1 else "prompt"
            raise InvalidRequestError(
                f"{param}: a request may have {self._most_answers} answers generated to all its "
                f"prompts, not {count}",
                param=param,
            )

    async def _prepare(
        self, model: ServedModel, body: bytes, client: Client, exchange: Exchange
    ) -> Taken | Inputs | Told:
        """Intake, for as long as the client waits for it and there is time.

        Raises:
            ClientGoneError: the client has left.
            DeadlineError: it took too long.
            LbhostError: what Dispatcher.check_open and Intake.take raise.
        """
        client_name, preparing = exchange.client, model.preparing
        before, own_before = preparing.total(), preparing[client_name]
        preparing[client_name] += 1
        try:
            model.dispatcher.check_open(before, client_name, own_before)
            async with while_wanted(client, self._left_s(exchange)):
                return await model.intake.take(body, self._kind, client_name)
        except TimeoutError as error:
            raise DeadlineError(
                f"not even read after {self._time_limit_s:g} s, which is the limit",
                retry_after_s=1,
            ) from error
        finally:
            preparing[client_name] -= 1
            if not preparing[client_name]:
                del preparing[client_name]
            exchange.body.release()


def check_media_type(scope: Scope) -> None:
    """Raises UnsupportedMediaTypeError unless the body is said to be JSON in UTF-8, uncompressed.

    A missing content-type is refused too: without one, a web page may send a request anywhere
    without the browser's asking beforehand.
    """
    given = ""
    for name, value in scope["headers"]:
        if name == b"content-type":
            given = value.decode("latin-1")
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMediaTypeError("compressed bodies are not supported")
    media, _, parameters = given.lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "')
    if media.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        what = repr(given[:80]) if given else "one without a content-type"
        raise UnsupportedMediaTypeError(f"the body must be application/json, not {what}")


async def _read(receive: Receive) -> bytes:
    """The whole body; http/protocol.py keeps it within its limits."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message["body"])
        if not message["more_body"]:
            break
    body = b"".join(parts)
    if not body:
        raise InvalidRequestError("the body is empty; send a JSON object")
    return body
