"""The settings in force: who is told them, and how they change while the server runs.

Owns the settings that were asked for and what the gateway has been told of them. A reload writes
what is wanted (desired.py) and waits until it is so; a configuration that cannot be is refused
before anything has changed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from lbhost import control, log
from lbhost.config import Settings
from lbhost.errors import ConflictError, LbhostError, ModelFileError, StartupError, UsageError
from lbhost.source import Source
from lbhost.supervisor import changes, exposure, model_startup
from lbhost.supervisor.changes import How, Plan
from lbhost.supervisor.desired import Desired
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.model_startup import PreparedModel
from lbhost.supervisor.operations import Operations
from lbhost.supervisor.service import Service
from lbhost.supervisor.startup import Prepared
from lbhost.weights import FilePart, identify, parts

TOLD_LIMIT_S = 30.0
"""A gateway that works takes other settings in some milliseconds; else it will have them when it
has been started again."""

_TOO_LONG = (
    "the settings and the models' files are more than a gateway can be told at once: shorten "
    "allowed_hosts or allowed_origins, or serve fewer models"
)


class Configuration:
    """See the module.

    Args:
        asked: the settings as they came from the source; None: those that run.
        source: None: they never change.
        adopt: told of other settings, for what the supervisor itself does by them.

    Raises:
        StartupError: a gateway cannot be told of so many models.
    """

    def __init__(
        self,
        prepared: Prepared,
        listener: socket.socket,
        desired: Desired,
        events: EventLog,
        asked: Settings | None,
        source: Source | None,
        adopt: Callable[[Settings], None],
    ) -> None:
        self.asked = asked or prepared.settings
        self.source = source
        self._prepared = prepared
        self._listener = listener
        self._desired = desired
        self._events = events
        self._adopt = adopt
        self._number = 0
        self._told = 0
        """The newest change that the gateway has in force."""
        self._one = asyncio.Lock()
        if self._too_long(desired.settings):
            raise StartupError(_TOO_LONG)

    # --- what children begin with -----------------------------------------------------------

    def first(self, model: int, node: int | None) -> tuple[control.Configure, Sequence[int]]:
        """The first message to a fork server or GPU worker of a model, and its descriptors."""
        made = self._prepared.models[model]
        wanted = self._desired.models[made.name]
        configure = control.Configure(
            settings=_of_model(wanted.settings),
            model_path=made.file.path,
            model_alias=made.name,
            n_ctx=made.n_ctx,
            weights=made.weights,
            node=node,
            purpose=made.info.purpose,
            aliases=wanted.aliases,
            adapters=made.adapters,
            gains=made.gains,
        )
        return configure, (self._prepared.board.fd,)

    def first_to_gateway(self) -> tuple[control.Serve, Sequence[int]]:
        """The first message to a gateway, which has the API key too."""
        self._told = self._number
        serve = self._serve(self._desired.settings)
        return serve, (self._prepared.board.fd, self._listener.fileno())

    def _serve(self, settings: Settings) -> control.Serve:
        models = [self.first(i, None)[0] for i in range(len(self._prepared.models))]
        return control.Serve(_of_gateway(settings), tuple(models))

    def _too_long(self, settings: Settings) -> bool:
        """Whether no gateway could begin with these. It is told of a change in less."""
        return control.size(self._serve(settings)) > control.MAX_PACKET

    # --- what the gateway is told later -------------------------------------------------------

    def in_force(self) -> bool:
        """Whether the gateway has the newest settings; one that starts begins with them."""
        return self._told == self._number

    def tell(self, gateway: Service) -> None:
        """Tell the gateway what it has not yet; again until it has answered."""
        if not self.in_force() and gateway.state == "ready":
            models = tuple(_of_model(model.settings) for model in self._desired.models.values())
            settings = _of_gateway(self._desired.settings)
            gateway.send(control.Reconfigure(self._number, settings, models))

    def told(self, number: int) -> None:
        """The gateway's answer."""
        self._told = max(number, self._told)

    # --- reload -------------------------------------------------------------------------------

    def look(self) -> tuple[Settings, Plan]:
        """Read the configuration again, and what it would take.

        Raises:
            UsageError: it is no good; one line with the key and the reason.
        """
        after = self.asked if self.source is None else self.source.load_again()
        return after, changes.plan(self.asked, after, model_changed=self._model_changed())

    def _model_changed(self) -> bool:
        try:
            return any(
                made.weights and _files(made) != made.files for made in self._prepared.models
            )
        except ModelFileError:
            return True  # a new server will say what is wrong with it

    async def reload(
        self,
        operations: Operations,
        gateway: Service,
        hand_over: Callable[[str], Coroutine[Any, Any, str]],
    ) -> str:
        """Bring a changed configuration into force.

        Args:
            hand_over: has a new server with the new configuration take over; told why.

        Raises:
            UsageError: the configuration is no good, or needs a restart; nothing has changed.
            ConflictError: something else is going on; or what was begun could not be ended.
        """
        async with self._looking("reload", operations) as (after, plan):
            if plan.keys(How.HANDOVER):
                why = f"reload of {', '.join(plan.keys(*How))}"
                return await self._hand_over(why, after, plan, gateway, hand_over)
            return await self._change(after, plan, operations, gateway)

    async def dry_run(
        self,
        operations: Operations,
        rehearse: Callable[[Settings], Coroutine[Any, Any, list[str]]],
    ) -> str:
        """Say what `reload` would do; nothing changes.

        Args:
            rehearse: sees whether a new server could start with settings; what it cannot tell.

        Raises:
            LbhostError: it would be refused, and why.
        """
        after, plan = self.look()
        self._check(plan, after, operations)
        unknown = await rehearse(after) if plan.keys(How.HANDOVER) else []
        return "\n".join([*plan.lines, *unknown]) or "nothing would change"

    async def upgrade(
        self,
        operations: Operations,
        gateway: Service,
        hand_over: Callable[[str], Coroutine[Any, Any, str]],
    ) -> str:
        """Have a new server take over, whether anything has changed or not.

        Raises:
            UsageError, ConflictError: see `reload`.
        """
        async with self._looking("upgrade", operations) as (after, plan):
            return await self._hand_over("upgrade", after, plan, gateway, hand_over)

    @asynccontextmanager
    async def _looking(
        self, what: str, operations: Operations
    ) -> AsyncIterator[tuple[Settings, Plan]]:
        """The configuration as it is now, and what it takes; one at a time. What fails is told."""
        async with self._one:
            try:
                after, plan = self.look()
                self._check(plan, after, operations)
                yield after, plan
            except LbhostError as error:
                self._events.add("error", "reload", f"{what}: {error.message}")
                raise

    async def _hand_over(
        self,
        why: str,
        after: Settings,
        plan: Plan,
        gateway: Service,
        hand_over: Callable[[str], Coroutine[Any, Any, str]],
    ) -> str:
        said = await hand_over(why)
        # Who still has a connection here finds a key that was taken away taken away.
        self._bring(after, plan.keys(How.LIVE), gateway)
        return said

    def _check(self, plan: Plan, after: Settings, operations: Operations) -> None:
        """Raises LbhostError if it cannot be done: nothing has changed then."""
        for change in plan.changes:
            if change.how is How.RESTART:
                raise UsageError(
                    f"{change.key} ({change.before} -> {change.after}) changes by a restart of "
                    "lbhost only: nothing was changed"
                )
        exposure.check(after, self._listener)
        if self._too_long(after):
            raise UsageError(f"{_TOO_LONG}: nothing was changed")
        if "memory_limit" in plan.keys(How.LIVE) and not plan.keys(How.HANDOVER):
            self._check_memory_limits(after)
        operations.require_alone("reload")
        if not plan.keys(How.HANDOVER):
            for model, count in self._scalings(after).items():
                operations.check_scale(model, count)

    def _scalings(self, after: Settings) -> dict[str, int]:
        """How many workers the models get that are to have others than before, by name."""
        pairs = zip(self.asked.served(), after.served(), strict=True)
        return {
            name: int(new.workers)
            for name, (old, new) in zip(self._desired.models, pairs, strict=True)
            if new.workers not in ("auto", old.workers)
        }

    def _check_memory_limits(self, after: Settings) -> None:
        """Raises UsageError: every worker would be over it, one as the other, again and again."""
        limits = [own.memory_limit_bytes for own in after.served()]
        try:
            model_startup.require_within(self._prepared.models, limits)
        except StartupError as error:
            raise UsageError(f"{error.message}: nothing was changed") from error

    async def _change(
        self, after: Settings, plan: Plan, operations: Operations, gateway: Service
    ) -> str:
        if not plan.changes:
            self._events.add("info", "reload", "reload: nothing has changed")
            return "nothing has changed"
        keys = plan.keys(*How)
        self._events.add("info", "reload", f"reload: {'; '.join(plan.lines)}")
        # Until it is done, the next reload finds that it has to be done still.
        before, slow = self.asked, plan.keys(How.ROLLING, How.SCALING)
        scalings = self._scalings(after)
        self._bring(after, keys, gateway)
        self.asked = msgspec.structs.replace(after, **{key: getattr(before, key) for key in slow})
        if plan.keys(How.ROLLING) and operations.runs:
            await operations.restart_all()
        for model, count in scalings.items():
            await operations.scale(count, model, pin=False)
        self.asked = after
        await self._until_in_force(operations)
        return f"in force: {', '.join(keys)}"

    def _bring(self, after: Settings, keys: Sequence[str], gateway: Service) -> None:
        """Want these keys' new values, and tell whoever is there."""
        fresh = {key: getattr(after, key) for key in keys}
        settings = msgspec.structs.replace(self._desired.settings, **fresh)
        self.asked, self._number = after, self._number + 1
        self._desired.adopt(settings, keys)
        self._adopt(settings)
        log.configure(settings.log_format, settings.log_level, "supervisor")
        self.tell(gateway)

    async def _until_in_force(self, operations: Operations) -> None:
        """Raises ConflictError: the gateway has not answered, and will be told again."""
        try:
            async with asyncio.timeout(TOLD_LIMIT_S):
                await operations.changes.until(lambda: self.in_force() or operations.stopping)
        except TimeoutError:
            raise ConflictError(
                "the gateway does not answer; it gets the new settings as soon as it does"
            ) from None


def _files(made: PreparedModel) -> tuple[FilePart, ...]:
    """The model's files as they are now."""
    adapters = (Path(adapter.file.path) for adapter in made.adapters)
    return identify([*parts(Path(made.file.path)), *adapters])


def _of_gateway(settings: Settings) -> Settings:
    """The server's own; the tables are told of as models."""
    return msgspec.structs.replace(settings, models=(), adapters=())


def _of_model(settings: Settings) -> Settings:
    """Without what only a gateway needs, and has from the server's own; its adapters were found."""
    return msgspec.structs.replace(
        settings, api_key=None, allowed_hosts="", allowed_origins="", adapters=()
    )
