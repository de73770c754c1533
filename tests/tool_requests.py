"""Requests with tools, as the tests of calling and reading make them."""

from __future__ import annotations

from typing import Any

import msgspec

from lbhost import guidance, wire
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.grammars import Grammars
from lbhost.gateway.prompt.preparation import Preparation, Taken
from lbhost.gateway.prompt.prompter import IN_HELPER
from toy_vocab import ToyVocab

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "required": ["city"],
            "$defs": {"City": {"type": "string", "maxLength": 20}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
HI = [{"role": "user", "content": "hi"}]
HERMES = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages %}"
    "[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}"
    "{% endif %}{# </think> #}"
)


def prepare(template: str = HERMES, **fields: Any) -> tuple[str, Taken]:
    """The prompt's text, and the rest."""
    vocab = ToyVocab(template)
    body = msgspec.json.encode({"messages": HI, **fields})
    preparation = Preparation(vocab, 8192, "toy", IN_HELPER, Grammars(guidance.check))
    taken = preparation.prepare(body, Kind.CHAT)
    assert isinstance(taken, Taken)
    return vocab.text(wire.unpack_tokens(taken.works[0].prompt)), taken


def accepts(written: str, text: str) -> bool:
    """Whether a whole answer follows the grammar."""
    matcher = guidance._compiled(guidance._bytes(), written)
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()
