"""Grammars that are known to be good, so that a schema seen before costs no time. Pure.

Only a helper may compile a stranger's grammar; the gateway remembers what came of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from lbhost.errors import TooLongInlineError
from lbhost.grammar import Grammar

KEPT = 128
"""Grammars; each has 64 KiB at the most, and what it was made from as much."""


class Grammars:
    """What grammars came to, as wire.Submit has it; the least recently used are forgotten."""

    def __init__(self, compiled: Callable[[Grammar], str] | None = None) -> None:
        """`compiled`: guidance.check where it may run; None: only what was learned is known."""
        self._compiled = compiled
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    def written(self, grammar: Grammar) -> str:
        """Raises TooLongInlineError: unknown here; InvalidRequestError: it cannot be followed."""
        known = self._known.get(grammar.key)
        if known is not None:
            self._known.move_to_end(grammar.key)
            return known
        if self._compiled is None:
            raise TooLongInlineError("a new grammar is compiled in a helper")
        written = self._compiled(grammar)
        self.learn(grammar, written)
        return written

    def learn(self, grammar: Grammar, written: str) -> None:
        """This one is good."""
        self._known[grammar.key] = written
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
