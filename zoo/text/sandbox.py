"""Where chat templates run: they are programs that come with weights from anywhere.

jinja2's sandbox keeps them from attributes and from changing what they are given. What is added here keeps them short:
every text that they make and every turn of a loop is charged to a budget, whose end is an error.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

CHARACTERS = 1 << 28  # that one rendering may make, in all its intermediate texts
STEP = 256  # characters that a call, a filter or a turn of a loop counts as
SECONDS = 10.0
BITS = 4096  # of a whole number
WIDTH = 1000  # of a formatted field, at most
MULTIPLYING = {"batch", "center", "format", "indent", "join", "replace", "slice", "sum", "tojson", "urlize", "wordwrap"}
_WIDE = re.compile(r"\{[^{}]*\d{4}|%[-+ #0.\d]*\d{4}")


class Meter:
    """What is left of one rendering's budget."""

    def __init__(self) -> None:
        self.left, self.until = CHARACTERS, time.monotonic() + SECONDS

    def charge(self, characters: int) -> None:
        """Raise a SecurityError when the budget is used up."""
        self.left -= STEP + characters
        if self.left < 0 or time.monotonic() > self.until:
            raise SecurityError(f"it takes more than {CHARACTERS:,} characters of text or {SECONDS:g} seconds")


METER: ContextVar[Meter] = ContextVar("METER")  # unset while a template is compiled: nothing is evaluated then


def render(template: Template, variables: Mapping[str, Any]) -> str:
    """The text of a template, within the budget."""
    token = METER.set(Meter())
    try:
        return "".join(template.generate(**variables))
    finally:
        METER.reset(token)


def size(value: Any, counting: bool = False) -> int:
    """Characters in a value and all that lies in it, at least 1; ``counting``: a number may be one of repetitions."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, int):
            total += abs(item) if counting else 1
        elif isinstance(item, (list, tuple, set, dict)):
            METER.get().charge(len(item))  # lists that hold each other twice are small, and endless when written out
            stack.extend(item.items() if isinstance(item, dict) else item)
    return max(1, total)


def affordable(*values: Any, formatting: Any = None) -> None:
    """Charge for what comes of values that may multiply: repeated, joined, replaced, padded or formatted."""
    if isinstance(formatting, str) and _WIDE.search(formatting):
        raise SecurityError(f"it formats a field wider than {WIDTH - 1}")
    product = WIDTH if formatting is not None else 1
    for value in values:
        product *= size(value, counting=True)
        if product > CHARACTERS:
            raise SecurityError(f"it makes more than {CHARACTERS:,} characters of text at once")
    METER.get().charge(0)


def made(value: Any) -> Any:
    """A value that was made, charged."""
    if isinstance(value, int) and value.bit_length() > BITS:
        raise SecurityError(f"it makes a number of more than {BITS} bits")
    METER.get().charge(len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0)
    return value


@pass_context
def read(context: Context, value: Any) -> Any:
    """What is put out, joined or compared, charged with all that lies in it."""
    METER.get().charge(size(value))
    return value


@pass_context
def turns(context: Context, values: Iterable[Any], characters: int) -> Iterator[Any]:
    """What a loop goes through, each turn charged with the text in the loop."""
    for value in values:
        METER.get().charge(characters)
        yield value


class Metered(NodeTransformer):
    """Charges what a template puts out, joins and compares, and its loops."""

    def visit_For(self, node: Any) -> Any:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "turns", nodes.Const(text))
        return node

    def visit_Concat(self, node: Any) -> Any:
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _filtered(part, "read") for part in node.nodes]
        return node

    visit_Output = visit_Concat

    def visit_Compare(self, node: Any) -> Any:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "read")
        return node

    visit_Operand = visit_Compare


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class Generation(Extension):
    """``{% generation %}`` marks what the assistant said, for training; what it holds is put out as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's way

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Variables(Namespace):
    """``namespace()``, whose names do not start with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *given = args
        for name in dict(*given, **values):
            _check_name(name)
        Namespace.__init__(self, *given, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"it gives a namespace the name {name!r}")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with the functions that transformers gives them."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension])
        self.filters["tojson"] = to_json
        self.filters = {name: _metered(name, function) for name, function in self.filters.items()}
        self.filters |= {"read": read, "turns": turns}
        self.globals = {
            "range": self.globals["range"],
            "dict": lambda *args, **values: dict(*args, **values),
            "namespace": Variables,
            "raise_exception": raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Metered().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operation that may make much of little."""
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" and isinstance(right, int) and right > BITS:
            raise SecurityError(f"it raises a number to the power of {right}")
        if not numbers and operator != "+":
            affordable(left, right, formatting=left if operator == "%" else None)
        return made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **values: Any) -> Any:
        """A call, charged with what comes of it."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            affordable(owner, args, values)
        return made(super().call(context, obj, *args, **values))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja2's guarded ``str.format``, charged."""
        guarded = super().wrap_str_format(value)
        if guarded is None:
            return None

        def wrapped(*args: Any, **values: Any) -> str:
            affordable(value.__self__, args, values, formatting=value.__self__)
            return guarded(*args, **values)

        return wrapped


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged with what comes of it."""

    @functools.wraps(function)
    def metered(*args: Any, **values: Any) -> Any:
        if name in MULTIPLYING:
            affordable(*args, *values.values(), formatting=args[0] if name == "format" else None)
        else:
            METER.get().charge(size(args))
        return made(function(*args, **values))

    return metered


def to_json(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """JSON as transformers writes it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    """How a template refuses messages."""
    raise TemplateError(message)
