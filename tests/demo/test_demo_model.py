"""The demo model sees: it answers the golden questions as when it was trained, and as transformers has it answer."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoTokenizer, LlavaForConditionalGeneration

import fico_export
from fico_export import demo, reducers
from fico_export.cli.main import app, invoke
from fico_export.demo import scenes
from fico_export.models.weights import read_json

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
QUESTIONS = GOLDEN["questions"]
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def picture_of(question):
    return scenes.render(scenes.scene(question["scene"], "held-out"))


def count_right(bundle, scene_of):
    """Right answers to the golden questions about the scenes that `scene_of` names; None is no picture."""
    vlm = fico_export.load(bundle)
    encoded = cache(lambda index: vlm.encode_image(scenes.render(scenes.scene(index, "held-out"))))
    right = 0
    for question in QUESTIONS:
        index = scene_of(question["scene"])
        shown = [] if index is None else [encoded(index)]
        right += vlm.generate(question["text"], shown, max_new_tokens=8).text == question["answer"]
    return right


def interval(right):
    """95 % interval of an accuracy of which the golden set is a sample."""
    found = binomtest(right, len(QUESTIONS)).proportion_ci(method="wilson")
    return found.low * len(QUESTIONS), found.high * len(QUESTIONS)


@pytest.mark.parametrize("method", ["none", reducers.DEFAULT])
def test_the_golden_questions_are_answered_as_when_it_was_trained(method, demo_full, demo_reduced):
    bundle = demo_full if method == "none" else demo_reduced
    right = count_right(bundle, lambda scene: scene)
    low, high = interval(GOLDEN["right"][method])

    assert low <= right <= high


def test_it_answers_from_the_picture(demo_full):
    """Without the picture, or with that of another scene, it falls below anything the golden interval allows."""
    low, _ = interval(GOLDEN["right"]["none"])

    assert count_right(demo_full, lambda scene: None) < low - 10
    assert count_right(demo_full, lambda scene: scene + 500) < low - 10


def test_golden_questions_are_spread_over_all_kinds():
    kinds = [question["kind"] for question in QUESTIONS]

    assert len(QUESTIONS) == 64
    assert min(kinds.count(kind) for kind in set(kinds)) >= 6
    assert len(set(kinds)) == 7


def test_transformers_gives_the_same_answers_as_fico_run(demo_full, tmp_path, capsys):
    """Greedy ids of transformers' own `generate`, its pixels and prompt made here by hand from the format's definition."""
    model = LlavaForConditionalGeneration.from_pretrained(demo.FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo.FOLDER)
    for question in QUESTIONS[::6]:
        shown = picture_of(question)
        shown.save(tmp_path / "picture.png")
        pixels = (np.asarray(shown) / 255 - MEAN) / STD
        prompt = f"USER: {'<image>' * 576}\n{question['text']} ASSISTANT:"
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = model.generate(
            **inputs,
            pixel_values=torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32)),
            max_new_tokens=8,
            do_sample=False,
        )
        arguments = ["run", demo_full, "--image", tmp_path / "picture.png", "--prompt", question["text"]]
        code = invoke(app, "fico", [*map(str, arguments), "--max-new-tokens", "8", "--json"])
        answer = json.loads(capsys.readouterr().out)

        assert code == 0
        assert answer["token_ids"] == generated[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_follow_up_turn_is_answered(demo_full):
    """It was trained on conversations, so the turns of `fico run --prompt … --prompt …` mean something."""
    vlm = fico_export.load(demo_full)
    by_scene: dict[int, list[dict[str, str]]] = {}
    for question in QUESTIONS:
        by_scene.setdefault(question["scene"], []).append(question)
    right = []
    for index, questions in by_scene.items():
        chat = vlm.chat()
        shown = [scenes.render(scenes.scene(index, "held-out"))]
        for turn, question in enumerate(questions[:3]):
            answer = chat.ask(question["text"], [] if turn else shown, max_new_tokens=8).text
            right.append(answer == question["answer"])
    assert sum(right) / len(right) > 0.75


def test_the_checkpoint_is_an_ordinary_one_and_small():
    config = read_json(demo.FOLDER / "config.json")
    size = sum(path.stat().st_size for path in demo.FOLDER.iterdir())
    model = LlavaForConditionalGeneration.from_pretrained(demo.FOLDER)

    assert config["model_type"] == "llava"
    assert config["vision_feature_layer"] == -2
    assert size < 8e6
    assert sum(p.numel() for p in model.parameters()) < 4e6
    assert model.dtype == torch.float16
