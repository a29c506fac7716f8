"""Videos of Qwen3-VL against transformers: frames in pairs, each shown as an image of its own after the text of its time."""

import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from anyres_checkpoints import picture
from onevision_checkpoints import NoVideo
from PIL import Image
from qwen_checkpoints import CHATML, Qwen
from reference import greedy
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

import fico_export
from fico_export.errors import ConfigError, FicoError, InputError
from fico_export.runtime.backends.base import Step
from fico_export.runtime.inputs.layouts import grid
from fico_export.runtime.inputs.layouts.base import Clip
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And which colour?"
CELLS = (3, 5)
TOKENS = CELLS[0] * CELLS[1]
FRAMES, FPS = 6, 1.7  # of nine: 0, 2, 3, 5, 6 and 8
NINE = [picture(90, 60, i) for i in range(9)]
VIDEO = fico_export.Video(NINE, fps=FPS)
# The public template's, beside that of images.
SHOWN = "{%- elif p.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{%- else %}"


class OnPillow(NoVideo):
    """Transformers' own sampling and patches; in between, where it takes torchvision, what its image processor does on Pillow."""

    merge_size = temporal_patch_size = 2
    patch_size = 16

    def __init__(self, size, count):
        self.size, self.count, self.fps = size, count, FPS
        self.image = None

    def __call__(self, videos, **kwargs):
        pixels, grids, metadata = [], [], []
        for video in videos:
            about = VideoMetadata(total_num_frames=len(video), fps=self.fps)
            about.frames_indices = Qwen3VLVideoProcessor.sample_frames(self, about, num_frames=self.count).tolist()
            resized = [video[i].resize(self.size, Image.Resampling.BICUBIC) for i in about.frames_indices]
            # Values to -1 … 1, as the image processor of this checkpoint has them.
            frames = np.stack([np.asarray(frame, np.float32).transpose(2, 0, 1) for frame in resized])
            frames = torch.from_numpy((frames * np.float32(1 / 255) - 0.5) / 0.5)
            patches, *shape = Qwen3VLVideoProcessor.patchify(self, frames[None], 16, 2, 2)
            pixels.append(patches[0])
            grids.append(shape)
            metadata.append(about)
        return {
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": metadata,
        }


class Theirs:
    """Transformers on prompts with videos; what else there is of it is that of `Qwen`."""

    def __init__(self, qwen):
        self.qwen, self.model, self.processor = qwen, qwen.theirs.model, qwen.theirs.processor
        self.processor.video_processor = OnPillow(qwen.kind.size(*CELLS), FRAMES)

    def inputs(self, *turns):
        """As of `qwen_checkpoints.Theirs`; a turn's videos come between its images and its text."""
        messages, images, videos = [], [], []
        for i, turn in enumerate(turns):
            shown, moving, text = turn if isinstance(turn, tuple) else ([], [], turn)
            images += shown
            videos += moving
            content = [{"type": "image"}] * len(shown) + [{"type": "video"}] * len(moving)
            messages.append(
                {
                    "role": ("user", "assistant")[i % 2],
                    "content": [*content, {"type": "text", "text": text}],
                }
            )
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(
            text=[prompt], images=images or None, videos=videos or None, return_tensors="pt"
        )

    def answer(self, *turns, new_tokens=8):
        fed = self.inputs(*turns)
        with torch.no_grad():
            made = self.model.generate(**fed, max_new_tokens=new_tokens, do_sample=False)
        return made[0, fed["input_ids"].shape[1] :].tolist()

    def positions(self, fed):
        """[3, S]."""
        taken = ("input_ids", "mm_token_type_ids", "attention_mask", "image_grid_thw", "video_grid_thw")
        return self.model.model.get_rope_index(**{k: fed[k] for k in taken if k in fed})[0][:, 0].numpy()

    def features(self, frames):
        """[N, D] of a video, and its planes [L, N, D]."""
        fed = self.processor.video_processor([frames])
        with torch.no_grad():
            made = self.model.get_video_features(fed["pixel_values_videos"], fed["video_grid_thw"])
        return made.pooler_output[0].numpy(), np.stack([plane[0] for plane in made.deepstack_features])


@pytest.fixture(scope="module")
def qwen(shared, qwens):
    """With a template that shows videos."""

    def write(folder):
        shutil.copytree(qwens("qwen3_vl").folder, folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").write_text(CHATML.replace("{%- else %}", SHOWN, 1))

    return Qwen("qwen3_vl", shared("qwen3_vl_video", write))


@pytest.fixture(scope="module")
def theirs(qwen):
    return Theirs(qwen)


@pytest.fixture(scope="module")
def whole(make_bundle, qwen):
    """All tokens."""
    resolutions = (qwen.kind.resolution(*CELLS), qwen.kind.resolution(4, 4))
    with fico_export.load(
        make_bundle(qwen.folder, method="none", resolution=resolutions, frames=FRAMES)
    ) as vlm:
        yield vlm


def laid_out(vlm, *shown):
    """The prompt about images and videos, as the decoder takes it."""
    videos = sum(isinstance(one, fico_export.Video) for one in shown)
    ids = vlm.formatter.encode([Message("user", QUESTION, len(shown) - videos, videos)])
    encoded = [vlm.encode_image(one, among=max(1, len(shown) - videos)) for one in shown]
    return ids, encoded, vlm.layout.lay_out(ids, encoded)


def test_pixels_prompt_positions_and_answer_are_those_of_transformers(whole, theirs):
    fed = theirs.inputs(([], [NINE], QUESTION))
    ids, (video,), prompt = laid_out(whole, VIDEO)
    said = whole.generate(QUESTION, VIDEO, max_new_tokens=8, sampling=GREEDY)
    text = whole.formatter.tokenizer.decode(fed["input_ids"][0].tolist(), skip_special_tokens=False)

    # By the public template's marks around all, which transformers 5 leaves there.
    times = re.findall(r"<([\d.]+) seconds><\|vision_start\|>(?:<\|video_pad\|>){15}<\|vision_end\|>", text)
    assert times == ["0.6", "2.4", "4.1"]
    assert whole.layout.whole_ids(ids, [video.size]) == fed["input_ids"][0].tolist()
    assert prompt.ids[prompt.visual < 0].tolist() == [
        token for token in fed["input_ids"][0].tolist() if token != whole.manifest.tokens.video_id
    ]
    assert said.prompt_tokens == fed["input_ids"].shape[1] == len(prompt.ids)
    np.testing.assert_array_equal(prompt.positions, theirs.positions(fed))
    assert prompt.next_position == theirs.positions(fed).max() + 1
    features, planes = theirs.features(NINE)
    np.testing.assert_allclose(video.features, features, atol=1e-4)
    np.testing.assert_allclose(video.planes, planes, atol=1e-4)
    assert said.token_ids == theirs.answer(([], [NINE], QUESTION))
    assert said.visual_tokens == FRAMES // 2 * TOKENS


def test_frames_differ_within_a_pair_and_pairs_from_each_other(whole, theirs):
    """What the test above could not tell apart otherwise."""
    right, _ = theirs.features(NINE)
    for other in (NINE[::-1], [NINE[i // 2 * 2] for i in range(9)], NINE[:1] * 9):
        assert np.abs(theirs.features(other)[0] - right).max() > 0.01
        features = whole.encode_image(fico_export.Video(other)).features
        np.testing.assert_allclose(features, theirs.features(other)[0], atol=1e-4)


def test_an_image_with_videos_and_further_turns(whole, theirs, qwen):
    image = picture(*qwen.kind.size(4, 4), 7)
    other = [picture(70, 80, i) for i in range(20, 27)]
    videos = [VIDEO, fico_export.Video(other, fps=FPS)]

    said = whole.generate(QUESTION, [*videos, image], max_new_tokens=8, sampling=GREEDY)
    assert said.token_ids == theirs.answer(([image], [NINE, other], QUESTION))
    asked, chat = [], whole.chat()
    turns = [(QUESTION, [], [NINE]), (MORE, [image], []), ("And this?", [], [other]), ("How many?", [], [])]
    for text, images, moving in turns:
        given = [*images, *(fico_export.Video(frames, fps=FPS) for frames in moving)]
        said = chat.ask(text, given, max_new_tokens=4, sampling=GREEDY)
        asked.append((images, moving, text))
        assert said.token_ids == theirs.answer(*asked, new_tokens=4), text
        asked.append(said.text)
    assert said.cached_tokens > said.prompt_tokens - 40  # nothing shown was computed again


@pytest.mark.parametrize(("total", "count", "fps"), [(9, 6, 1.7), (100, 8, 29.97), (31, 30, 24), (7, 2, 0.5), (5000, 64, 60)])  # fmt: skip
def test_frames_and_times_are_those_of_transformers(theirs, total, count, fps):
    about = VideoMetadata(total_num_frames=total, fps=fps)
    indices = Qwen3VLVideoProcessor.sample_frames(theirs.processor.video_processor, about, num_frames=count)
    times = theirs.processor._calculate_timestamps(indices, fps)

    assert grid.sample(total, count) == indices.tolist()
    pairs = list(pairwise(indices / fps))[::2]
    assert [grid.time(pair) for pair in pairs] == [f"<{time:.1f} seconds>" for time in times]


@pytest.mark.parametrize("keep", [24, 16, 3])
def test_exactly_k_are_kept_in_equal_shares(make_bundle, qwen, theirs, keep):
    """And what follows is transformers' decoder on the rows that are left, at the places and with the planes that they had."""
    resolution = qwen.kind.resolution(4, 6)
    theirs = with_size(theirs, (4, 6))
    features, planes = theirs.features(NINE)
    shares = [keep // 3 + (pair < keep % 3) for pair in range(3)]
    index = np.concatenate(
        [
            24 * pair + np.sort(greedy.divprune(features[24 * pair :][:24], share)[1])
            for pair, share in enumerate(shares)
        ]
    )
    fed = theirs.inputs(([], [NINE], QUESTION))
    ids = fed["input_ids"][0]
    at = np.flatnonzero(ids.numpy() == qwen.model.tokens.video_id)
    embeds = theirs.model.get_input_embeddings()(ids).detach().numpy().copy()
    embeds[at] = features
    added = np.zeros((len(planes), *embeds.shape), np.float32)
    added[:, at] = planes
    stays = np.ones(len(ids), bool)
    stays[np.delete(at, index)] = False
    bundle = make_bundle(
        qwen.folder, keep, method="divprune", resolution=resolution, frames=FRAMES, verify=keep == 16
    )
    with fico_export.load(bundle) as vlm:
        profile = vlm.manifest.profiles[-1]
        _, (video,), prompt = laid_out(vlm, VIDEO)
        rows = prompt.rows(vlm.embed, [video])
        (logits,) = vlm.decoder.step([Step(vlm.decoder.new_cache(), *rows)])
        said = vlm.generate(QUESTION, VIDEO, max_new_tokens=1, sampling=GREEDY)

    assert [share for _, share in profile.shares] == shares
    assert (profile.handed_over, profile.frames, said.visual_tokens) == (keep, 2, keep)
    assert video.keep_index.tolist() == index.tolist()
    np.testing.assert_array_equal(rows.positions, theirs.positions(fed)[:, stays])
    np.testing.assert_allclose(rows.embeds, embeds[stays], atol=1e-4)
    np.testing.assert_allclose(rows.planes, added[:, stays], atol=1e-4)
    expected = qwen.theirs.logits(embeds[stays], rows.positions, added[:, stays])[-1]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert said.token_ids == [int(expected.argmax())]


def with_size(theirs, cells):
    other = Theirs(theirs.qwen)
    other.processor.video_processor.size = theirs.qwen.kind.size(*cells)
    return other
