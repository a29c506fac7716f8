"""The demo's training trains the model that is saved, on labels that are true, and goes on where it was stopped."""

import itertools
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import demo_language
import demo_vision
import train_demo

from fico_export.demo import scenes
from fico_export.demo.questions import questions


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An untrained tower and language part, and the checkpoint that they were written to."""
    folder = tmp_path_factory.mktemp("untrained")
    tower = demo_vision.start(width=32, heads=4, layers=3, seed=0)
    demo_language.write_text(folder)
    language = demo_language.Language(48, 3, 2, 64, tower.config, seed=1)
    demo_language.write(folder, tower, language)
    return tower, language, folder


def test_the_rows_of_training_are_the_model_of_transformers(fresh):
    """Logits of every conversation of a row equal those of the saved checkpoint, which sees one conversation alone."""
    tower, language, folder = fresh
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    halves = {name: p.to(torch.float16).float() for name, p in language.state_dict().items()}
    tower.load_state_dict({name: p.to(torch.float16).float() for name, p in tower.state_dict().items()})
    language.load_state_dict(halves)
    text, shown = demo_language.Text(folder), scenes.scene(5, "train")
    row = demo_language.rows(text, [shown], seed=0)
    pixels = demo_vision.pixels([scenes.render(shown)])
    starts = [*(row["positions"][0] == text.head).nonzero().flatten().tolist(), row["ids"].shape[1]]
    with torch.no_grad():
        seen = demo_vision.features(tower, pixels)[:, 1:]
        hidden = language(seen, torch.tensor(text.prefix), row["ids"], row["positions"], row["sees"])
        logits = language.decoder.lm_head(hidden)
        for first, last in list(itertools.pairwise(starts))[:6]:
            said = row["ids"][0, first:last]
            ids = torch.cat([torch.tensor(text.prefix), torch.full((576,), demo_language.IMAGE_ID), said])
            expected = model(input_ids=ids[None], pixel_values=pixels).logits[0, -len(said) :]

            torch.testing.assert_close(logits[0, first:last], expected, atol=1e-4, rtol=1e-4)


def test_conversations_are_tokenized_as_the_chat_template_has_them(fresh):
    folder = fresh[2]
    tokenizer, text = AutoTokenizer.from_pretrained(folder), demo_language.Text(folder)
    for index in range(20):
        rng = random.Random(index)
        asked = rng.sample(questions(scenes.scene(index, "train"), rng), 3)
        turns = " USER: ".join(f"{q.text} ASSISTANT: {q.answer}" for q in asked)
        whole = tokenizer(f"USER: <image>\n{turns}")["input_ids"]
        ids, wanted = text.conversation([(q.text, q.answer) for q in asked])

        assert whole[: len(text.prefix)] == text.prefix
        assert ids == whole[len(text.prefix) + 1 :]
        assert wanted.count(demo_language.END) == 3
        answers = tokenizer.decode([t for t in wanted if t >= 0], skip_special_tokens=False).split("</s>")
        assert [answer.strip() for answer in answers[:-1]] == [q.answer for q in asked]


def test_labels_are_what_the_scene_shows():
    for index in range(30):
        shown = scenes.scene(index, "train")
        labels = demo_vision.labels(shown)
        for thing in shown.things:
            patch = (thing.y // 8) * 24 + thing.x // 8
            assert labels["shape"][patch] == 1 + scenes.SHAPES.index(thing.shape)
            assert labels["colour"][patch] == 1 + list(scenes.COLOURS).index(thing.colour)
            assert labels["cell"][patch] == thing.cell
            assert abs(labels["offset"][patch]).max() <= 4 / 32
        reads = {label for label in labels["digit"].tolist() if label}
        expected = {1 + 10 * i + int(d) for i, d in enumerate(shown.sign.number)} if shown.sign else set()
        assert reads == expected


def test_an_interrupted_stage_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    def run(state, stop_at=None):
        torch.manual_seed(0)
        modules = nn.ModuleDict({"net": nn.ModuleDict({"layers": nn.Linear(6, 6), "out": nn.Linear(6, 1)})})

        def loss(step):
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            net = modules["net"]
            return net["out"](net["layers"](x).tanh()).square().mean(), {}

        state.mkdir(exist_ok=True)
        train_demo.fit("stage", modules, loss, steps=9, muon_lr=0.1, adam_lr=0.1, state=state, save_every=2)
        return modules.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "halves", stop_at=5)
    resumed = run(tmp_path / "halves")

    for name, values in whole.items():
        assert torch.equal(values, resumed[name]), name
