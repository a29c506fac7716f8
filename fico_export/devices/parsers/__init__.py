"""What the ONNX parsers of TensorRT and TensorRT-RTX take, by version: `operators.toml` and how to read it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from pydantic import Field, model_validator

from fico_export import tables
from fico_export.devices.nvidia import LIBRARIES, ParserName
from fico_export.tables import Record


class Parser(Record):
    """The parser of one version, such as TensorRT 10.3."""

    runtime: ParserName
    version: str = Field(pattern=r"^\d+\.\d+$")


class Since(Record):
    """The first version of each runtime that has something; None for none. `instead` is what to write without it."""

    tensorrt: str | None = None
    rtx: str | None = None
    instead: str

    def known_to(self, parser: Parser) -> bool:
        """Whether a parser has it."""
        first: str | None = getattr(self, parser.runtime)
        return first is not None and _number(first) <= _number(parser.version)

    def __str__(self) -> str:
        """Such as `TensorRT 10.14, TensorRT-RTX 1.7`; empty for no version at all."""
        return ", ".join(
            f"{library.name} {v}" for library in LIBRARIES if (v := getattr(self, library.parser)) is not None
        )


class Rule(Record):
    """Something of an operator that a parser does not take; `says` completes the sentence that starts with its name.

    It looks at one thing: an attribute (its `values`, or that it is `without` a text), an input (`constant`, `zero`,
    `positive`, `given`, `absent`, `even` in its last dimension, of `types`), the number of `outputs`, or, `in_place`, that
    its first input and output are the graph's. It holds for nodes whose first input has the type `when`, and `until` a
    version; for ever where that has none.
    """

    operators: list[str]
    says: str
    fix: str
    attribute: str | None = None
    values: list[str | int] | None = None
    without: str | None = None
    input: int | None = None
    constant: bool = False
    zero: bool = False
    positive: bool = False
    given: bool = False
    absent: bool = False
    even: bool = False
    types: list[str] | None = None
    outputs: int | None = None
    in_place: bool = False
    when: str | None = None
    until: dict[ParserName, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _looks_at_one_thing(self) -> Rule:
        looks = [self.constant, self.zero, self.positive, self.given, self.absent, self.even, self.in_place]
        looks += [
            self.values is not None,
            self.without is not None,
            self.types is not None,
            self.outputs is not None,
        ]
        if sum(looks) != 1:
            raise ValueError("a rule looks at one thing")
        return self

    def holds_for(self, parser: Parser) -> bool:
        """Whether a parser is bound by it."""
        last = self.until.get(parser.runtime)
        return last is None or _number(parser.version) < _number(last)


class Table(Record):
    """The whole of operators.toml."""

    common: frozenset[str]
    later: dict[str, Since]
    types: dict[str, Since]
    rules: list[Rule]

    def operators(self, parser: Parser) -> frozenset[str]:
        """The operators that a parser takes."""
        return self.common | {name for name, since in self.later.items() if since.known_to(parser)}

    def rules_of(self, parser: Parser) -> tuple[Rule, ...]:
        """The rules that bind a parser."""
        return tuple(rule for rule in self.rules if rule.holds_for(parser))

    def refused_types(self, parser: Parser) -> dict[str, Since]:
        """The types of tensors that a parser refuses."""
        return {name: since for name, since in self.types.items() if not since.known_to(parser)}


@cache
def table() -> Table:
    """operators.toml."""
    text = (resources.files(__name__) / "operators.toml").read_text(encoding="utf-8")
    return tables.checked(Table, tables.parse(text, "operators.toml"), "operators.toml")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
