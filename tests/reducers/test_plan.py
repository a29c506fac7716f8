"""Requests become plans: budgets, chains across sites, options; and what makes no sense is refused with the reason."""

import dataclasses

import numpy as np
import pytest

import fico_export
from fico_export import reducers
from fico_export.errors import ConfigError
from fico_export.reducers.base.plan import Limits, make_plan
from fico_export.reducers.base.reducer import Depth, Site

LLAVA = Limits(patches=576, kept_aside=0, tower=Depth(24, 23), decoder=Depth(32, 31))


def steps(method, keep=None, settings=None, limits=LLAVA):
    plan = make_plan(method, keep, settings or {}, limits)
    return [(step.method, step.before, step.keep) for step in plan.steps]


def test_a_chain_goes_from_site_to_site():
    assert steps("ficoco-v@192,cenprune@64") == [("ficoco-v", 576, 192), ("cenprune", 192, 64)]
    assert steps("tome@300,scope@200,divprune@100,fastv@50") == [
        ("tome", 576, 300), ("scope", 300, 200), ("divprune", 200, 100), ("fastv", 100, 50),
    ]  # fmt: skip


def test_the_last_budget_may_stand_in_keep():
    assert (
        steps("ficoco-v@192,cenprune", 64)
        == steps("ficoco-v@192,cenprune@64", 64)
        == steps("ficoco-v@192,cenprune@64")
    )
    assert steps("cenprune@64") == steps("cenprune", 64)


def test_a_budget_that_removes_nothing_is_no_step():
    assert steps("ficoco-v", 576) == steps("none") == steps("fastv", 576) == []
    assert steps("ficoco-v@576,cenprune@64") == [("cenprune", 576, 64)]


def test_a_composite_becomes_its_parts():
    assert steps("ficoco-vl", 64) == [("ficoco-v", 576, 192), ("ficoco-l", 192, 64)]
    assert steps("ficoco-vl", 64, {"split": "1"}) == [("ficoco-v", 576, 64)]
    assert steps("ficoco-vl", 64, {"split": 0}) == [("ficoco-l", 576, 64)]


def test_a_kept_cls_token_counts_in_every_budget():
    limits = dataclasses.replace(LLAVA, kept_aside=1)
    plan = make_plan("ficoco-v@193,cenprune@65", None, {}, limits)

    assert plan.visual_tokens == 577
    assert plan.steps[0].schedule[22] == 192
    assert plan.keep == 65


@pytest.mark.parametrize(
    ("method", "cached"),
    [
        ("cenprune", [64] * 32),
        ("fastv", [576] * 2 + [64] * 30),
        ("pyramiddrop", [576] * 8 + [277] * 8 + [133] * 8 + [64] * 8),
        ("sparsevlm", [576] * 3 + [277] * 4 + [133] * 9 + [64] * 16),
    ],
)
def test_tokens_in_every_layers_cache(method, cached):
    assert make_plan(method, 64, {}, LLAVA).cached(32) == cached


def test_ficoco_l_drops_evenly_from_the_fourth_layer_to_the_last_but_one():
    cached = np.array(make_plan("ficoco-l", 64, {}, LLAVA).cached(32))

    assert (cached[:4] == 576).all()
    assert set(-np.diff(cached[3:])) == {18, 19}
    assert cached[-1] == 64


def test_options_of_a_chain():
    plan = make_plan("ficoco-v@192,fastv@64", None, {"layer": "3", "ficoco-v.lam": "0.65"}, LLAVA)

    assert plan.steps[0].options.lam == 0.65
    assert plan.steps[1].options.layer == 3
    assert plan.settings["ficoco-v.lam"] == 0.65
    assert plan.settings["fastv.layer"] == 3
    assert make_plan(plan.method, plan.keep, plan.settings, LLAVA) == plan


@pytest.mark.parametrize(
    "method", ["ficoco-v", "g-prune", "ficoco-vl", "sparsevlm", "none", "ficoco-v@192,cenprune"]
)
def test_a_plan_is_made_again_from_what_it_says_of_itself(method):
    plan = make_plan(method, None if method == "none" else 64, {}, LLAVA)

    assert make_plan(plan.method, plan.keep, plan.settings, LLAVA) == plan


@pytest.mark.parametrize(
    ("method", "keep", "settings", "words"),
    [
        ("cenprune@192,ficoco-v@64", None, {}, ["ficoco-v acts at the encoder layer", "have passed when cenprune"]),
        ("divprune@192,cenprune@64", None, {}, ["cenprune acts at the projector output", "at most once"]),
        ("ficoco-v@64,cenprune@192", None, {}, ["cenprune is to keep 192 of the 64", "fall from left to right"]),
        ("ficoco-v,cenprune@64", None, {}, ["ficoco-v needs a budget", "ficoco-v@192"]),
        ("ficoco-v@192,cenprune", None, {}, ["cenprune needs a budget", "--keep K"]),
        ("ficoco-v@192,cenprune@64", 32, {}, ["--keep 32", "ends with 64"]),
        ("ficoco-v@many,cenprune@64", None, {}, ["'ficoco-v@many'", "whole number"]),
        ("ficoco-v@192,cenprun@64", None, {}, ["cenprun", "cenprune"]),
        ("ficoco-v@192,ficoco-v@64", None, {}, ["names a method twice"]),
        ("none,ficoco-v@64", None, {}, ["none is no part of a chain"]),
        ("tome@192,pool@64", None, {}, ["whole grid", "another method"]),
        ("ficoco-v@192,ficoco-l@64", None, {"epsilon": 0.9}, ["both have such an option", "--set ficoco-v.epsilon"]),
        ("ficoco-v@192,cenprune@64", None, {"lamb": 1}, ["none of ficoco-v, cenprune", "list methods"]),
        ("ficoco-v@700,cenprune@64", None, {}, ["700", "1 … 576"]),
        ("ficoco-vl@192,fastv@64", None, {}, ["fastv acts at the decoder layer", "ficoco-l"]),
        ("", 64, {}, ["method"]),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_reason(method, keep, settings, words):
    with pytest.raises(ConfigError) as refused:
        make_plan(method, keep, settings, LLAVA)
    said = f"{refused.value} {refused.value.fix}"
    for word in words:
        assert word in said


def test_a_method_that_works_on_the_grid_is_refused_in_the_decoder(monkeypatch):
    """There is none; nor does a decoder know where in an image, of several tiles perhaps, its tokens lie."""
    moved = dataclasses.replace(reducers.get("fastv"), whole_grid=True)
    monkeypatch.setattr(reducers, "get", lambda name: moved)
    with pytest.raises(ConfigError, match="fastv works on the whole grid of patches, and a decoder knows"):
        make_plan("fastv", 64, {}, LLAVA)


def test_a_chain_in_the_graph_is_its_methods_one_after_the_other(
    shallow24_checkpoint, make_bundle, photographs
):
    """Exported, verified and run; the second method chooses among what the first has left."""
    vlm = fico_export.load(make_bundle(shallow24_checkpoint, method="ficoco-v@192,scope@100,cenprune@64"))
    first = fico_export.load(make_bundle(shallow24_checkpoint, 192, method="ficoco-v"))
    for picture in photographs[:2]:
        left = vlm.encode_image(picture)

        assert left.features.shape[0] == 64
        assert set(left.keep_index.tolist()) < set(first.encode_image(picture).keep_index.tolist())
    reduction = vlm.manifest.reduction
    assert [(s.method, s.before, s.keep) for s in reduction.steps] == [
        ("ficoco-v", 576, 192), ("scope", 192, 100), ("cenprune", 100, 64),
    ]  # fmt: skip
    assert [s.site for s in reduction.steps] == [
        Site.ENCODER_LAYER,
        Site.ENCODER_OUTPUT,
        Site.PROJECTOR_OUTPUT,
    ]


def test_a_chain_into_the_decoder(shallow24_checkpoint, make_bundle, photographs):
    vlm = fico_export.load(
        make_bundle(shallow24_checkpoint, method="cenprune@192,fastv@64", settings={"layer": 1})
    )
    answer = vlm.generate("What is it?", [photographs[0]], max_new_tokens=4)

    assert vlm.manifest.reduction.cached == [192, 64]
    assert answer.visual_tokens == 192
