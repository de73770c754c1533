"""What a worker is sent for an attempt of a job. Pure."""

from __future__ import annotations

from lbhost import wire
from lbhost.gateway.scheduling.sessions import Attempt


def message(attempt: Attempt, *, attached: bool) -> wire.Submit | wire.Embed:
    """The request as the worker takes it.

    Args:
        attached: whether a KV state goes ahead of it.
    """
    job, work = attempt.job, attempt.job.work
    if work.inputs:
        return wire.Embed(attempt.number, work.prompt, work.inputs, work.rank)
    return wire.Submit(
        request=attempt.number,
        prompt=work.prompt,
        max_tokens=work.max_tokens,
        sampling=work.sampling,
        stop=work.stop,
        ignore_eos=work.ignore_eos,
        rank=work.rank,
        logprobs=work.logprobs,
        prompt_logprobs=work.prompt_logprobs,
        grammar=work.grammar,
        shown=work.shown,
        done=job.done(),
        state=attempt.number if attached else 0,
        kept=job.match.tokens if job.match is not None else 0,
        scope=work.scope,
        adapter=work.adapter,
    )
