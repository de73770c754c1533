"""From a request's body to work for a worker: parse, check, render, tokenise, fit.

Computes and never waits. The gateway runs it for short bodies, a helper process for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lbhost import wire
from lbhost.errors import ContextLengthError, ModelNotFoundError
from lbhost.gateway.api import dialects
from lbhost.gateway.api.generation import (
    Echo,
    Generation,
    Infill,
    Plain,
    Prompt,
    Several,
    Style,
    Turn,
)
from lbhost.gateway.api.reading import Reading
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.api.tools.families import SYNTAX, Family
from lbhost.gateway.api.tools.forced import Tool, calls_only
from lbhost.gateway.api.tools.forced_tags import text_arguments
from lbhost.gateway.prompt import habits, inputs, questions, tool_turns
from lbhost.gateway.prompt.grammars import Grammars
from lbhost.gateway.prompt.inputs import InputReader, Inputs, check_kind
from lbhost.gateway.prompt.prompter import Limits, Prompter, Vocabulary
from lbhost.gateway.prompt.questions import Questions, Told
from lbhost.gateway.scheduling.job import Work
from lbhost.grammar import Grammar, GrammarKind
from lbhost.purpose import GENERATES, Purpose


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """A request that can be answered, as far as its body goes."""

    works: tuple[Work, ...]
    """One for each prompt."""
    style: Style = Style()
    echoes: tuple[Echo, ...] = ()
    """One for each prompt, where answers begin with it."""
    n: int = 1
    best_of: int = 1
    """As in Generation."""
    tier: str | None = None
    """As in Generation."""
    grammar: Grammar | None = None
    """What the works' grammar was made from."""


class Preparation:
    """Turns bodies into work, for one model."""

    def __init__(
        self,
        vocab: Vocabulary,
        n_ctx: int,
        alias: str,
        limits: Limits,
        grammars: Grammars,
        purpose: Purpose = GENERATES,
        aliases: Sequence[str] = (),
    ) -> None:
        """`aliases`: more names of the model, beside `alias`."""
        self._vocab = vocab
        self._purpose = purpose
        self._n_ctx = n_ctx
        self._alias = alias
        self._names = {alias, *aliases}
        self._prompter = Prompter(vocab, n_ctx, limits)
        self._questions = Questions(vocab, self._prompter, self._count, self._rendered)
        self._inputs = InputReader(vocab, self._prompter, purpose, n_ctx, self._check_name)
        self._grammars = grammars
        self._habits = habits.of(vocab.chat_template)
        self._shown = self._prompter.special_tokens(self._habits.marks)

    def prepare(self, body: bytes, kind: Kind) -> Taken | Inputs | Told:
        """Raises InvalidRequestError and its kin, ModelNotFoundError, TooLongInlineError."""
        if kind in questions.PATHS:
            return self._questions.tell(body, kind)
        check_kind(kind, self._purpose, body, self._check_name)
        if kind in inputs.PATHS:
            return self._inputs.read(body, kind)
        parsed = dialects.parse(body, kind, self._vocab.n_tokens)
        generation = parsed.generation
        tokens = self._tokens(generation)
        reading = self._reading(generation, tokens[0])
        grammar = self._grammar(generation, reading)
        bound = "" if grammar is None else self._grammars.written(grammar)
        return Taken(
            tuple(self._fit(generation, one, bound, reading) for one in tokens),
            msgspec.structs.replace(parsed.style, prompt_tokens=len(tokens[0]), reading=reading),
            self._echoes(generation.prompt, tokens) if generation.echo else (),
            generation.n,
            generation.best_of,
            generation.tier,
            grammar,
        )

    def _check_name(self, model: str | None) -> None:
        """Raises ModelNotFoundError: this is another model."""
        if model is not None and model not in self._names:
            raise ModelNotFoundError(
                f"model {model[:100]!r} is not served here; {self._alias!r} is", param="model"
            )

    def _count(self, generation: Generation) -> int:
        """Tokens of all its prompts."""
        return sum(len(tokens) for tokens in self._tokens(generation))

    def _rendered(self, generation: Generation) -> str:
        """A conversation as the model reads it."""
        assert isinstance(generation.prompt, tuple)
        how = self._how(generation.prompt, generation)
        text = self._prompter.rendered(**how)
        return text + self._opening(generation, text)

    def _tokens(self, generation: Generation) -> list[list[int]]:
        """Those of each prompt. Raises ModelNotFoundError."""
        self._check_name(generation.model)
        prompt = generation.prompt
        if isinstance(prompt, tuple):
            return [self._conversation(prompt, generation)]
        if isinstance(prompt, Infill):
            return self._prompter.infill(prompt.prompts, prompt.after, prompt.after_param)
        return [
            self._prompter.text(one) if isinstance(one, str) else one or self._prompter.empty()
            for one in _plain(prompt)
        ]

    def _echoes(self, prompt: Prompt, tokens: list[list[int]]) -> tuple[Echo, ...]:
        assert not isinstance(prompt, tuple)
        return tuple(
            Echo(given if isinstance(given, str) else self._prompter.said(made), made[0])
            for given, made in zip(_plain(prompt), tokens, strict=True)
        )

    def _conversation(self, turns: Sequence[Turn], generation: Generation) -> list[int]:
        tokens = self._prompter.chat(**self._how(turns, generation))
        end = self._prompter.said(tokens[-16:])
        opening = self._opening(generation, end)
        return tokens + self._prompter.suffix(opening) if opening else tokens

    def _how(self, turns: Sequence[Turn], generation: Generation) -> dict[str, Any]:
        """What Prompter.chat and Prompter.rendered take."""
        tools = () if generation.tools is None else generation.tools.tools
        foreign = self._is_foreign(turns, tools)
        return {
            "messages": self._messages(turns, tools),
            "next_speaker": generation.next_speaker,
            "continues": generation.continues,
            "tools": tool_turns.specs(tools) if tools and not foreign else None,
            "options": generation.template_options,
        }

    def _opening(self, generation: Generation, prompt: str) -> str:
        """What the prompt ends with beyond what the template says. `prompt`: its end."""
        use, thinking = generation.tools, self._habits.thinking
        forced = use is not None and bool(use.forced)
        begins = generation.reads and generation.next_speaker
        if not forced and (generation.grammar is None or not begins):
            return ""
        opening = self._habits.opening(calls=forced)
        if opening and thinking is not None and prompt.rstrip().endswith(thinking.opening):
            return f"{thinking.closing}\n\n{opening}"  # nothing opens within a thought
        return opening

    def _is_foreign(self, turns: Sequence[Turn], tools: Sequence[Tool]) -> bool:
        """Whether there are calls, and the template knows none."""
        called = any(turn.calls or turn.role == "tool" for turn in turns)
        return self._habits.family is Family.GENERIC and (bool(tools) or called)

    def _messages(self, turns: Sequence[Turn], tools: Sequence[Tool]) -> tool_turns.Messages:
        """As the model's chat template takes them."""
        if self._is_foreign(turns, tools):
            messages = tool_turns.generic(turns, tools)
        else:
            messages = tool_turns.native(turns, self._habits.family)
            if tools and not self._habits.lists_tools:
                messages = tool_turns.told(messages, tools)
        return messages if self._habits.system else tool_turns.without_system(messages)

    def _reading(self, generation: Generation, tokens: list[int]) -> Reading | None:
        """What is to be found in the answer's text."""
        if not generation.reads:
            return None
        thinking, use = self._habits.thinking, generation.tools
        harmony = self._habits.family is Family.HARMONY
        if generation.grammar is not None and harmony:
            return None  # the prompt has begun the channel, and the grammar lets none follow
        if generation.grammar is not None and generation.grammar.kind is GrammarKind.JSON_SCHEMA:
            thinking = None  # even where the prompt has begun one: the grammar lets none be written
        if thinking is not None:
            end = self._prompter.said(tokens[-16:]).rstrip()
            begun = end.endswith(thinking.opening)
            thinking = msgspec.structs.replace(thinking, begun=begun)
        if use is None:
            if harmony:  # whose texts are in channels too
                return Reading(thinking, Family.HARMONY)
            return None if thinking is None else Reading(thinking)
        tagged = SYNTAX[self._habits.family].tags is not None
        return Reading(
            thinking if thinking is None or thinking.begun or not use.forced else None,
            self._habits.family,
            tuple(tool.name for tool in use.tools),
            {t.name: text_arguments(t.parameters) for t in use.tools} if tagged else {},
            forced=bool(use.forced),
            parallel=use.parallel,
        )

    def _grammar(self, generation: Generation, reading: Reading | None) -> Grammar | None:
        use = generation.tools
        if use is None or not use.forced or reading is None:
            return generation.grammar
        thinking = reading.thinking
        return calls_only(
            [tool for tool in use.tools if tool.name in use.forced],
            self._habits.family,
            parallel=use.parallel,
            thinking_until="" if thinking is None else thinking.closing,
        )

    def _fit(
        self, generation: Generation, tokens: list[int], grammar: str, reading: Reading | None
    ) -> Work:
        room = self._n_ctx - len(tokens)
        if room < 1:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, prompt and output together; "
                f"this prompt is {len(tokens)} tokens",
                param=generation.prompt_param,
            )
        if len(tokens) > wire.MAX_PROMPT_TOKENS:
            raise ContextLengthError(
                f"a prompt has at most {wire.MAX_PROMPT_TOKENS} tokens, not {len(tokens)}",
                param=generation.prompt_param,
            )
        wanted = generation.max_tokens
        if wanted is not None and wanted > room:
            raise ContextLengthError(
                f"the context holds {self._n_ctx} tokens, prompt and output together; "
                f"this prompt is {len(tokens)} tokens, and {wanted} more are asked for",
                param=generation.max_tokens_param,
            )
        room = min(room, wire.MAX_PROMPT_TOKENS)
        usual = room if generation.usual_tokens is None else min(generation.usual_tokens, room)
        return Work(
            prompt=wire.pack_tokens(tokens),
            prompt_tokens=len(tokens),
            max_tokens=usual if wanted is None else min(wanted, room),
            sampling=generation.sampling,
            stop=generation.stop,
            ignore_eos=generation.ignore_eos,
            stream=generation.stream,
            rank=generation.rank,
            logprobs=self._scores(generation),
            prompt_logprobs=generation.echo and generation.logprobs is not None,
            grammar=grammar,
            shown=() if reading is None else self._shown,
        )

    @staticmethod
    def _scores(generation: Generation) -> int | None:
        """The most probable of several answers is known by its log-probabilities."""
        judged = generation.best_of > generation.n
        return 0 if generation.logprobs is None and judged else generation.logprobs


def _plain(prompt: Plain | Several) -> tuple[Plain, ...]:
    return prompt.prompts if isinstance(prompt, Several) else (prompt,)
