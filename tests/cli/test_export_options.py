"""One record of options: a field is a flag, a keyword, a key of a recipe, and a part of the manifest's request."""

import dataclasses
import inspect

import pytest

import fico_export
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.recipe import Recipe
from fico_export.errors import ConfigError
from fico_export.options import ExportOptions, options

NAMES = [field.name for field in dataclasses.fields(ExportOptions)]
PLANNED = [option for option in options() if option.about.planned]


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("verb", "shown"), [("export", options()), ("plan", PLANNED)], ids=["export", "plan"]
)
def test_the_help_of_a_verb_has_a_flag_and_the_text_of_every_option(fico, verb, shown):
    said = words(fico(verb, "--help").out)

    for option in shown:
        assert f"{option.flag} " in said
        if (verb, option.name) != ("plan", "device"):  # where it is left out, all devices are planned for
            assert words(option.about.text) in said


def test_plan_refuses_what_changes_no_estimate(fico):
    for option in options():
        if not option.about.planned and option.name != "out":  # the plot's file there
            fico("plan", option.flag).refuses(f"No such option: {option.flag}")


def test_every_option_is_a_keyword_and_is_described():
    parameters = inspect.signature(fico_export.export).parameters

    assert list(parameters) == [*NAMES, "progress"]
    described = words(fico_export.export.__doc__)
    assert all(f"{option.name}: {words(option.about.text)}" in described for option in options()[2:])
    assert {name: p.default for name, p in parameters.items() if p.default not in (None, "demo")} == {
        "max_batch": 1,
        "unpad": False,
        "overwrite": False,
        "copy_weights": False,
        "verify": True,
    }


def test_every_option_that_is_not_of_one_machine_is_a_key_of_a_recipe(tmp_path):
    given = [option for option in options() if not option.about.local]
    texts = {
        "keep": "3",
        "block": "3",
        "max_context": "3",
        "max_batch": "3",
        "base_keep": "3",
        "frames": "3",
        "settings": "{}",
    }
    texts["unpad"] = "true"
    lines = [f"{o.name} = {texts.get(o.name, repr((o.about.choices or ['x'])[0]))}" for o in given]
    (tmp_path / "r.toml").write_text("\n".join(['description = "d"', *lines]))
    recipe = Recipe.load(tmp_path / "r.toml")

    assert {name for name in NAMES if getattr(recipe, name) not in (None, False, True)} | {"unpad"} == {
        option.name for option in given
    }


@pytest.mark.parametrize("option", [o for o in options() if o.about.local], ids=lambda option: option.name)
def test_a_recipe_decides_nothing_of_the_machine_that_it_is_run_on(option, tmp_path):
    (tmp_path / "r.toml").write_text(f'description = "d"\nmodel = "demo"\n{option.name} = true\n')

    with pytest.raises(ConfigError, match=f"'{option.name}' is of one machine") as refused:
        Recipe.load(tmp_path / "r.toml")
    assert option.flag in refused.value.fix


def test_the_request_in_a_manifest_makes_the_same_bundle_again(make_bundle, tiny_checkpoint, tmp_path):
    folder = make_bundle(tiny_checkpoint, 16, precision="fp16", settings={"lam": 0.4}, verify=False)
    made = Manifest.load(folder)
    again = Manifest.load(fico_export.export(**made.request, verify=False, out=tmp_path / "again"))

    assert made.request == {
        "model": str(tiny_checkpoint),
        "keep": 16,
        "method": "ficoco-v",
        "settings": {"lam": 0.4},
        "precision": "fp16",
        "target": "portable",
    }
    assert (again.request, again.reduction, again.graphs) == (made.request, made.reduction, made.graphs)
    assert {n: f.sha256 for n, f in again.files.items()} == {n: f.sha256 for n, f in made.files.items()}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kep": 3}, "unknown key 'kep'"),
        ({"keep": "many"}, "keep: Input should be a valid integer"),
        ({"keep": 2.5}, "keep: Input should be a valid integer"),
        ({"precision": "fp15"}, "unknown precision 'fp15'"),
        ({"positions": "both"}, "unknown positions policy 'both'"),
        ({"settings": [1]}, "settings: Input should be a valid dictionary"),
    ],
    ids=str,
)
def test_a_keyword_that_there_is_not_and_a_value_of_another_kind_are_refused(given, words):
    with pytest.raises(ConfigError) as refused:
        fico_export.export("demo", **given)

    assert words in refused.value.what
