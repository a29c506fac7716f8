"""Recipes: each in engines/ asks for what there is, and a command given beside one wins."""

from pathlib import Path

import pytest

from fico_export import api, models, reducers
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.recipe import Recipe
from fico_export.devices import catalog
from fico_export.errors import ConfigError

ENGINES = Path(__file__).parents[2] / "engines"
RECIPES = sorted(ENGINES.glob("*.toml"))
DEMO = ENGINES / "demo-k64-orin-nano-8gb.toml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_asks_for_what_there_is(path):
    recipe = Recipe.load(path)
    device = catalog.get(recipe.device) if recipe.device else None
    target, precision = catalog.resolve(device, recipe.target, recipe.precision)

    assert recipe.model in {models.DEMO, *models.aliases()}
    assert precision in target.precisions
    steps = (recipe.method or reducers.DEFAULT).split(",")
    assert all(reducers.get(step.partition("@")[0]) for step in steps)
    assert f"-k{recipe.keep}-" in path.stem
    assert path.stem.endswith(recipe.device)


@pytest.fixture
def asked(monkeypatch, fico):
    """asked(*arguments) → what `fico export` would export."""

    exports = []

    def stop(model, keep, **options):
        exports.append({"model": model, "keep": keep, **options})
        raise ConfigError("asked", fix="nothing")

    monkeypatch.setattr(api, "export", stop)

    def ask(*arguments):
        fico("export", *arguments).refuses("asked")
        return exports.pop()

    return ask


def test_a_recipe_gives_every_option(asked, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'description = "all"\nmodel = "m"\nmethod = "g-prune"\nkeep = 9\nprecision = "fp16"\ntarget = "rtx"\n'
        'block = 32\nquantize_head = "int8"\nquantize_vision = "int8"\n'
        'device = "rtx-4090"\nmax_context = 512\npositions = "compact"\nclip_text = "c"\nrevision = "r"\n[settings]\nsimilarity = 0.7\n'
    )
    wanted = {
        "model": "m", "method": "g-prune", "keep": 9, "precision": "fp16", "target": "rtx", "device": "rtx-4090",
        "positions": "compact", "clip_text": "c", "revision": "r", "settings": {"similarity": 0.7},
        "max_context": 512, "block": 32, "quantize_head": "int8", "quantize_vision": "int8",
    }  # fmt: skip

    assert asked("--recipe", path).items() >= wanted.items()


def test_flags_win_over_a_recipe(asked):
    flags = [
        "--keep",
        32,
        "--target",
        "portable",
        "--precision",
        "fp32",
        "--model",
        "bakllava",
        "--set",
        "lam=0.5",
    ]
    got = asked("--recipe", DEMO, *flags)

    assert (got["keep"], got["target"], got["precision"], got["model"]) == (
        32,
        "portable",
        "fp32",
        "bakllava",
    )
    assert (got["method"], got["device"], got["settings"]) == ("ficoco-v", "orin-nano-8gb", {"lam": "0.5"})


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--keep", 0], "keep", 0),
        (["--max-context", 0], "max_context", 0),
        (["--block", 0], "block", 0),
        (["--method", ""], "method", ""),
        (["--precision", "fp32"], "precision", "fp32"),
        (["--quantize-head", ""], "quantize_head", ""),
        (["--device", ""], "device", ""),
        (["--clip-text", ""], "clip_text", ""),
    ],
    ids=str,
)
def test_a_flag_of_any_value_wins_over_a_recipe(asked, tmp_path, flags, name, value):
    path = tmp_path / "r.toml"
    path.write_text(
        'description = "d"\nmodel = "m"\nmethod = "g-prune"\nkeep = 9\nprecision = "int4"\nblock = 32\n'
        'max_context = 512\nquantize_head = "int8"\ndevice = "rtx-4090"\nclip_text = "c"\n'
    )

    got = asked("--recipe", path, *flags)

    assert got[name] == value
    assert without_progress(got) == without_progress(asked("--recipe", path)) | {name: value}


def without_progress(options):
    return {key: value for key, value in options.items() if key != "progress"}


@pytest.mark.parametrize("flags", [["--keep", 0], ["--max-context", 0], ["--block", 0], ["--precision", ""]])
def test_a_flag_beside_a_recipe_is_checked_as_without_one(flags, fico, tmp_path):
    """What is refused is refused in the same words."""
    path = tmp_path / "r.toml"
    path.write_text(
        'description = "d"\nmodel = "demo"\nmethod = "uniform"\nkeep = 32\ntarget = "trt-10.16"\nprecision = "int4"\n'
    )
    written = ("--method", "uniform", "--keep", 32, "--target", "trt-10.16", "--precision", "int4")
    out = ("--out", tmp_path / "out")

    beside = fico("export", "--recipe", path, *flags, *out)
    alone = fico("export", "--model", "demo", *written, *flags, *out)

    assert (beside.code, alone.code) == (2, 2)
    assert beside.err[beside.err.index("error:") :] == alone.err[alone.err.index("error:") :]


def test_without_a_recipe_the_defaults_stand(asked):
    got = asked()

    assert (got["model"], got["keep"], got["target"], got["precision"], got["device"]) == (
        "demo",
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('model = "demo"', ["'description' is missing"]),
        ('description = "d"\nmodel = "demo"\nkeeps = 3', ["unknown key 'keeps'", "keep, method, settings"]),
        ('description = "d"\nmodel = "demo"\nkeep = "many"', ["keep", "many"]),
        ('description = "d"\nmodel = "demo"\nprecision = "fp15"', ["unknown precision 'fp15'", "fp16"]),
        ("model =", ["is not TOML"]),
    ],
    ids=range(5),
)
def test_a_wrong_recipe_is_refused(text, words, fico, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    fico("export", "--recipe", tmp_path / "r.toml").refuses(*words)


def test_a_recipe_that_is_not_there_is_refused(fico, tmp_path):
    fico("export", "--recipe", tmp_path / "absent.toml").refuses("absent.toml")


def test_the_device_stands_in_the_manifest_with_what_it_implied(export, out, embedding_only):
    made = export("--keep", 4, "--no-verify", "--device", "orin-nx-16gb", "--json").json
    manifest = Manifest.load(out)

    assert (made["device"], manifest.device) == ("orin-nx-16gb", "orin-nx-16gb")
    assert (manifest.target, manifest.precision) == ("trt-10.3", "fp16")


def test_a_device_s_preference_gives_way_where_the_model_cannot_take_it(export, out, embedding_only):
    """The tiny checkpoint's matrices are no whole blocks of 128, and nobody asked for INT4."""
    made = export("--keep", 4, "--no-verify", "--device", "orin-nano-8gb", "--json")

    assert (made.json["device"], made.json["precision"]) == ("orin-nano-8gb", "fp16")
    assert "fp16 instead of int4, which orin-nano-8gb prefers" in made.err
    assert "whole blocks of 128" in made.err
    assert Manifest.load(out).precision == "fp16"


@pytest.mark.parametrize(
    "asked_for", [["--precision", "int4"], ["--block", 128], ["--quantize-head", "int8"]]
)
def test_what_was_asked_for_does_not_give_way(export, out, asked_for):
    export("--keep", 4, "--device", "orin-nano-8gb", *asked_for).refuses("whole blocks of 128")
    assert not out.exists()


def test_a_device_that_cannot_hold_the_weights_is_refused_before_any_work(export, out, tmp_path):
    (tmp_path / "own.toml").write_text(
        '[tiny]\nlike = "orin-nano-8gb"\nusable_gb = 1e-4\n[tiny.evidence]\nusable_gb = "made up"\n'
    )
    outcome = export("--keep", 4, "--precision", "fp16", "--device", "tiny", "--devices", tmp_path)
    outcome.refuses("tiny has 0.0001 GB", "--precision")
    assert not out.exists()


def test_an_unknown_device_is_refused_with_the_nearest(export):
    export("--device", "orin-nano-8g").refuses(
        "unknown device 'orin-nano-8g'", "did you mean 'orin-nano-8gb'?"
    )


def test_devices_of_one_s_own_are_listed(fico, tmp_path):
    (tmp_path / "own.toml").write_text('[mine]\nlike = "rtx-4090"\ndescription = "Mine"\n')

    assert "Mine; 24 GB" in fico("list", "devices", "--devices", tmp_path).out
    assert fico("list", "devices", "--devices", tmp_path, "--json").json["devices"].keys() >= {
        "mine",
        "t5000",
    }
    verbose = fico("list", "devices", "--verbose").out
    assert "usable gb: 5.2  [measured by" in verbose
    assert "mode MAXN_SUPER: gpu mhz 1020" in verbose
