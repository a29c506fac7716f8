"""Requests that `fico-export` refuses: it says what was wrong and what fixes it, and writes nothing."""

import json

import pytest
from cli_tools import command_line, copied, in_own_process

from fico_export import reducers


@pytest.mark.parametrize("keep", ["0", "-3", "65"])
def test_a_budget_that_the_model_cannot_have_is_refused(refused, keep):
    refused("--keep", keep, words=[f"--keep {keep} is outside 1 … 64", "--keep K with K in 1 … 64"])


@pytest.mark.parametrize("keep", ["many", "4.5", "", "NaN"])
def test_a_budget_that_is_no_whole_number_is_refused(refused, keep):
    refused("--keep", keep, words=[repr(keep), "--keep 64"])


def test_a_budget_with_the_method_that_keeps_all_is_refused(refused):
    refused("--keep", 4, "--method", "none", words=["keeps all 64", "drop --keep", "ficoco-v"])


def test_a_method_without_a_budget_is_refused(refused):
    refused("--method", "pool", words=["pool needs a budget", "--keep 64"])


def test_an_unknown_method_lists_the_known_and_suggests_the_nearest(refused):
    refused("--keep", 4, "--method", "ficoco", words=["did you mean 'ficoco-v'?", *reducers.names()])


def test_an_unknown_model_suggests_the_nearest_alias(refused):
    refused("--keep", 4, model="llava-1.5-7", words=["did you mean 'llava-1.5-7b'?", "bakllava", "demo"])


@pytest.mark.parametrize("model", ["./nowhere", "no/such/folder", "~/nowhere"])
def test_a_model_folder_that_is_not_there_is_refused(refused, model):
    refused("--keep", 4, model=model, words=[f"no folder {model}"])


def test_a_file_given_as_model_is_refused(refused, tiny_checkpoint):
    refused("--keep", 4, model=tiny_checkpoint / "config.json", words=["is a file", "folder"])


@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("--precision", "fp17", "fp16"),
        ("--target", "potable", "portable"),
        ("--positions", "kompact", "compact"),
    ],
)
def test_an_unknown_value_suggests_the_nearest(refused, option, value, nearest):
    refused("--keep", 4, option, value, words=[repr(value), f"did you mean {nearest!r}?", "known: "])


def test_an_unknown_option_of_a_method_suggests_the_nearest(refused):
    refused(
        "--keep", 4, "--set", "lamm=0.5", words=["unknown option 'lamm'", "did you mean 'lam'?", "epsilon"]
    )


def test_an_option_for_a_method_that_has_none_is_refused(refused):
    refused("--keep", 4, "--method", "pool", "--set", "lam=0.5", words=["no option 'lam'", "drop --set"])


@pytest.mark.parametrize("value", ["7", "x", "nan", ""])
def test_a_value_outside_an_options_range_is_refused(refused, value):
    refused("--keep", 4, "--set", f"lam={value}", words=[f"--set lam={value}", "0 … 1"])


def test_an_option_without_a_value_is_refused(refused):
    refused("--keep", 4, "--set", "lam", words=["'lam' has no value", "--set lam=0.5"])


def test_a_first_layer_beyond_the_tower_is_refused(refused):
    refused("--keep", 4, "--set", "first_layer=17", words=["first_layer=17", "at most 4"])


def test_an_unknown_flag_and_a_flag_without_its_value_name_the_help(refused):
    refused("--nonsense", words=["No such option: --nonsense", "fico-export --help"])
    refused("--keep", words=["--keep", "fico-export --help"])


def test_an_error_is_one_json_object_where_json_was_asked_for(export):
    answer = export("--keep", 0, "--json").json

    assert answer.keys() == {"error", "hint", "exit"}
    assert answer["exit"] == 2
    assert "--keep" in answer["hint"]


def test_an_error_has_its_trace_with_debug_only(export):
    assert "Traceback" in export("--keep", 0, "--debug").err
    assert "Traceback" not in export("--keep", 0).err


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_model_without_a_network_says_how_to_bring_it(tmp_path, out, environment):
    line = command_line("fico-export", "--model", "llava-1.5-7b", "--keep", "64", "--out", out)
    # No time for retries: importing torch takes most of it.
    outcome = in_own_process(line, timeout=60, HF_HOME=str(tmp_path / "hub"), **environment)

    outcome.refuses(
        "cannot download llava-hf/llava-1.5-7b-hf", "hf download llava-hf/llava-1.5-7b-hf", "--model DIR"
    )
    assert not out.parent.exists()


def test_an_output_folder_that_exists_is_left_alone(export, out):
    out.mkdir(parents=True)

    export("--keep", 4).refuses(f"{out} exists", "--overwrite", "--out")

    assert not list(out.iterdir())


@pytest.mark.parametrize("manifest", [None, "{}", '{"name": "a web app", "icons": []}'])
def test_a_folder_that_is_no_bundle_is_never_deleted(export, out, manifest):
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)

    export("--keep", 4, "--overwrite").refuses("is not a bundle", "--out")

    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_way_is_never_deleted(export, out):
    out.parent.mkdir()
    out.write_text("years of work")

    export("--keep", 4).refuses("exists", "--out")
    export("--keep", 4, "--overwrite").refuses("is not a bundle", "--out")

    assert out.read_text() == "years of work"


def test_an_output_folder_below_a_file_is_refused(export, out):
    out.parent.write_text("years of work")

    export("--keep", 4).refuses("cannot write to", "--out")

    assert out.parent.read_text() == "years of work"


def test_a_bundle_is_replaced_with_overwrite(export, out, bundle, embedding_only):
    out.parent.mkdir()
    copied(bundle, out)

    outcome = export("--keep", 4, "--overwrite", "--no-verify", "--json")

    assert outcome.json["keep"] == 4
    assert json.loads((out / "manifest.json").read_text())["reduction"]["keep"] == 4
    assert list(out.parent.iterdir()) == [out]


def test_a_link_to_a_bundle_stays_and_what_it_points_at_is_replaced(
    export, out, bundle, embedding_only, tmp_path
):
    real = copied(bundle, tmp_path / "elsewhere" / "real")
    out.parent.mkdir()
    out.symlink_to(real)

    assert export("--keep", 4, "--overwrite", "--no-verify").code == 0
    assert out.is_symlink()
    assert json.loads((real / "manifest.json").read_text())["reduction"]["keep"] == 4
    assert list(real.parent.iterdir()) == [real]
