"""Which tokens the next step computes: pure functions of what runs and how fast it goes.

A step carries one token of every decoding sequence and chunks of prompts (prefill). Chunks
are sized so that a step with running decodes stays under the inter-token target; whose turn
it is, is said in lbhost/order.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from lbhost.order import Overtaken, Prompt, turns

MIN_CHUNK = 16
"""Tokens. Smaller chunks pay the step's fixed cost for next to no progress."""

MIN_ALONE = 64
"""Tokens, with nothing decoding: from here on bigger chunks are hardly faster."""

ROUND_TO = 16
"""Tokens. The matrix kernels work on blocks of up to 16 rows."""

TILE = 64
"""Tokens of one sequence that flash attention on a CPU computes in one go (GGML_FA_TILE_Q).
What is left over goes one by one: chunks of 63 reached 404 tok/s where those of 64 reached 537."""

NEARLY_A_TILE = 48
"""Tokens from which a whole tile takes no longer than going one by one."""

WORTH_A_TILE = 36
"""Where so many tokens fit the inter-token target, a step takes a tile and the longer time.
Smaller chunks would make prefill look slower, and so themselves yet smaller."""

FIRST_CHUNK = 32
"""Tokens beside running decodes while no speed is known yet."""

MAX_GAP = 3
"""Slots in a row that are filled: more of them cost as much as starting anew."""


class Speeds(msgspec.Struct, frozen=True):
    """How fast this worker computes, per second of its own CPU time. None: not measured yet."""

    prefill_tok_s: float | None = None
    step_base_s: float | None = None
    step_seq_s: float | None = None
    """A decode step of n sequences takes step_base_s + n * step_seq_s."""

    def decode_s(self, sequences: int) -> float | None:
        """Seconds of a step that decodes so many sequences."""
        if sequences == 0:
            return 0.0
        if self.step_base_s is None or self.step_seq_s is None:
            return None
        return self.step_base_s + sequences * self.step_seq_s

    def times(self, *, prefill: float, decode: float) -> Speeds:
        """So many times as fast."""
        base_s, seq_s = self.step_base_s, self.step_seq_s
        return Speeds(
            None if self.prefill_tok_s is None else self.prefill_tok_s * prefill,
            None if base_s is None else base_s / decode,
            None if seq_s is None else seq_s / decode,
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
    left = prefill_budget(decoding, speeds, target_s, room, tiled=tiled)
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


def prefill_budget(
    decoding: int, speeds: Speeds, target_s: float, room: int, *, tiled: bool = False
) -> int:
    """Prompt tokens that fit a step which decodes so many sequences within the target."""
    decode_s = speeds.decode_s(decoding)
    if speeds.prefill_tok_s is None or decode_s is None:
        # Alone, a short first prompt is computed in one piece: nobody waits for it.
        fitting = FIRST_CHUNK if decoding else room
    else:
        fitting = int((target_s - decode_s) * speeds.prefill_tok_s)
    if tiled:
        riding = _riding(decoding)
        tiles = max(fitting + TILE - WORTH_A_TILE, 0 if decoding else TILE) // TILE
        tiles = min(tiles, (room - decoding - riding) // TILE)
        if tiles > 0:
            return tiles * TILE + riding
    rounded = max(MIN_CHUNK if decoding else MIN_ALONE, fitting // ROUND_TO * ROUND_TO)
    return max(0, min(rounded, room - decoding))


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
    token_s = 1 / speeds.prefill_tok_s if speeds.prefill_tok_s else fallback_token_s
    return decode_s + prefill * token_s
