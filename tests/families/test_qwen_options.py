"""What may be asked of a Qwen-VL: resolutions, methods and budgets; each refusal has a fix that works."""

from contextlib import suppress

import pytest

import fico_export
from fico_export import models, reducers
from fico_export.errors import ConfigError
from fico_export.options import ExportOptions

NEVER = {"cdpruner", "prumerge", "zooprune"}  # they read a CLS token, a layer after the features, a projector
# They read the attention among all tokens, in layers that attend within windows.
IN_WINDOWS = {"evit", "ficoco-v", "ficoco-vl"}


def shaped(model, **options):
    return model.shaped(ExportOptions.of({"method": "divprune"} | options))


@pytest.mark.parametrize("text", ["101x140", "1x448", "9999x448", "448x99999"])
def test_a_resolution_of_no_whole_cells_is_refused_with_the_nearest_that_is(qwen, text):
    cell = qwen.kind.cell
    with pytest.raises(
        ConfigError, match=f"--resolution {text}: .*multiples of {cell}, at most 8192"
    ) as raised:
        shaped(qwen.model, resolution=(text,))

    option, nearest = raised.value.fix.split()
    assert option == "--resolution"
    sides = [
        min(range(cell, 8193, cell), key=lambda side: abs(side - int(wanted))) for wanted in text.split("x")
    ]
    (profile,) = shaped(qwen.model, resolution=(nearest,)).profiles
    assert (profile.name, list(profile.size)) == (nearest, sides)


@pytest.mark.parametrize(
    "text", ["448", "0x448", "-28x28", "448x448x3", "448*448", "448x448 ", "x", "100000x28"]
)
def test_what_is_no_resolution_is_refused_with_one_that_is(qwen, text):
    with pytest.raises(ConfigError, match="is no height and width") as raised:
        shaped(qwen.model, resolution=(text,))
    example = raised.value.fix.split()[-1]
    assert shaped(qwen.model, resolution=(example,)).profile.name == example


def test_resolutions_are_taken_once_and_the_first_is_what_a_bundle_is_for(qwen):
    square, wide = qwen.kind.resolution(4, 4), qwen.kind.resolution(3, 5)
    profiles = shaped(qwen.model, resolution=(wide.upper(), square, wide)).profiles

    assert [(profile.name, profile.graph) for profile in profiles] == [
        (wide, "vision_encoder"),
        (square, f"vision_encoder_{square}"),
    ]
    assert [profile.name for profile in shaped(qwen.model).profiles] == ["448x448"]


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "2x2"},
        {"tiling": "joint"},
        {"unpad": True},
        {"newlines": "all"},
        {"base_keep": 3},
    ],
)
def test_options_of_tiles_are_refused(qwen, options):
    (name,) = (f"--{key.replace('_', '-')}" for key in options)
    with pytest.raises(ConfigError, match=f"{name} with a {qwen.family} model") as raised:
        shaped(qwen.model, **options)
    assert raised.value.fix == f"drop {name}"


def test_a_resolution_is_refused_of_a_model_that_has_its_own(tmp_path, tiny_checkpoint, checkpoint):
    for folder in (tiny_checkpoint, checkpoint):
        with pytest.raises(ConfigError, match=r"--resolution with a llava\w* model") as raised:
            fico_export.export(folder, 16, resolution="448x448", out=tmp_path / "out")
        assert raised.value.fix == "drop --resolution"


@pytest.mark.parametrize("keep", [0, 16, 300])
def test_a_budget_outside_of_an_images_tokens_is_refused(qwen, tmp_path, keep):
    resolutions = [qwen.kind.resolution(3, 5)]
    with pytest.raises(ConfigError, match=rf"--keep {keep} is outside 1 … 15") as raised:
        fico_export.export(qwen.folder, keep, method="divprune", resolution=resolutions, out=tmp_path / "out")
    assert raised.value.fix == "--keep K with K in 1 … 15"
    assert not (tmp_path / "out").exists()


def test_a_budget_outside_of_a_further_resolution_names_the_one_to_leave(qwen, tmp_path):
    resolutions = [qwen.kind.resolution(3, 5), qwen.kind.resolution(2, 2)]
    with pytest.raises(ConfigError, match=rf"the profile {resolutions[1]} cannot .* 1 … 4") as raised:
        fico_export.export(qwen.folder, 7, method="divprune", resolution=resolutions, out=tmp_path / "out")
    assert raised.value.fix.endswith(f"--resolution {resolutions[0]}")


def test_which_methods_there_are(qwen):
    refused = NEVER | (IN_WINDOWS if qwen.family == "qwen2_5_vl" else set())
    for method in reducers.names():
        settings, keep = {"layer": 1} if method == "fastv" else {}, None if method == "none" else 9
        model = qwen.shaped(qwen.kind.resolution(4, 4), method=method)
        if method in refused:
            with pytest.raises(ConfigError, match=r"--method [\w-]+ (reads|needs)") as raised:
                model.plan(method, keep, settings)
            assert "fico list methods" in raised.value.fix
        else:
            assert model.plan(method, keep, settings).keep == (keep or 16)


@pytest.mark.parametrize(
    ("alias", "refused"),
    [("qwen2.5-vl-7b", NEVER | IN_WINDOWS | {"hiprune"}), ("qwen3-vl-4b", NEVER)],
)
def test_which_methods_the_public_models_take(alias, refused):
    """Of Qwen2.5-VL's 32 layers, the one that HiPrune reads besides the last has windows too."""
    model = models.describe(models.packaged(alias))
    taken = set()
    for method in reducers.names():
        with suppress(ConfigError):
            model.plan(method, None if method == "none" else 128, {})
            taken.add(method)

    assert set(reducers.names()) - taken == refused


def test_a_cell_is_the_least_that_is_kept(qwen):
    with pytest.raises(ConfigError, match="ToMe can merge half"):
        qwen.shaped(qwen.kind.resolution(4, 4)).plan("tome", 1, {})
    assert qwen.shaped(qwen.kind.resolution(4, 4)).plan("divprune", 1, {}).keep == 1
