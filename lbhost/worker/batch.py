"""Which tokens the next step computes: pure functions of what runs and how fast it goes.

A step carries one token of every decoding sequence and chunks of prompts (prefill). How many
prompt tokens: what serves everybody soonest by the measured speeds, while streams that stand
still beyond the inter-token target weigh heavily. Whose turn it is, is said in lbhost/order.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from lbhost.order import Overtaken, Prompt, turns

MIN_CHUNK = 16
"""Tokens. The matrix kernels work on blocks of up to 16 rows."""

MIN_ALONE = 64
"""Tokens, with nothing decoding: from here on bigger chunks are hardly faster."""

TILE = 64
"""Tokens of one sequence that flash attention on a CPU computes in one go (GGML_FA_TILE_Q).
What is left over goes one by one: chunks of 63 reached 404 tok/s where those of 64 reached 537."""

NEARLY_A_TILE = 48
"""Tokens from which a whole tile takes no longer than going one by one."""

STRETCH = 6.0
"""The inter-token target is at least so many steps that decode all that is there: a model of which
one such step takes as long as the target would otherwise compute its prompts in the smallest
chunks, and every one of them drags all decodes along."""

LATE = 1.0
"""A second by which a step exceeds that counts, for each stream, as so many of waiting. With 3
hardly anything does, and the starter model gives a tenth fewer tokens/s in small chunks."""

FIRST_CHUNK = 32
"""Tokens beside running decodes while no speed is known yet."""

LONGER = 256
"""Tokens that a slot which decodes along for a whole block may hold beyond those that have to.
Three rows of 100 tokens (starter, one core) take 24 ms; a fourth adds 5.6 ms where its slot is
empty, 7 with 400 tokens, 10 with 900 and 15 with 1,900, and a block that is whole saves 1 to 9."""

MAX_GAP = 3
"""Slots in a row that are filled: more of them cost as much as starting anew."""


class Speeds(msgspec.Struct, frozen=True):
    """How fast this worker computes, per second of its own CPU time. None: not measured yet."""

    prefill_tok_s: float | None = None
    step_base_s: float | None = None
    step_seq_s: float | None = None
    """A decode step of n sequences takes step_base_s + n * step_seq_s, where `steps_s` ends."""
    chunk_tok_s: float | None = None
    """A chunk takes chunk_work / chunk_tok_s beside the step's decodes; prefill_tok_s is what the
    chunks of late came to, whatever their sizes."""
    chunk_base: float = 0.0
    """Tokens that could be computed in the time that a chunk costs as such."""
    loose: float | None = None
    """A token outside of tiles takes as long as so many in one; None: there are no tiles."""
    steps_s: tuple[float, ...] = ()
    """Seconds of a decode step of 1, 2, … sequences; see step_times.py."""

    def decode_s(self, sequences: int) -> float | None:
        """Seconds of a step that decodes so many sequences."""
        if sequences == 0:
            return 0.0
        if self.step_base_s is None or self.step_seq_s is None:
            return None
        if sequences <= len(self.steps_s):
            return self.steps_s[sequences - 1]
        return self.step_base_s + sequences * self.step_seq_s

    def chunk_s(self, tokens: int) -> float | None:
        """Seconds that so many prompt tokens add to a step."""
        if tokens == 0:
            return 0.0
        if self.chunk_tok_s is not None:
            return self.chunk_work(tokens) / self.chunk_tok_s
        return tokens / self.prefill_tok_s if self.prefill_tok_s else None

    def chunk_work(self, tokens: int) -> float:
        """What a chunk costs, in tokens of a large one."""
        if self.loose is None:
            return tokens + self.chunk_base
        tiles, rest = divmod(tokens, TILE)
        if rest >= NEARLY_A_TILE:
            tiles, rest = tiles + 1, 0
        return self.chunk_base + tiles * TILE + self.loose * rest

    def times(self, *, prefill: float, decode: float) -> Speeds:
        """So many times as fast."""
        base_s, seq_s = self.step_base_s, self.step_seq_s
        return Speeds(
            None if self.prefill_tok_s is None else self.prefill_tok_s * prefill,
            None if base_s is None else base_s / decode,
            None if seq_s is None else seq_s / decode,
            None if self.chunk_tok_s is None else self.chunk_tok_s * prefill,
            self.chunk_base,
            self.loose,
            tuple([seconds / decode for seconds in self.steps_s]),
        )


class Chunk(msgspec.Struct, frozen=True):
    """So many of a prompt's next tokens go into the step."""

    number: int
    """The prompt's; see order.Prompt."""
    count: int


def plan(
    decoding: int,
    prompts: Sequence[Prompt],
    overtaken: Overtaken,
    speeds: Speeds,
    target_s: float,
    room: int,
    *,
    tiled: bool = False,
) -> list[Chunk]:
    """The chunks of the next step.

    Args:
        decoding: sequences that get one token each.
        prompts: all that have tokens left to compute.
        overtaken: what the oldest of them is owed; see order.after.
        target_s: inter-token target. With nothing decoding it bounds how long a request
            that arrives during the step waits.
        room: tokens that one batch holds.
        tiled: whether attention is computed in tiles.
    """
    if not prompts:
        return []
    left = prefill_size(decoding, prompts, speeds, target_s, room, tiled=tiled)
    whole = tiled and left >= TILE
    least = NEARLY_A_TILE if whole else MIN_CHUNK
    riding = _riding(decoding) if whole else 0
    left -= riding
    room -= decoding
    remaining = {prompt.number: prompt.remaining for prompt in prompts}
    counts: dict[int, int] = {}
    for turn in turns(prompts, overtaken, max(1, min(left, TILE))):
        begun = counts.get(turn.number, 0)
        rides = 0 if begun else riding
        most = min(turn.most + rides, remaining[turn.number] - begun)
        count = min(most, left + rides, room)
        if count < min(least, most):
            continue
        counts[turn.number] = begun + count
        left -= max(0, count - rides)
        room -= count
        if left <= 0:
            break
    return [Chunk(number, count) for number, count in counts.items()]


def prefill_size(
    decoding: int,
    prompts: Sequence[Prompt],
    speeds: Speeds,
    target_s: float,
    room: int,
    *,
    tiled: bool = False,
) -> int:
    """Prompt tokens of the next step; see `plan` for the arguments."""
    sizes = _sizes(decoding, room, tiled=tiled)
    decode_s = speeds.decode_s(decoding)
    token_s = speeds.chunk_s(1)
    if token_s is None or decode_s is None:
        # Alone, a short first prompt is computed in one piece: nobody waits for it.
        return _largest(sizes, FIRST_CHUNK if decoding else room)
    if decoding:
        soon_s = speeds.decode_s(decoding + len(prompts)) or 0.0
        limit_s = max(target_s, STRETCH * soon_s)
        ends = list(itertools.accumulate(sorted(prompt.remaining for prompt in prompts)))
        return min(sizes, key=lambda size: _badness(size, decoding, ends, speeds, limit_s))
    fitting = [size for size in sizes if (speeds.chunk_s(size) or 0.0) <= target_s]
    return max([*fitting, _largest(sizes, MIN_ALONE)])


def _sizes(decoding: int, room: int, *, tiled: bool) -> list[int]:
    """The sizes to choose from, in rising order."""
    riding = _riding(decoding) if tiled else 0
    small = range(MIN_CHUNK, NEARLY_A_TILE if tiled else TILE, MIN_CHUNK)
    whole = range(TILE + riding, room + 1, TILE)
    room = max(0, room - decoding)
    return [size for size in [*small, *whole] if size <= room] or [room]


def _largest(sizes: Sequence[int], limit: int) -> int:
    return max((size for size in sizes if size <= limit), default=sizes[0])


def _badness(
    size: int, decoding: int, ends: Sequence[int], speeds: Speeds, limit_s: float
) -> float:
    """Seconds that all wait, together, until the prompts are through, if every step takes `size`
    prompt tokens. Streams wait while prompts are computed, and more for a step beyond the limit.

    Args:
        ends: prompt tokens to compute until each prompt is done, in rising order.
        limit_s: seconds that a step may take for the streams.
    """
    size = min(size, ends[-1])
    chunk_s = speeds.chunk_s(size) or 0.0
    step_s = chunk_s + (speeds.decode_s(decoding) or 0.0)
    first_tokens_s = step_s * sum(max(1.0, end / size) for end in ends)
    late_s = LATE * max(0.0, step_s - limit_s)
    return first_tokens_s + decoding * ends[-1] / size * (chunk_s + late_s)


def padding(count: int, decoding: int) -> int:
    """Tokens that a chunk lacks to fill its last tile, if that is worth filling; else 0."""
    rest = (count - _riding(decoding)) % TILE
    return TILE - rest if rest >= NEARLY_A_TILE else 0


def _riding(decoding: int) -> int:
    """Tokens of a chunk that are in no tile: beside decodes, llama.cpp computes the first token
    of every sequence together, and then the rest of the chunk.
    """
    return 1 if decoding else 0


def gaps(slots: Sequence[int]) -> list[int]:
    """Slots between these (in rising order) that had better decode along, for nothing.

    llama.cpp computes sequences together that have consecutive numbers, and starts anew after a
    gap: slots 0 and 2 take as long as two steps, which costs more than a token in slot 1.
    """
    return [
        slot
        for below, above in itertools.pairwise(slots)
        if above - below - 1 <= MAX_GAP
        for slot in range(below + 1, above)
    ]


def predict_s(decoding: int, prefill: int, speeds: Speeds, fallback_token_s: float) -> float:
    """Seconds that a step should take on a free core; unmeasured parts by the fallback."""
    decode_s = speeds.decode_s(decoding)
    if decode_s is None:
        decode_s = decoding * fallback_token_s
    chunk_s = speeds.chunk_s(prefill)
    return decode_s + (prefill * fallback_token_s if chunk_s is None else chunk_s)


def reach(row: Sequence[int], lengths: Sequence[int]) -> range:
    """Slots around a row of neighbours that may decode along, the row included: as far as none
    holds far more than those that have to, for what decodes along attends to all that it holds.

    Args:
        lengths: tokens that each slot holds.
    """
    most = max(lengths[slot] for slot in row) + LONGER
    first, last = row[0], row[-1]
    while first > 0 and lengths[first - 1] <= most:
        first -= 1
    while last + 1 < len(lengths) and lengths[last + 1] <= most:
        last += 1
    return range(first, last + 1)


def beside(row: Sequence[int], wanted: int, lengths: Sequence[int]) -> list[int]:
    """Slots within reach that make a row so many: those that hold the least, rather after it than
    before it.

    Args:
        wanted: at least the row, at most what is within reach.
        lengths: see `reach`.
    """
    near, first, last = reach(row, lengths), row[0], row[-1]
    starts = range(min(first, near.stop - wanted), max(near.start, last + 1 - wanted) - 1, -1)
    windows = [[*range(last + 1, start + wanted), *range(start, first)] for start in starts]
    return min(windows, key=lambda window: max((lengths[slot] for slot in window), default=0))
