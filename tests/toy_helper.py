"""The real prompt helper with the toy vocabulary, for gateways that run inside a test."""

from __future__ import annotations

import sys
import time

from lbhost.gateway.prompt import helper
from toy_vocab import ToyVocab


class FatefulVocab(ToyVocab):
    """Ends or stops the process that tokenises certain words."""

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        if "CRASH" in text:
            import ctypes

            ctypes.string_at(0)
        if "ALLOCATE" in text:
            return list(range(1 << 30))
        while "SPIN" in text:
            pass
        if "SLEEP" in text:
            time.sleep(3600)
        return super().tokenize(text, add_bos=add_bos, parse_special=parse_special)


if __name__ == "__main__":
    sys.exit(helper.main(lambda path: FatefulVocab()))
