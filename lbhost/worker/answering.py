"""From a computed batch to what a request is told: its next token, the text of it, how probable it
was, and whether it was the last. Owns nothing: what it changes is the request that is handed in.
"""

from __future__ import annotations

from lbhost.wire import Delta, FinishReason, TokenLogprob, unpack_tokens
from lbhost.worker import logprobs
from lbhost.worker.interfaces import ContextLike, VocabLike
from lbhost.worker.requests import Entry, Request, Slot


class Answering:
    """See the module."""

    def __init__(self, context: ContextLike, vocab: VocabLike) -> None:
        self._context = context
        self._vocab = vocab

    def replay(self, request: Request) -> FinishReason | None:
        """Bring a request's text to where other workers have left it. Why it ends there, if so.

        What this releases was told with those tokens.
        """
        if not request.submit.done:
            return None
        for token in unpack_tokens(request.submit.done):
            if self._vocab.is_eog(token):
                return FinishReason.STOP
            request.text.feed(self._piece(request, token))
            if request.text.stopped:
                return FinishReason.STOP
        return FinishReason.LENGTH if request.completion >= request.submit.max_tokens else None

    def score(self, entry: Entry) -> Delta:
        """How probable the prompt's tokens were that come after those just computed."""
        submit, top = entry.request.submit, entry.request.submit.logprobs or 0
        count = len(entry.packed) // 4
        at = len(entry.slot.tokens) - 4 * (count - 1)
        scores = tuple(
            logprobs.of_token(self._context.logits(entry.index - count + 1 + i), token, top)
            for i, token in enumerate(unpack_tokens(submit.prompt[at : at + 4 * count]))
        )
        return Delta(submit.request, (), "", prompt_logprobs=scores)

    def pick(self, entry: Entry) -> tuple[int, tuple[TokenLogprob, ...]]:
        """A request's next token, and its log-probability if that was asked for.

        Raises:
            LogitsError: the model computed something that is no number.
            GrammarError: the grammar cannot be followed any further.
        """
        top, sampler = entry.request.submit.logprobs, entry.request.sampler
        assert sampler is not None
        if top is None:
            return sampler.pick(self._context, entry.index), ()
        logits = self._context.logits(entry.index).copy()  # the sampler changes them
        token = sampler.pick(self._context, entry.index)
        if self._vocab.is_eog(token):
            return token, ()
        return token, (logprobs.of_token(logits, token, top),)

    def append(self, slot: Slot, request: Request, token: int) -> tuple[str, FinishReason | None]:
        """One more token of a request: what text it releases, and why it is the last, if it is."""
        request.completion += 1
        if self._vocab.is_eog(token):
            return "", FinishReason.STOP
        text = request.text.feed(self._piece(request, token))
        assert request.sampler is not None
        if request.text.stopped or request.sampler.finished:
            return text, FinishReason.STOP
        full = len(slot.tokens) // 4 >= self._context.n_ctx
        if full or request.completion >= request.submit.max_tokens:
            return text, FinishReason.LENGTH
        return text, None

    def _piece(self, request: Request, token: int) -> bytes:
        """What a token adds to a request's text."""
        return self._vocab.piece(token, special=token in request.submit.shown)
