"""Takes bodies in: short ones are prepared at once, long ones in a helper process.

Short means: a short body, whose prompt is short enough for this process's stack and whose
rendering stays within milliseconds. Whatever turns out longer goes to a helper as well.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence

from lbhost.errors import TooLongInlineError
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt import stack
from lbhost.gateway.prompt.grammars import Grammars
from lbhost.gateway.prompt.helpers import Helpers
from lbhost.gateway.prompt.inputs import Inputs
from lbhost.gateway.prompt.preparation import Preparation, Taken
from lbhost.gateway.prompt.prompter import Limits, Vocabulary
from lbhost.gateway.prompt.questions import Told
from lbhost.purpose import GENERATES, Purpose

INLINE_BYTES = 4096
"""Bodies up to here are worked on in the event loop: 1.7 ms of tokenising at the most."""

INLINE_RENDER_S = 0.1
"""A template that takes longer for a short body goes to a helper."""


class Intake:
    """Turns bodies into work, for one model."""

    def __init__(
        self,
        vocab: Vocabulary,
        n_ctx: int,
        alias: str,
        helpers: Helpers,
        purpose: Purpose = GENERATES,
        aliases: Sequence[str] = (),
    ) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
        longest = stack.inline_characters(vocab.uses_regex, soft)
        limits = Limits(INLINE_RENDER_S, max(1, longest), inline=True)
        self._grammars = Grammars()
        self._preparation = Preparation(
            vocab, n_ctx, alias, limits, self._grammars, purpose, aliases
        )
        self.helpers = helpers

    async def take(self, body: bytes, kind: Kind, client: str = "") -> Taken | Inputs | Told:
        """`client`: whose it is; empty: nobody's.

        Raises InvalidRequestError and its kin, ModelNotFoundError, PromptError, QueueFullError,
        DeadlineError. Cancelling it takes the body out of the queue."""
        taken = self._take_inline(body, kind)
        if taken is None:
            taken = await self.helpers.prepare(body, kind, client)
            if isinstance(taken, Taken) and taken.grammar is not None:
                self._grammars.learn(taken.grammar, taken.works[0].grammar)
        return taken

    def _take_inline(self, body: bytes, kind: Kind) -> Taken | Inputs | Told | None:
        """At once, in milliseconds; None for what only a helper may prepare.

        Raises InvalidRequestError and its kin, ModelNotFoundError.
        """
        if len(body) > INLINE_BYTES:
            return None
        try:
            return self._preparation.prepare(body, kind)
        except TooLongInlineError:
            return None
