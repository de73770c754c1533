"""Chat templates: programs in a model's file that turn messages into a prompt.

Rendered in jinja2's immutable sandbox with a deadline, a limit on the output and one on any
number or text computed on the way, because a sandboxed template still rendered 50 MB, and
because a long conversation can make an honest template slow. Loops, attribute access and
calls check the deadline. What remains (one huge `replace`, say) is a matter between the operator
and the model file for short messages; for long ones a helper process is ended by its own limits.

Owns the compiled template. Renders; neither tokenises nor knows HTTP.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lbhost.errors import ModelFileError, RenderLimitError, UnprocessableError

MAX_NUMBER = 10_000_000
"""Largest number that a template may pass to a function or multiply a text by."""

MAX_INDENT = 64
"""Characters by which `indent` may indent."""

_EVERY = 64
"""The clock is read once in so many checks."""

_SIZED_OPERATORS = frozenset({"+", "*", "**", "%"})
_UNBOUNDED_FILTERS = ("center", "format", "wordwrap", "xmlattr", "urlize")


class _LimitError(SecurityError):
    """Over a limit of time or length, which a helper may have more of."""


class _Meter:
    """What one rendering may still use."""

    def __init__(self, time_s: float, characters: int) -> None:
        self._deadline = time.monotonic() + time_s
        self.characters = characters
        self._checks = 0

    def tick(self) -> None:
        self._checks += 1
        if self._checks % _EVERY == 0 and time.monotonic() > self._deadline:
            raise _LimitError("it takes too long")

    def check_size(self, value: Any) -> Any:
        if isinstance(value, str | bytes | list | tuple) and len(value) > self.characters:
            raise _LimitError("it makes too long a text")
        return value


_meter: ContextVar[_Meter] = ContextVar("meter")


class _Generation(Extension):
    """Hugging Face's `{% generation %}` blocks mark training targets: passed through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the meter read wherever a template can spend time or memory."""

    intercepted_binops = _SIZED_OPERATORS

    def getattr(self, obj: Any, attribute: str) -> Any:
        _meter.get().tick()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _meter.get().tick()
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _meter.get()
        meter.tick()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_NUMBER:
                raise SecurityError("it calls a function with too large a number")
        return meter.check_size(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _meter.get()
        meter.tick()
        if operator != "+":
            for one, other in ((left, right), (right, left)):
                sized = isinstance(one, str | list | tuple)
                if sized and isinstance(other, int) and len(one) * other > MAX_NUMBER:
                    raise SecurityError("it multiplies a text by too large a number")
            if operator == "**" and isinstance(right, int) and right > 64:
                raise SecurityError("it raises to too large a power")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats with %")
        return meter.check_size(super().call_binop(context, operator, left, right))


def _ticking(items: Iterable[Any]) -> Iterator[Any]:
    meter = _meter.get()
    for item in items:
        meter.tick()
        yield item


def _concatenate(*parts: Any) -> str:
    meter = _meter.get()
    meter.tick()
    return str(meter.check_size("".join(str(part) for part in parts)))


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > MAX_NUMBER:
        raise SecurityError("it loops over too large a range")
    return made


def _raise_exception(message: str) -> None:
    raise UnprocessableError(f"the model's chat template refuses: {message}", param="messages")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: jinja2's own would escape for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("it indents too far")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """jinja2's, with a limit on the width."""
    if (width if isinstance(width, int) else len(width)) > MAX_INDENT:
        raise SecurityError("it indents too far")
    return str(_meter.get().check_size(do_indent(str(text), width, first, blank)))


def _metered(tree: nodes.Template, environment: jinja2.Environment) -> nodes.Template:
    """Loops and `~` as calls that the meter sees."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Call(_name("lbhost_ticking"), [loop.iter], [], None, None)
    _replace_concats(tree)
    tree.set_environment(environment)
    return tree


def _replace_concats(node: nodes.Node) -> None:
    for field in node.fields:
        value = getattr(node, field)
        if isinstance(value, list):
            setattr(node, field, [_replaced(item) for item in value])
        else:
            setattr(node, field, _replaced(value))


def _replaced(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_concats(value)
    if isinstance(value, nodes.Concat):
        return nodes.Call(_name("lbhost_concatenate"), value.nodes, [], None, None)
    return value


def _name(name: str) -> nodes.Name:
    return nodes.Name(name, "load")


class ChatTemplate:
    """A compiled chat template.

    Raises:
        ModelFileError: it is not a jinja2 template.
    """

    def __init__(self, source: str, *, bos_text: str = "", eos_text: str = "") -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.filters["indent"] = _indent
        for name in _UNBOUNDED_FILTERS:
            environment.filters.pop(name, None)
        environment.globals.clear()
        environment.globals.update(
            range=_range,
            namespace=jinja2.utils.Namespace,
            dict=dict,
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            lbhost_ticking=_ticking,
            lbhost_concatenate=_concatenate,
        )
        try:
            tree = _metered(environment.parse(source), environment)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelFileError(f"the model's chat template is broken: {error}") from error
        self._constants = {"bos_token": bos_text, "eos_token": eos_text}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        next_speaker: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        time_s: float,
        characters: int,
    ) -> str:
        """The prompt for an answer to these messages.

        Args:
            next_speaker: whether it ends with what comes before an answer.
            tools: functions that may be called, as Hugging Face's templates take them.
            options: more variables for the template.
            time_s: seconds of wall clock that it may take.
            characters: longest prompt, and longest text on the way there.

        Raises:
            UnprocessableError: the template refuses or fails.
            RenderLimitError: it goes over a limit.
        """
        variables = {
            "documents": None,
            "functions": json.dumps(tools) if tools else "",
            "datetime": _strftime_now("%b %d %Y %H:%M:%S"),
            **(options or {}),
            "messages": messages,
            "add_generation_prompt": next_speaker,
            "tools": tools,
            **self._constants,
        }
        try:
            return self._rendered(variables, time_s, characters)
        except UnprocessableError as error:
            if tools is not None or not isinstance(error.__cause__, TypeError):
                raise
            # Some templates loop over the tools without asking whether there are any.
            return self._rendered({**variables, "tools": ()}, time_s, characters)

    def _rendered(self, variables: Mapping[str, Any], time_s: float, characters: int) -> str:
        meter = _Meter(time_s, characters)
        token = _meter.set(meter)
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                meter.tick()
                if size > characters:
                    raise _LimitError("it makes too long a text")
        except _LimitError as error:
            raise RenderLimitError(
                f"the model's chat template cannot render these messages: {error}",
                param="messages",
            ) from error
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise UnprocessableError(
                f"the model's chat template cannot render these messages: {error}",
                param="messages",
            ) from error
        finally:
            _meter.reset(token)
        return "".join(pieces)
