"""How long a text may be tokenised in the gateway itself without endangering its stack.

For many vocabularies llama.cpp splits texts with std::regex, which goes a few calls deeper for
every character of a run; an overflow is a SIGSEGV, which no handler survives. Pure.
"""

from __future__ import annotations

PER_CHARACTER = 1024
"""Bytes of stack, more than any pattern of llama.cpp takes (tests/test_pretokenizers.py)."""

LONGEST = 8192
"""Characters, where no std::regex is used: 10 ms of the event loop at the most (of emoji)."""

LONGEST_WITH_REGEX = 512
"""The slowest pattern, superbpe's, takes time in the square of a run of digits: 66 ms for 1024."""

SMALLEST_STACK = 512 * 1024
UNLIMITED_STACK = 8 * 1024 * 1024


def inline_characters(uses_regex: bool, stack_bytes: int) -> int:
    """Longest text to tokenise on a stack of that size (negative: unlimited); 0 for none."""
    if not uses_regex:
        return LONGEST
    stack = UNLIMITED_STACK if stack_bytes < 0 else stack_bytes
    if stack < SMALLEST_STACK:
        return 0
    return min(LONGEST_WITH_REGEX, stack // 4 // PER_CHARACTER)
