"""Puts a step's batch together: what each slot's part of it is, and what fills it up.

Which prompts get how much is decided in batch.py. Owns what the oldest prompt is owed (see
lbhost/order.py), but no slot; the engine's are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lbhost.order import Overtaken, Prompt, after
from lbhost.worker.batch import Speeds, beside, gaps, padding, plan, reach
from lbhost.worker.interfaces import ContextLike
from lbhost.worker.requests import Entry, Part, Slot
from lbhost.worker.widths import Phase


class Composer:
    """See the module."""

    def __init__(self, context: ContextLike, slots: Sequence[Slot], target_s: float) -> None:
        """
        Args:
            target_s: inter-token target; see batch.plan.
        """
        self._context = context
        self._slots = slots
        self._target_s = target_s
        self._overtaken: dict[int, Overtaken] = {}
        """By adapter."""

    def phase(self, adapter: int) -> Phase:
        """What the next step mostly computes, with this adapter."""
        requests = [slot.request for slot in self._running(adapter)]
        prefilling = any(request and not request.next_token for request in requests)
        return Phase.PREFILL if prefilling else Phase.DECODE

    def _running(self, adapter: int) -> list[Slot]:
        """Those whose requests are computed with this adapter."""
        return [
            slot
            for slot in self._slots
            if slot.request is not None and slot.request.adapter == adapter
        ]

    def prompts(self, adapter: int, held: frozenset[int]) -> list[Prompt]:
        """Those with tokens left to compute, and nobody to wait for.

        Args:
            adapter: with which they are computed.
            held: numbers of the requests whose prompts others are computing; see sharing.py.
        """
        return [
            Prompt(request.number, request.given_tokens - len(slot.tokens) // 4, request.rank)
            for slot in self._running(adapter)
            if (request := slot.request) is not None
            and not request.next_token
            and request.number not in held
        ]

    def computed(self, adapter: int, held: frozenset[int], entries: Sequence[Entry]) -> None:
        """These were computed with the adapter. To be told before their tokens are in the slots."""
        counts = {
            entry.request.number: len(entry.packed) // 4
            for entry in entries
            if not entry.request.next_token
        }
        overtaken = self._overtaken.get(adapter, Overtaken())
        self._overtaken[adapter] = after(self.prompts(adapter, held), overtaken, counts)

    def entries(self, adapter: int, held: frozenset[int], speeds: Speeds) -> list[Entry]:
        """The next batch, in slot order: only neighbours are computed in one go.

        Args:
            adapter: with which it is computed: others' requests are not in it.
            speeds: with the threads of the next step.
        """
        running = self._running(adapter)
        decoding = sum(1 for slot in running if slot.request and slot.request.next_token)
        chunks = plan(
            decoding,
            self.prompts(adapter, held),
            self._overtaken.get(adapter, Overtaken()),
            speeds,
            self._target_s,
            self._context.batch_size,
            tiled=self._context.tiled,
        )
        counts = {chunk.number: chunk.count for chunk in chunks}
        outputs = self._context.max_outputs - len(running)  # beside the one that each may have
        entries: list[Entry] = []
        for slot in running:
            request = slot.request
            assert request is not None
            if request.next_token:
                entries.append(Entry(slot, request.next_token, output=True, request=request))
            elif request.number in counts:
                count, every = counts[request.number], request.scored
                if every:
                    count = min(count, 1 + outputs)
                    outputs -= count - 1
                at = len(slot.tokens)
                packed = request.given[at : at + 4 * count]
                last = at + len(packed) == len(request.given)
                fill = len(chunks) == 1 and not every
                filling = self._padding(slot, len(packed) // 4, decoding) if fill else 0
                entries.append(Entry(slot, packed, last, every, filling, request=request))
        return entries

    def fillers(
        self, entries: Sequence[Entry], rows: Callable[[int, int], int] | None
    ) -> list[Part]:
        """What decodes along beside these and is forgotten: in the gaps between them (see
        batch.gaps), and where more rows are sooner computed.

        Args:
            rows: how many rows to compute for so many sequences, and at most; None: as many.
        """
        taken = [entry.slot.index for entry in entries]
        between = gaps(taken)
        row = sorted([*taken, *between])
        along: list[int] = []
        if rows is not None and row[-1] - row[0] + 1 == len(row):
            lengths = [len(slot.tokens) // 4 for slot in self._slots]
            most = len(reach(row, lengths))
            along = beside(row, rows(len(row), most), lengths)
        free = [self._slots[index] for index in (*between, *along)]
        if not (free and self._context.can_copy):
            return []
        tokens = sum(len(entry.packed) // 4 + entry.padding for entry in entries) + len(free)
        fit = all(len(slot.tokens) // 4 < self._context.n_ctx for slot in free)
        if not fit or tokens > self._context.batch_size:
            return []
        return [Part(slot, bytes(4)) for slot in free]

    def fill(self, parts: Sequence[Part]) -> None:
        """Make these parts the context's batch, in slot order."""
        self._context.clear()
        for part in sorted(parts, key=lambda part: part.slot.index):
            part.index = self._context.add(
                part.slot.index,
                len(part.slot.tokens) // 4,
                part.packed,
                output=part.output,
                every=part.every,
                padding=part.padding,
            )

    def _padding(self, slot: Slot, count: int, decoding: int) -> int:
        """How many tokens to put after a chunk, where they can be cut off again."""
        context = self._context
        if not (context.tiled and context.can_copy):
            return 0
        tokens = padding(count, decoding)
        fits = len(slot.tokens) // 4 + count + tokens <= context.n_ctx
        return tokens if fits else 0
