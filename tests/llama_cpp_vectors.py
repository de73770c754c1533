"""llama.cpp's own vectors, an input at a time: what lbhost's are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lbhost.llama import Vocab
from lbhost.llamacpp import api

SHARED = Path(__file__).parents[2] / "shared/models/all-MiniLM-L6-v2-Q8_0.gguf"
"""A real embedding model, where somebody has put it beside the checkout."""

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]


class Reference:
    """A context of its own for every vector, as a loop over llama_cpp has it."""

    def __init__(self, path: Path | str, pooling: int = -1) -> None:
        params = api.llama_model_default_params()
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        assert self._model
        self._vocab = Vocab(self._model, owned=False)
        self._pooling = pooling

    def tokens(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, add_bos=True, parse_special=True)

    def vector(self, tokens: list[int], width: int | None = None) -> Vector:
        """As the model has it, not normalised."""
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        params.embeddings = True
        params.pooling_type = self._pooling
        ctx = api.llama_init_from_model(self._model, params)
        batch = api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, at
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, 0, 1
            assert api.llama_decode(ctx, batch) == 0
            found = api.llama_get_embeddings_seq(ctx, 0)
            width = width or int(api.llama_model_n_embd_out(self._model))
            return np.array(found[:width], np.float32)
        finally:
            api.llama_batch_free(batch)
            api.llama_free(ctx)

    def close(self) -> None:
        api.llama_model_free(self._model)


def cosine(one: Vector, other: Vector) -> float:
    """Of the angle between them; 1 where they point the same way."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
