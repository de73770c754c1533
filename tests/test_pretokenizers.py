"""Every pre-tokeniser of llama.cpp, within the limits for what the gateway tokenises itself."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_gguf
from lbhost.gateway.prompt import stack
from lbhost.llama import OWN_SPLITTERS, Vocab

OTHERS = frozenset(
    {
        *("default", "minicpm5", "jais-2", "deepseek-llm", "deepseek-coder", "deepseek-v3"),
        *("youtu", "falcon", "qwen35", "poro-chat", "chatglm-bpe", "viking", "jais", "tekken"),
        *("bloom", "gpt3-finnish", "exaone-moe", "chameleon", "minerva-7b", "gpt-4o"),
        *("tiny_aya", "superbpe", "trillion", "granite-docling", "bailingmoe", "seed-coder"),
        *("hunyuan-dense", "kimi-k2", "grok-2", "afmoe", "minimax-m2", "solar-open"),
    }
)
TOKENISE = """
import sys
from lbhost.llama import Vocab
length = int(sys.argv[1])
for path in sys.argv[2:]:
    vocab = Vocab.load(path)
    runs = "a A ! 1 aA a1 's \\u4e00 \\u00e9 \\ud55c \\u0301 \\U0001f600".split()
    for run in [*runs, " ", "\\n", " a"]:
        for tail in ("", "x"):
            assert vocab.tokenize((run * length)[:length] + tail, add_bos=False, parse_special=True)
    vocab.close()
"""


def tokenise_on(stack_bytes: int, length: int, paths: list[Path]) -> int:
    """The exit code of a process with such a stack that tokenises runs of such a length."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    done = subprocess.run(
        [sys.executable, "-c", TOKENISE, str(length), *map(str, paths)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (stack_bytes, hard)),
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("stack_bytes", [1 << 20, 4 << 20])
def test_no_text_within_the_limit_reaches_the_end_of_the_stack(
    tmp_path: Path, stack_bytes: int
) -> None:
    paths = [tiny_gguf.write(tmp_path / f"{pre}.gguf", pre) for pre in sorted(OTHERS)]
    length = stack.inline_characters(True, stack_bytes)
    assert length > 0
    # Twice over: the gateway's own frames lie below llama.cpp's.
    assert tokenise_on(stack_bytes // 2, length, paths) == 0


def test_own_splitters_need_next_to_no_stack(tmp_path: Path) -> None:
    paths = [tiny_gguf.write(tmp_path / f"{pre}.gguf", pre) for pre in sorted(OWN_SPLITTERS)]
    for path in paths:
        vocab = Vocab.load(path)
        assert not vocab.uses_regex, path
        vocab.close()
    assert tokenise_on(1 << 20, stack.LONGEST, paths) == 0


def test_the_danger_is_real(tmp_path: Path) -> None:
    """Or else the limits are in vain."""
    for pre in ("deepseek-coder", "falcon"):
        path = tiny_gguf.write(tmp_path / f"{pre}.gguf", pre)
        vocab = Vocab.load(path)
        assert vocab.uses_regex
        vocab.close()
        assert tokenise_on(8 << 20, 60_000, [path]) != 0


def test_a_small_stack_means_no_text_inline() -> None:
    assert stack.inline_characters(True, 64 * 1024) == 0
    assert stack.inline_characters(True, -1) == stack.LONGEST_WITH_REGEX
    assert stack.inline_characters(False, 64 * 1024) == stack.LONGEST
