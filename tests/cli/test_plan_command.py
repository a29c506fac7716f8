"""`fico plan`: a verdict with its ranges, from config.json alone; what cannot be planned is refused."""

import json
import shutil

import pytest
from cli_tools import edit_json
from transformers import AutoConfig

from fico_export import demo, models
from fico_export.bundle import output

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """A config.json of the demo's model, and nothing else."""
    shutil.copy(demo.FOLDER / "config.json", tmp_path)
    return tmp_path


@pytest.fixture
def large(folder):
    """One of seven billion parameters."""
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32064, "max_position_embeddings": 4096}  # fmt: skip
    edit_json(folder / "config.json", **{f"text_config__{name}": value for name, value in text.items()})
    return folder


def planned(fico, *arguments):
    return fico("plan", *arguments, "--json").json


def test_a_small_model_fits_and_every_figure_has_its_range(fico, folder):
    found = planned(
        fico, "--model", folder, "--keep", 64, "--device", "orin-nano-8gb", "--precision", "fp16"
    )["estimate"]

    assert (found["verdict"], found["keep"], found["visual_tokens"], found["options"]) == (
        "fits",
        64,
        576,
        [],
    )
    assert [speed["mode"] for speed in found["speeds"]] == ["7W", "15W", "25W", "MAXN_SUPER"]
    for speed in found["speeds"]:
        for name in ("vision_ms", "prefill_ms", "first_token_ms", "tokens_per_second"):
            assert 0 < speed[name]["least"] < speed[name]["likely"] < speed[name]["most"]
    assert found["needed"]["likely"] == pytest.approx(
        sum(part["bytes"]["likely"] for part in found["memory"])
    )
    assert found["room"]["likely"] == 5.2e9


def test_what_does_not_fit_is_said_with_what_would(fico, large):
    out = fico(
        "plan", "--model", large, "--keep", "64", "--device", "orin-nano-8gb", "--precision", "fp16"
    ).out

    assert "verdict: does not fit" in out
    assert "--precision int4" in out
    assert "fits with --device agx-orin-32gb" in out
    assert "estimates: likely (range)" in out


def test_options_that_are_named_do_change_the_verdict(fico, large):
    asked = ("--model", large, "--keep", 64, "--device", "orin-nx-16gb")
    found = planned(fico, *asked, "--precision", "fp16")["estimate"]
    assert found["verdict"] != "fits"
    for option in found["options"]:
        flags = option["flags"].split()
        again = planned(fico, *asked[:4], *(() if "--device" in flags else asked[4:]), *flags,
                        *(() if "--precision" in flags else ("--precision", "fp16")))  # fmt: skip
        assert again["estimate"]["verdict"] == option["verdict"]
    assert found["options"]


def test_a_sweep_goes_over_k_and_precision_and_is_drawn(fico, large, tmp_path):
    plot = tmp_path / "plot.png"
    asked = ("--model", large, "--keep", 100, "--method", "uniform", "--device", "agx-orin-64gb")
    rows = planned(fico, *asked, "--sweep", "--out", plot)["sweep"]

    assert {row["keep"] for row in rows} == {576, 192, 128, 100, 64, 32}
    assert {row["precision"] for row in rows} == {"fp32", "fp16", "int4"}
    first = [r["speeds"][-1]["first_token_ms"]["likely"] for r in rows if r["precision"] == "fp16"]
    assert first == sorted(first, reverse=True)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_a_device_there_is_the_arithmetic_and_a_line_for_each(fico, folder):
    found = planned(fico, "--model", folder, "--keep", 64, "--precision", "fp16")

    assert found["estimate"]["room"] is found["estimate"]["verdict"] is None
    assert {"orin-nano-8gb", "t5000", "rtx-4090"} <= {row["device"] for row in found["devices"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "orin-nan-8gb"], ["unknown device", "did you mean 'orin-nano-8gb'"]),
        (["--keep", "577"], ["577", "1 … 576"]),
        (["--keep", "some"], ["whole number"]),
        (["--precision", "int8", "--device", "orin-nano-8gb"], ["unknown precision 'int8'", "int4"]),
        (["--precision", "int8"], ["unknown precision 'int8'", "fp16"]),
        (["--keep", "64", "--method", "ficoco"], ["unknown method", "ficoco-v"]),
        (["--quantize-head", "int8"], ["--quantize-head", "--precision int4"]),
        (["--precision", "int4", "--quantize-head", "int5"], ["--quantize-head int5", "int8"]),
        (["--max-context", "9999"], ["KV cache grows", "drop it"]),
        (["--max-context", "9999", "--target", "rtx"], ["9999", "context"]),
        (["--max-context", "600", "--target", "trt-10.3"], ["600 rows", "--max-context 640"]),
        (["--max-context", "700", "--target", "trt-10.3"], ["744", "--max-context 744"]),
        (["--out", "plot.png"], ["no device", "--device"]),
        (["--keep", "64", "--method", "cdpruner"], ["CLIP", "divprune"]),
        (["--sweep", "--method", "ficoco-v@192,g-prune@64"], ["names its budgets"]),
        (["--device", "agx-orin-industrial", "--out", "plot.png"], ["no times to draw"]),
        (["--device", "rtx-4090", "--out", "none/plot.png"], ["no folder none", "mkdir -p none"]),
        (["--device", "rtx-4090", "--out", "plot.xyz"], ["does not end in .png or .svg or .pdf"]),
        (["--set", "lam"], ["has no value"]),
        (["--method", ""], ["unknown method ''"]),
        (["--text-tokens", str(10**18)], ["--text-tokens"]),
        (["--new-tokens", str(10**18)], ["--new-tokens"]),
        (["--new-tokens", str(2**24)], ["the cache ends at"]),
    ],
)
def test_what_cannot_be_planned_is_refused(fico, folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)

    fico("plan", "--model", folder, *arguments).refuses(*words)
    assert not list(tmp_path.glob("*plot*"))


def test_a_model_of_another_type_is_refused(fico, folder):
    edit_json(folder / "config.json", model_type="mllama")

    fico("plan", "--model", folder).refuses("model_type 'mllama'", "supported: ", "llava (llava-1.5-7b, ")


def test_a_plot_without_matplotlib_says_what_to_install(fico, folder, monkeypatch):
    monkeypatch.setattr(output, "find_spec", lambda name: None)

    fico("plan", "--model", folder, "--device", "rtx-4090", "--out", "plot.png").refuses(
        "pip install '.[report]'"
    )


@pytest.mark.parametrize(
    ("model", "patches", "weights_gb"),
    [
        ("llava-1.5-7b", 576, 13.8),
        ("llava-hf/llava-1.5-7b-hf", 576, 13.8),
        ("llava-1.5-13b", 576, 26.4),
        ("bakllava", 576, 14.8),
        ("llava-interleave-qwen-0.5b", 729, 1.76),
    ],
)
def test_an_alias_is_planned_without_the_hub(fico, monkeypatch, model, patches, weights_gb):
    """Bytes of the tower and the decoder in FP16, by the numbers of parameters that their authors give."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asks the hub"))
    found = planned(fico, "--model", model, "--precision", "fp16", "--device", "agx-orin-64gb")["estimate"]

    weights = sum(part["bytes"]["likely"] for part in found["memory"] if part["name"].startswith("weights"))
    assert found["visual_tokens"] == patches
    assert weights / 1e9 == pytest.approx(weights_gb, rel=0.03)


def test_every_alias_has_its_config():
    """As transformers reads it: an image token within the vocabulary."""
    for alias in models.aliases():
        config = AutoConfig.from_pretrained(models.packaged(alias))
        assert config.image_token_id < config.text_config.vocab_size
        side = getattr(config.vision_config, "image_size", 448)  # a Qwen-VL takes any: its usual one
        sides = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
        assert models.describe(models.packaged(alias)).profile.size == sides


def test_a_folder_called_as_an_alias_is_that_folder(folder, monkeypatch, tmp_path):
    (tmp_path / "bakllava").mkdir()
    monkeypatch.chdir(tmp_path)

    assert models.packaged("bakllava") is None
    assert models.packaged("llava-1.5-7b") is not None


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "num_hidden_layers", 1e9),
        ("text_config", "num_hidden_layers", 0),
        ("text_config", "hidden_size", 2**40),
        ("text_config", "vocab_size", 2**62),
        ("text_config", "max_position_embeddings", -1),
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "image_size", 10**6),
    ],
)
def test_sizes_beyond_every_model_are_refused(fico, folder, part, name, value):
    edit_json(folder / "config.json", **{f"{part}__{name}": value})

    fico("plan", "--model", folder).refuses(
        f"config.json: {part}.{name} is", "published with this checkpoint"
    )


def test_a_device_s_preference_gives_way_where_the_model_cannot_take_it(fico):
    """The demo's matrices are no whole blocks of 128, and nobody asked for INT4."""
    asked = ("--model", "demo", "--device", "orin-nano-8gb")
    found = planned(fico, *asked)["estimate"]

    assert (found["precision"], found["verdict"]) == ("fp16", "fits")
    assert "fp16 instead of int4, which orin-nano-8gb prefers" in found["note"]
    assert f"note: {found['note']}" in fico("plan", *asked).out
    fico("plan", *asked, "--precision", "int4").refuses("whole blocks of 128")
    fico("plan", *asked, "--quantize-head", "int8").refuses("whole blocks of 128")


def test_of_a_hub_model_only_the_config_is_downloaded(fico, folder, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    json.loads(fico("plan", "--model", "owner/name", "--json").out)
    assert asked == [("owner/name", ["config.json"])]
