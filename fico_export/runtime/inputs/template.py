"""A checkpoint's chat template: a program that came with a download, run in a sandbox with bounds of time and size.

What it renders equals transformers' rendering. What could run or grow without end is held to `bounds`:

- every operator, filter, call and literal that makes a value is measured, before where it could be large at once;
- the body of every loop, macro and block begins with a step, which looks at the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from fico_export.errors import ConfigError
from fico_export.runtime.inputs import bounds

MAX_SOURCE = 2**16
"""Characters of the longest template that is compiled: twice the longest that is published."""

MAX_FORMAT = 1000
"""Characters of the longest format that `strftime_now` takes."""

_FIX = "correct chat_template.jinja (or .json) and export again"


class ChatTemplate:
    """A compiled template.

    Args:
        source: the jinja2 text.

    Raises:
        ConfigError: it is no template, or longer than `MAX_SOURCE`.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise ConfigError(
                f"the chat template has {len(source)} characters, more than {MAX_SOURCE}", fix=_FIX
            )
        try:
            with bounds.within_bounds():
                self._template = _environment().from_string(source)
        except Exception as error:  # besides its own errors, those of Python's compiler and of the stack
            why = "nested too deep" if isinstance(error, RecursionError | MemoryError) else error
            raise ConfigError(f"the chat template cannot be read: {why}", fix=_FIX) from error

    def render(self, **variables: Any) -> str:
        """The text that the template makes of the variables.

        Raises:
            ConfigError: it runs or grows beyond the bounds.
            Exception: a template is a program: it fails in any way that Python does.
        """
        try:
            with bounds.within_bounds() as spent:
                pieces = []
                for piece in self._template.generate(**variables):
                    spent.output(piece)
                    pieces.append(piece)
                return "".join(pieces)
        except (bounds.Exceeded, RecursionError, MemoryError) as error:
            why = error if isinstance(error, bounds.Exceeded) else "it calls itself without end"
            raise ConfigError(f"the chat template was stopped: {why}", fix=_FIX) from error


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the words to train on; a prompt has them like any others."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Measured(jinja2.visitor.NodeTransformer):
    """Puts steps and measures into a parsed template; what it renders stays the same."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """The node, or what stands for it."""
        self.generic_visit(node)
        if isinstance(node, nodes.For | nodes.Macro | nodes.Block | nodes.CallBlock):
            written = sum(
                len(data.data) for child in node.body for data in child.find_all(nodes.TemplateData)
            )
            step = _filtered(nodes.Const(written), "_step", node.lineno)
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        elif isinstance(node, nodes.Concat):
            return _filtered(nodes.List(node.nodes), "_joined", node.lineno)
        elif isinstance(node, nodes.List | nodes.Dict) or (
            isinstance(node, nodes.Tuple) and node.ctx == "load"
        ):
            return _filtered(node, "_measured", node.lineno)
        return node


def _filtered(node: nodes.Expr, name: str, line: int) -> nodes.Filter:
    node.lineno = line
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox that chat templates are written for, its operators, calls and filters within bounds."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Measured().visit(super()._parse(source, name, filename))
        return parsed

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        bounds.before_operator(operator, left, right)
        return bounds.measured(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
        bounds.before_call(__obj, args, kwargs)
        return bounds.measured(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else bounds.formatting(wrapped, value)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        finalize=bounds.written,
    )
    environment.filters["tojson"] = bounds.to_json
    environment.filters = {name: bounds.bounded_filter(name, f) for name, f in environment.filters.items()}
    environment.filters |= {
        "_step": bounds.step,
        "_joined": bounds.joined,
        "_measured": bounds.measured_value,
    }
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    environment.globals["lipsum"] = bounds.lipsum
    return environment


def _now(format: str) -> str:
    if len(format) > MAX_FORMAT:
        raise bounds.Exceeded(f"a format of time has over {MAX_FORMAT} characters")
    return datetime.now().strftime(format)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _Dict:
    """``dict`` of a template, as transformers has it: to be called, and nothing to be reached through."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """`dict.fromkeys`."""
        made: dict[Any, Any] = dict.fromkeys(*args)
        return made


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` of a template, as transformers has it: no names with an underscore in front."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        _Namespace._check(attributes)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check({name: value})
        super().__setitem__(name, value)

    @staticmethod
    def _check(attributes: Mapping[Any, Any]) -> None:
        for name in attributes:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace takes no name such as {name!r}")
