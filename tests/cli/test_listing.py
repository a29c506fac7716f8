"""`fico list methods --verbose`: what each method does and what can be set, for people and as data."""

from typing import Literal

import pytest
from pydantic import Field

from fico_export import reducers
from fico_export.reducers.base.options import describe
from fico_export.reducers.base.reducer import Composite, Options


@pytest.fixture(scope="module")
def listed():
    from fico_export.cli.listing import describe_method

    return {name: describe_method(name) for name in reducers.names()}


def test_an_option_is_given_by_type_range_default_and_source(fico):
    options = fico("list", "methods", "--verbose", "--json").json["methods"]["ficoco-v"]["options"]

    lam = {k: options["lam"][k] for k in ("type", "range", "default", "says", "source")}
    assert lam == {
        "type": "float",
        "range": "0 … 1",
        "default": "0.35",
        "says": "weight of the patch term",
        "source": "paper 0.35, code 0.65",
    }
    assert options["attention"]["type"] == "logits | softmax"
    assert options["epsilon"]["range"] == "≥ 0, < 1"
    assert options["first_layer"]["type"] == "int"
    assert options["first_layer"]["default"] == "depth/2 − 1"


def test_the_same_stands_in_the_text(fico):
    text = fico("list", "methods", "--verbose").out

    assert "--set lam=…  float 0 … 1, default 0.35: weight of the patch term (paper 0.35, code 0.65)" in text
    assert text.count(" without CLS: ") == text.count(" site: ") == len(reducers.names())


def test_a_method_of_several_parts_is_described_by_them(listed):
    composites = [name for name in reducers.names() if isinstance(reducers.get(name), Composite)]
    assert composites
    for name in composites:
        parts = [listed[part] for part in listed[name]["parts"]]

        assert listed[name]["site"] == " → ".join(part["site"] for part in parts)
        assert set(listed[name]["cues"]) == {cue for part in parts for cue in part["cues"]}


class EveryKind(Options):
    flag: bool = Field(True, description="a flag (ours)")
    words: Literal["a", "b"] = Field("a", description="one of two; the other is worse (paper a)")
    low: int = Field(1, ge=1, description="with a least value (ours)")
    high: float = Field(0.5, lt=2, description="below something (ours)")
    open: float | None = Field(None, gt=0, description="depends (here); default half of K (code)")
    bare: str = Field("x", description="nothing else")


def test_every_kind_of_option_is_put_into_words():
    assert [str(option) for option in describe(EveryKind)] == [
        "bool, default true: a flag (ours)",
        "a | b, default a: one of two; the other is worse (paper a)",
        "int ≥ 1, default 1: with a least value (ours)",
        "float < 2, default 0.5: below something (ours)",
        "float > 0, default half of K: depends (here) (code)",
        "str, default x: nothing else",
    ]
