"""Targets by name: `<name>.toml` in this folder."""

from __future__ import annotations

import sys
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fico_export.errors import unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = "portable"
CONTRIB = "com.microsoft"


class Limits(BaseModel):
    """Numbers a target's parser or builder will not go beyond."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topk: int


class Int4(BaseModel):
    """How a target takes INT4 weights.

    Attributes:
        form: the operator that reads them: standard DequantizeLinear, or com.microsoft::MatMulNBits.
        activations: what it computes in.
        opset: of a graph that holds it.
        signed_scales: whether a scale may be negative, which makes the most of sixteen levels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["dequantize", "matmul_nbits"]
    activations: Literal["fp16", "fp32"]
    opset: int
    signed_scales: bool


class Target(BaseModel):
    """What graphs for a target may hold.

    Attributes:
        name: as users give it.
        description: one line.
        opset: of every graph.
        ir_version: of every graph.
        precisions: that can be asked for.
        operators: of the standard domain.
        limits: on them.
        contrib: operators of ONNX Runtime's own domain, `CONTRIB`; none for a target that others parse.
        backends: those that run such a bundle; none for all.
        int4: None where the target takes no INT4 weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    opset: int
    ir_version: int
    precisions: list[str]
    operators: frozenset[str]
    limits: Limits
    contrib: frozenset[str] = frozenset()
    backends: list[str] = []
    int4: Int4 | None = None


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
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return Target.model_validate(tomllib.loads(text))
