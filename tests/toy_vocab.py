"""A vocabulary without a model: a byte is a token, and a handful of special ones."""

from __future__ import annotations

import re

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ToyVocab:
    """Implements gateway.prompt.Vocabulary; tokens 0 to 255 are bytes, then the specials."""

    def __init__(self, template: str | None = CHATML, bos_text: str | None = None) -> None:
        self.chat_template = template
        self.special_texts: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<s>")
        self.n_tokens = 256 + len(self.special_texts)
        self.bos_text = bos_text
        self.bos = None if bos_text is None else self._special(bos_text)
        self.eos_text: str | None = "<|im_end|>"
        self.uses_regex = False
        self.infill_tokens: tuple[int, int, int] | None = None
        self.rerank_template: str | None = None
        self.pair_marks: tuple[list[int], list[int], list[int]] = ([], [10], [])
        self.calls = 0

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        self.calls += 1
        tokens = [self.bos] if add_bos and self.bos is not None else []
        pattern = "|".join(map(re.escape, self.special_texts))
        for part in re.split(f"({pattern})", text) if parse_special else [text]:
            if parse_special and part in self.special_texts:
                tokens.append(self._special(part))
            else:
                tokens += part.encode()
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        if token < 256:
            return bytes([token])
        return self.special_texts[token - 256].encode() if special else b""

    def text(self, tokens: list[int]) -> str:
        """What the tokens say, specials in full."""
        return "".join(
            self.special_texts[t - 256] if t >= 256 else bytes([t]).decode("latin-1")
            for t in tokens
        )

    def _special(self, text: str) -> int:
        return 256 + self.special_texts.index(text)
