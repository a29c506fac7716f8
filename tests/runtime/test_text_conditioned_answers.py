"""Bundles whose vision graph reads the prompt: answers, conversations, refusals, verification; from Python and as commands."""

import json

import numpy as np
import pytest
from checkpoints import write_tiny
from cli_tools import copied, edit_json, in_this_process
from clip_checkpoints import write_clip
from exhaustive import exhaustive

import fico_export
from fico_export.errors import CheckpointError, ConfigError, InputError
from fico_export.models.clip_text import open_clip

QUESTION = "What is in this picture?"
OTHER = "the colour of a red circle"


@pytest.fixture(scope="module", params=["mmtok", "cdpruner"])
def bundle(request, tiny_checkpoint, clip_checkpoint, make_bundle):
    """16 of 64 tokens, verified when it was made."""
    clip = {"clip_text": clip_checkpoint} if request.param == "cdpruner" else {}
    return make_bundle(tiny_checkpoint, 16, method=request.param, **clip)


@pytest.fixture(scope="module")
def vlm(bundle):
    return fico_export.load(bundle)


@pytest.fixture
def fico(capsys):
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)


@pytest.fixture
def export(capsys, tiny_checkpoint, tmp_path):
    """export(*arguments) → Outcome; nothing is left of one that was refused."""

    def run(*arguments, model=tiny_checkpoint):
        out = tmp_path / "out" / "bundle"
        line = ("fico-export", "--model", model, "--keep", 16, "--out", out, *arguments)
        outcome = in_this_process(capsys, *line)
        assert outcome.code == 0 or not out.parent.exists()
        return outcome

    return run


def test_the_question_decides_what_is_kept_of_a_picture(vlm, photographs):
    kept = [vlm.encode_image(photographs[0], prompt) for prompt in (QUESTION, OTHER, QUESTION)]

    assert kept[0].keep_index.tolist() == kept[2].keep_index.tolist()
    assert kept[0].digest == kept[2].digest
    assert kept[0].keep_index.tolist() != kept[1].keep_index.tolist()
    assert kept[0].digest != kept[1].digest
    assert kept[0].digest != vlm.encode_image(photographs[1], QUESTION).digest
    assert kept[0].features.shape == (16, 64)


def test_the_text_is_the_prompt_of_the_turn_that_shows_the_picture(vlm, photographs):
    chat = vlm.chat()
    first = chat.ask(QUESTION, photographs[:1], max_new_tokens=4)
    second = chat.ask(OTHER, max_new_tokens=4)
    third = chat.ask(OTHER, photographs[1:2], max_new_tokens=4)
    again = vlm.chat()
    shown = [vlm.encode_image(photographs[0], QUESTION), vlm.encode_image(photographs[1], OTHER)]
    expected = [
        again.ask(QUESTION, shown[:1], max_new_tokens=4),
        again.ask(OTHER, max_new_tokens=4),
        again.ask(OTHER, shown[1:], max_new_tokens=4),
    ]

    assert [a.token_ids for a in (first, second, third)] == [a.token_ids for a in expected]
    assert chat.images[0].digest == shown[0].digest
    assert second.cached_tokens >= first.prompt_tokens
    assert third.cached_tokens >= second.prompt_tokens


def test_a_picture_asked_about_anew_is_not_taken_from_the_cache(vlm, photographs):
    chat = vlm.chat()
    chat.ask(QUESTION, photographs[:1], max_new_tokens=4)
    chat.restart()
    other = chat.ask(OTHER, photographs[:1], max_new_tokens=4)
    chat.restart()
    same = chat.ask(OTHER, photographs[:1], max_new_tokens=4)

    assert other.cached_tokens < 16
    assert same.cached_tokens == same.prompt_tokens - 1
    assert other.token_ids == vlm.generate(OTHER, photographs[:1], max_new_tokens=4).token_ids


def test_a_picture_without_a_question_is_refused(vlm, photographs):
    with pytest.raises(InputError, match="reads the prompt") as refused:
        vlm.encode_image(photographs[0])
    assert 'encode_image(image, prompt="…")' in refused.value.fix


def test_text_that_is_no_prompt_is_refused(vlm, photographs):
    with pytest.raises(InputError):
        vlm.encode_image(photographs[0], "\ud800")


def test_a_prompt_alone_is_answered(vlm):
    assert len(vlm.generate("word " * 200, max_new_tokens=2).token_ids) == 2


def test_a_method_that_reads_no_prompt_takes_one_all_the_same(tiny_checkpoint, make_bundle, photographs):
    plain = fico_export.load(make_bundle(tiny_checkpoint, 16))

    assert plain.encode_image(photographs[0], QUESTION).digest == plain.encode_image(photographs[0]).digest


def test_a_prompt_longer_than_the_graph_takes_is_refused_and_changes_nothing(
    tiny_checkpoint, make_bundle, photographs
):
    bundle = make_bundle(tiny_checkpoint, 16, method="mmtok", settings={"text_length": 40}, verify=False)
    vlm = fico_export.load(bundle)
    chat = vlm.chat()
    long = "what is in this picture " * 40
    with pytest.raises(InputError, match="takes 40") as refused:
        chat.ask(long, photographs[:1], max_new_tokens=4)
    needed = len(vlm.formatter.text_ids(long))
    assert f"--set text_length={needed}" in refused.value.fix
    answer = chat.ask(QUESTION, photographs[:1], max_new_tokens=4)

    assert answer.token_ids == vlm.generate(QUESTION, photographs[:1], max_new_tokens=4).token_ids
    fits = next(
        QUESTION[:i] for i in range(len(QUESTION), 0, -1) if len(vlm.formatter.text_ids(QUESTION[:i])) <= 40
    )
    assert vlm.encode_image(photographs[0], fits).features.shape == (16, 64)
    assert vlm.manifest.reduction.options["text_length"] == 40


def test_the_prompt_goes_in_as_its_tokens_without_special_ones(tiny_checkpoint, make_bundle):
    vlm = fico_export.load(make_bundle(tiny_checkpoint, 16, method="mmtok"))
    feeds = vlm.read_prompt(QUESTION)
    ids = vlm.formatter.tokenizer.encode(QUESTION, add_special_tokens=False).ids

    assert ids[0] != vlm.formatter.tokenizer.token_to_id("<s>")
    assert feeds["text_embeds"].shape == (1, 128, 64)
    assert feeds["text_mask"].tolist() == [[1] * len(ids) + [0] * (128 - len(ids))]
    np.testing.assert_array_equal(feeds["text_embeds"][0, : len(ids)], vlm.embed(ids))
    assert not feeds["text_embeds"][0, len(ids) :].any()


def test_a_prompt_longer_than_clip_reads_is_answered(
    tiny_checkpoint, clip_checkpoint, make_bundle, photographs
):
    vlm = fico_export.load(make_bundle(tiny_checkpoint, 16, method="cdpruner", clip_text=clip_checkpoint))
    long = "what is in the picture " * 20
    text = vlm.read_prompt(long)["clip_text"]

    assert len(vlm.clip_text.segments(long)) > 1
    assert np.linalg.norm(text) < 1 - 1e-4  # a mean of unit lengths that differ
    assert len(vlm.generate(long, photographs[:1], max_new_tokens=4).token_ids) == 4


def test_the_commands_answer_and_verify(bundle, fico, photographs, tmp_path):
    picture = tmp_path / "picture.png"
    photographs[0].save(picture)
    answered = fico("run", bundle, "--image", picture, "--prompt", QUESTION, "--prompt", "And now?",
                    "--max-new-tokens", 4, "--json").json  # fmt: skip
    report = fico("verify", bundle, "--json").json
    graphs = {check["graph"] for check in report["checks"]}

    assert [turn["visual_tokens"] for turn in answered["turns"]] == [16, 16]
    assert answered["turns"][1]["cached_tokens"] > 16
    assert report["passed"]
    assert ("clip_text" in graphs) == (bundle / "clip_tokenizer.json").exists()


@pytest.mark.parametrize("method", [exhaustive("mmtok"), exhaustive("cdpruner")])
def test_an_fp16_bundle_is_verified_and_answers(
    method, tiny_checkpoint, clip_checkpoint, make_bundle, photographs
):
    clip = {"clip_text": clip_checkpoint} if method == "cdpruner" else {}
    vlm = fico_export.load(make_bundle(tiny_checkpoint, 16, method=method, precision="fp16", **clip))

    assert vlm.encode_image(photographs[0], QUESTION).features.dtype == np.float16
    assert len(vlm.generate(QUESTION, photographs[:1], max_new_tokens=4).token_ids) == 4


def test_the_manifest_says_where_the_text_tower_came_from(tiny_checkpoint, clip_checkpoint, make_bundle):
    bundle = make_bundle(tiny_checkpoint, 16, method="cdpruner", clip_text=clip_checkpoint)
    manifest = json.loads((bundle / "manifest.json").read_text())

    assert manifest["clip_text"]["source"] == str(clip_checkpoint)
    assert manifest["clip_text"]["weights"] == open_clip(str(clip_checkpoint)).weights()
    assert {"clip_tokenizer.json", "onnx/clip_text.onnx"} <= manifest["files"].keys()
    assert manifest["graphs"]["clip_text"]["inputs"] == [
        {"name": "input_ids", "dtype": "int64", "shape": [1, 77]}
    ]


def test_verify_wants_the_clip_model_that_the_bundle_came_from(
    tiny_checkpoint, clip_checkpoint, make_bundle, tmp_path
):
    bundle = copied(
        make_bundle(tiny_checkpoint, 16, method="cdpruner", clip_text=clip_checkpoint), tmp_path / "bundle"
    )
    moved = copied(clip_checkpoint, tmp_path / "moved")
    edit_json(bundle / "manifest.json", clip_text__source=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="no longer at") as gone:
        fico_export.verify(bundle)
    assert "--clip-text FOLDER" in gone.value.fix
    report = fico_export.verify(bundle, clip_text=str(moved))
    assert not report.failed
    other = write_clip(tmp_path / "other", text={"num_hidden_layers": 2})
    with pytest.raises(CheckpointError, match="is not the checkpoint"):
        fico_export.verify(bundle, clip_text=str(other))
    same_size = write_clip(tmp_path / "same-size", seed=5)
    assert {c.graph for c in fico_export.verify(bundle, clip_text=str(same_size)).failed} == {
        "vision_encoder",
        "clip_text",
    }


def test_verify_refuses_a_clip_model_for_a_bundle_without_one(tiny_checkpoint, clip_checkpoint, make_bundle):
    with pytest.raises(ConfigError, match="has no graph of a CLIP model"):
        fico_export.verify(make_bundle(tiny_checkpoint, 16), clip_text=str(clip_checkpoint))


def test_an_export_without_the_clip_model_that_it_needs_is_refused(export):
    export("--method", "cdpruner").refuses(
        "no CLIP model was named", "--clip-text MODEL", "clip-vit-large-patch14-336"
    )


@pytest.mark.parametrize("method", ["ficoco-v", "mmtok"])
def test_an_export_with_a_clip_model_that_nothing_reads_is_refused(export, clip_checkpoint, method):
    export("--method", method, "--clip-text", clip_checkpoint).refuses(
        "nothing of --method", "drop --clip-text"
    )


def test_a_model_that_is_no_clip_model_is_refused(export, tiny_checkpoint, tmp_path):
    def clip_text(name):
        return export("--method", "cdpruner", "--clip-text", name)

    clip_text(tiny_checkpoint).refuses("--clip-text: model_type 'llava'", "is no CLIP model's")
    clip_text("clip-vit-large-patch14-33").refuses(
        "unknown CLIP model", "did you mean 'clip-vit-large-patch14-336'?"
    )
    clip_text(tmp_path / "nowhere").refuses("--clip-text: no folder")


def test_a_clip_model_that_cannot_belong_to_the_tower_is_refused(export, tmp_path):
    clip = write_clip(tmp_path / "clip", vision={"hidden_size": 48})
    export("--method", "cdpruner", "--clip-text", clip).refuses("has 48 channels", "projector has 64")


def test_a_damaged_clip_model_is_refused(export, clip_checkpoint, tmp_path):
    def damaged(name, change):
        folder = copied(clip_checkpoint, tmp_path / name)
        change(folder)
        return export("--method", "cdpruner", "--clip-text", folder)

    damaged("weights", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")).refuses(
        "--clip-text:", "holds no .safetensors", "CLIPModel", "--clip-text OUT"
    )
    damaged("tokenizer", lambda f: (f / "tokenizer.json").unlink()).refuses("--clip-text:", "tokenizer.json")
    damaged("bare", lambda f: edit_json(f / "tokenizer.json", post_processor=None)).refuses("puts the ids []")
    damaged("layers", lambda f: edit_json(f / "config.json", text_config__num_hidden_layers=4)).refuses(
        "--clip-text: the checkpoint has no tensor 'text_model.encoder.layers.3"
    )
    damaged("config", lambda f: edit_json(f / "config.json", text_config__hidden_act="no such")).refuses(
        "--clip-text: config.json: text_config.hidden_act", "no such"
    )


def test_a_damaged_clip_tokenizer_of_a_bundle_is_refused(
    tiny_checkpoint, clip_checkpoint, make_bundle, tmp_path
):
    bundle = copied(
        make_bundle(tiny_checkpoint, 16, method="cdpruner", clip_text=clip_checkpoint), tmp_path / "bundle"
    )
    (bundle / "clip_tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"clip_tokenizer\.json"):
        fico_export.load(bundle)


@pytest.mark.slow
def test_a_model_that_hands_on_its_cls_token_and_two_pictures_of_a_prompt(
    clip_checkpoint, tmp_path, photographs
):
    folder = write_tiny(tmp_path / "checkpoint", llava={"vision_feature_select_strategy": "full"})
    edit_json(folder / "processor_config.json", vision_feature_select_strategy="full")
    bundle = fico_export.export(
        folder, 17, method="cdpruner", clip_text=clip_checkpoint, out=tmp_path / "bundle"
    )
    answer = fico_export.load(bundle).generate(QUESTION, photographs[:2], max_new_tokens=4)

    assert answer.visual_tokens == 34
