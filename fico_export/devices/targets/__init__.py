"""Targets by name: `<name>.toml` in this folder. Those with a parser take its operators, from `devices/parsers`."""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

from pydantic import Field

from fico_export import tables
from fico_export.devices import parsers
from fico_export.devices.parsers import Parser, Rule, Since
from fico_export.errors import ConfigError, unknown_name
from fico_export.tables import Record

DEFAULT = "portable"
CONTRIB = "com.microsoft"


class Limits(Record):
    """Numbers a target's parser or builder will not go beyond."""

    topk: int


class Int4(Record):
    """How a target takes INT4 weights.

    Attributes:
        form: the operator that reads them: standard DequantizeLinear, or com.microsoft::MatMulNBits.
        activations: what it computes in.
        opset: of a graph that holds it.
        signed_scales: whether a scale may be negative, which makes the most of sixteen levels.
    """

    form: Literal["dequantize", "matmul_nbits"]
    activations: Literal["fp16", "fp32"]
    opset: int
    signed_scales: bool

    @property
    def operator(self) -> str:
        """The form's operator, as `Target.beside` names them."""
        return "DequantizeLinear" if self.form == "dequantize" else f"{CONTRIB}::MatMulNBits"


class Target(Record):
    """What graphs for a target may hold.

    Attributes:
        name: as users give it.
        description: one line.
        opset: of every graph that is exported for it.
        ir_version: likewise.
        precisions: that can be asked for.
        operators: of the standard domain.
        limits: on them.
        contrib: operators of ONNX Runtime's own domain, `CONTRIB`; none for a target that others parse.
        backends: those that run such a bundle; none for all.
        int4: None where the target takes no INT4 weights.
        decoder: form of the decoder's graph, a file of `models/decoders`, such as `plain`, whose cache grows.
        static_cache: whether that form's KV cache has a fixed number of rows.
        decoder_opset: of a decoder with a static cache, where the form has operators of a later opset than the other graphs.
        parser: whose operators, rules and types it has; None for one with a list of its own.
        jetpack: releases of JetPack that bring it.
        compute_capabilities: of the GPUs that can be built for; none for all.
        rules: of the parser.
        refused_types: of tensors, with the first version that takes them.
    """

    name: str
    description: str
    opset: int
    ir_version: int
    precisions: list[str]
    operators: frozenset[str]
    limits: Limits
    contrib: frozenset[str] = frozenset()
    backends: list[str] = Field(default_factory=list)
    int4: Int4 | None = None
    decoder: str = "plain"
    static_cache: bool = False
    decoder_opset: int | None = None
    parser: Parser | None = None
    jetpack: list[str] = Field(default_factory=list)
    compute_capabilities: list[str] = Field(default_factory=list)
    rules: tuple[Rule, ...] = ()
    refused_types: dict[str, Since] = Field(default_factory=dict)

    def not_offered(self, precision: str) -> ConfigError:
        """The error of a precision that is not one of the target's."""
        return ConfigError(
            f"precision {precision!r} is not offered for target {self.name}",
            fix=f"--precision one of: {', '.join(self.precisions)}",
        )

    def beside(self, *, quantized: bool) -> frozenset[str]:
        """What a graph may hold beside `operators`, `domain::Operator` of another domain; more where weights are quantised."""
        contrib = frozenset(f"{CONTRIB}::{operator}" for operator in self.contrib)
        return contrib | {self.int4.operator} if quantized and self.int4 else contrib


def names() -> list[str]:
    """All targets, sorted."""
    return sorted(
        f.name.removesuffix(".toml") for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")
    )


def get(name: str) -> Target:
    """The target called `name`.

    Raises:
        ConfigError: no such target; the message lists the known.
    """
    if name not in names():
        raise unknown_name("target", name, names())
    file = f"{name}.toml"
    content = tables.parse((resources.files(__name__) / file).read_text(encoding="utf-8"), file)
    return tables.checked(Target, content | _of_parser(content.get("parser")), file)


def with_operator(operator: str) -> list[str]:
    """The targets that take an operator of the standard domain."""
    return [name for name in names() if operator in get(name).operators]


def with_static_cache() -> list[str]:
    """The targets whose decoder has a KV cache of a fixed number of rows."""
    return [name for name in names() if get(name).static_cache]


def of_jetpack(version: str) -> Target | None:
    """The target that a release of JetPack brings, such as 6.2 or 6.2.1; None for one that has none.

    A release that is not named itself has what the release of its first two numbers has.
    """
    for wanted in (version, ".".join(version.split(".")[:2])):
        for name in names():
            if wanted in (target := get(name)).jetpack:
                return target
    return None


def _of_parser(content: dict[str, Any] | None) -> dict[str, Any]:
    if content is None:
        return {}
    parser, table = Parser.model_validate(content), parsers.table()
    return {
        "operators": table.operators(parser),
        "rules": table.rules_of(parser),
        "refused_types": table.refused_types(parser),
    }
