"""What a child gets to know of the environment: what it works with, and no secret."""

from __future__ import annotations

from collections.abc import Mapping

from lbhost import config

KEPT = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "XDG_CACHE_HOME", "NO_COLOR", "TERM"}
)
_KEPT_PREFIXES = (
    *("LBHOST_", "LLAMA_", "GGML_", "PYTHON", "LD_", "LC_", "MALLOC_", "GLIBC_"),
    *("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "BLIS_", "MKL_"),
    *("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "VK_"),
)
_SECRET = frozenset(f"LBHOST_{key.upper()}" for key in config.SECRET)
"""The gateway gets it on its link."""


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what no child needs: keys of ours or of others, tokens, sockets."""
    return {
        name: value
        for name, value in environ.items()
        if (name in KEPT or name.startswith(_KEPT_PREFIXES)) and name not in _SECRET
    }
