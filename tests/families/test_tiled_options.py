"""What may be asked of a SmolVLM or an InternVL: grids, tilings, methods and budgets; each refusal has a fix that works."""

from contextlib import suppress

import pytest
import torch

import fico_export
from fico_export import models, reducers
from fico_export.errors import ConfigError
from fico_export.reducers.base.reducer import Reducer, Site

# They read the space of a CLIP model, a layer after the features, or how far a projector moves a token.
NEVER = {"cdpruner", "prumerge", "zooprune"}
AS_ONE = {"cenprune", "dart", "divprune", "dpp", "g-prune"}
GRIDS = {"smolvlm": "2x4", "internvl": "2x2"}
SETTINGS = {"fastv": {"layer": 1}}


@pytest.mark.parametrize("tiling", [None, "per-tile", "joint"])
def test_each_method_keeps_just_its_budget_or_is_refused(tiled, tiling):
    """Of one tile by default, of several each by itself and as one; whatever the pixels and the prompt are."""
    profile, refused = "1" if tiling is None else GRIDS[tiled.name], {}
    generator = torch.Generator().manual_seed(0)
    for method in sorted({*reducers.names()} - {"none"}):
        shaped = tiled.shaped(profile, method=method, tiling=tiling)
        keep, settings = 9 * shaped.profile.tiles, SETTINGS.get(method, {})
        try:
            plan = shaped.plan(method, keep, settings)
        except ConfigError as error:
            refused[method] = error.what
            continue
        assert plan.keep == keep
        record = reducers.get(method)
        if isinstance(record, Reducer) and record.site is Site.DECODER_LAYER:
            assert plan.handed_over == shaped.profile.visual_tokens
            continue
        module = tiled.module(profile, method, keep, settings, tiling=tiling)
        shown = [
            torch.ones(port.axes, dtype=port.dtype)
            if port.dtype is torch.int64
            else torch.randn(port.axes, generator=generator)
            for port in module.ports().inputs
        ]
        with torch.inference_mode():
            features, index = module(*shown)
        assert features.shape == (1, plan.handed_over, 64), method
        assert (index.diff() > 0).all(), method
        assert features.isfinite().all(), method

    assert {*refused} == ({*reducers.names()} - AS_ONE - {"none"} if tiling == "joint" else NEVER)
    assert all(method in what for method, what in refused.items())


@pytest.mark.parametrize(
    "alias", ["smolvlm-256m", "smolvlm2-2.2b", "idefics3-8b", "internvl3-1b", "internvl3.5-8b"]
)
def test_which_methods_the_public_models_take(alias):
    model, taken = models.describe(models.packaged(alias)), set()
    for method in reducers.names():
        with suppress(ConfigError):
            model.plan(method, None if method == "none" else 36, {})
            taken.add(method)

    assert set(reducers.names()) - taken == NEVER


def test_one_tile_is_what_a_method_is_for_and_every_grid_what_none_is_for(tiled):
    assert [profile.name for profile in tiled.shaped(method="divprune").profiles] == ["1"]
    assert tiled.shaped("all", method="divprune").profiles[0].graph == "vision_encoder"
    whole = tiled.shaped().profiles

    assert [profile.name for profile in tiled.shaped("all").profiles] == [p.name for p in whole]
    names = [profile.name for profile in whole]
    assert names == (["3x4", "4x4", "2x4", "1x4", "4x3", "4x2", "4x1"] if tiled.name == "smolvlm" else names)
    assert ("1" in names, "4x3" in names, "12x1" in names) == (
        (tiled.name == "internvl"),
        True,
        tiled.name == "internvl",
    )


def test_grids_of_as_many_tiles_have_one_graph_and_are_taken_once(tiled):
    names = ["3x4", "4x3", "1x4", "3x4"] if tiled.name == "smolvlm" else ["1x4", "2x2", "3x1", "2x2"]
    profiles = tiled.shaped(*names, method="divprune").profiles
    graphs = {profile.name: (profile.graph, profile.tiles, profile.input_shape[0]) for profile in profiles}

    first = profiles[0].tiles
    assert sorted(graphs) == sorted({*names})
    for graph, count, shown in graphs.values():
        assert shown == count
        assert graph == ("vision_encoder" if count == first else f"vision_encoder_{count}_tiles")
    assert len({graph for graph, *_ in graphs.values()}) == 2


@pytest.mark.parametrize("name", ["5x5", "1x1", "0x1", "square", "-1", ""])
@pytest.mark.parametrize("method", ["none", "divprune"])
def test_an_unknown_grid_is_refused_with_those_that_there_are(tiled, name, method):
    with pytest.raises(ConfigError, match=f"profile '{name}'") as raised:
        tiled.shaped(name, method=method)
    assert "4x3" in raised.value.fix
    assert "all" in raised.value.fix


@pytest.mark.parametrize(
    "options",
    [{"resolution": "448x448"}, {"unpad": True}, {"newlines": "all"}, {"base_keep": 3}, {"frames": 4}],
)
def test_options_of_other_families_are_refused(tiled, options):
    (name,) = (f"--{key.replace('_', '-')}" for key in options)
    with pytest.raises(ConfigError, match=f"{name} with a {tiled.name} model") as raised:
        tiled.shaped(method="divprune", **options)
    assert raised.value.fix == f"drop {name}"


@pytest.mark.parametrize("profile", ["1", "all"])
def test_no_tile_is_reduced_by_itself_for_showing_the_whole_image(tiled, profile):
    with pytest.raises(ConfigError, match="--tiling split") as raised:
        tiled.shaped(profile, method="divprune", tiling="split")
    for fix in ("joint", "per-tile"):
        assert f"--tiling {fix}" in raised.value.fix
        tiled.shaped(profile, method="divprune", tiling=fix)


def test_a_tiling_of_nothing_is_refused(tiled):
    with pytest.raises(ConfigError, match="--tiling joint with --method none") as raised:
        tiled.shaped(tiling="joint")
    assert raised.value.fix.startswith("drop --tiling")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0}, ["--keep 0 is outside 1 … 16"]),
        ({"keep": 17}, ["--keep 17 is outside 1 … 16", "K in 1 … 16"]),
        ({"keep": 3, "profile": "1x4"}, ["3 is outside {tiles} … {total}", "in {tiles} tiles"]),
        ({"keep": 20, "profile": ["1x4", "1"]}, ["20 is outside 1 … 16"]),
        ({"keep": 7, "profile": ["1x4", "4x3"]}, ["13 … 208", "13 tiles"]),
        ({"keep": 11, "method": "cls-topk", "profile": "1x4", "tiling": "joint"}, ["--tiling joint", "cls-topk"]),
        ({"keep": 11, "method": "cdpruner"}, ["cdpruner"]),
        ({"method": "none", "keep": 11}, ["--keep 11 with --method none"]),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_by_name(tiled, tmp_path, options, words):
    with pytest.raises(ConfigError) as raised:
        fico_export.export(tiled.folder, **{"method": "divprune"} | options, out=tmp_path / "out")
    said = f"{raised.value} {raised.value.fix}"
    assert all(word.format(tiles=5, total=80) in said for word in words), said
    assert not (tmp_path / "out").exists()
