"""An image processor that preprocessor_config.json does not name is the model type's, as transformers takes it."""

import json

import numpy as np
import pytest
from cli_tools import copied, edit_json
from PIL import Image
from transformers import AutoImageProcessor

from fico_export import models
from fico_export.errors import CheckpointError, ConfigError
from fico_export.runtime.inputs.preprocess import ImageProcessor

SIZES = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}, "resample": 3}


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A checkpoint of one's own."""
    return copied(tiny_checkpoint, tmp_path / "checkpoint")


def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        {"processor_class": "LlavaProcessor"},
        {"image_processor_type": None, **SIZES},
        {"do_pad": True, **SIZES},
        {"do_center_crop": False, "size": {"height": 112, "width": 112}},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], **SIZES},
        {"feature_extractor_type": "CLIPFeatureExtractor", "do_pad": True, **SIZES},
        {"image_processor_type": "LlavaImageProcessorPil", "do_pad": True, **SIZES},
        {"image_processor_type": "CLIPImageProcessorFast", **SIZES},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_pixels_are_those_of_transformers(checkpoint, content):
    (checkpoint / "processor_config.json").unlink(missing_ok=True)
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(content))

    texts = models.load(checkpoint).files()

    theirs = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")(image(), return_tensors="np")
    assert np.array_equal(ImageProcessor.from_config(texts.preprocessor)(image()), theirs["pixel_values"])
    names = ("image_processor_type", "feature_extractor_type")
    assert any(texts.preprocessor.get(name) for name in names)  # a bundle says it to any other reader


def test_config_json_may_name_the_processor(checkpoint):
    edit_json(checkpoint / "preprocessor_config.json", image_processor_type=...)
    edit_json(checkpoint / "config.json", image_processor_type="SiglipImageProcessor")

    assert models.load(checkpoint).files().preprocessor["image_processor_type"] == "SiglipImageProcessor"


@pytest.mark.parametrize(
    ("config", "what", "fix"),
    [
        ({}, "names no image processor: it has no image_processor_type", "LlavaImageProcessor, LlavaNextImageProcessor"),
        ({"video_processor_type": "LlavaOnevisionVideoProcessor"}, "of a video processor ('Llava", "CLIPImageProcessor"),
        ({"image_processor_type": ["CLIPImageProcessor"]}, "image_processor_type is ['CLIPImageProcessor'], not a name", "correct image_processor_type"),
        ({"image_processor_type": 3}, "image_processor_type is 3", "correct image_processor_type"),
        ({"image_processor_type": "LlavaNexImageProcessor"}, "unknown image processor 'LlavaNexImageProcessor'", "LlavaNextImageProcessor"),
    ],
)  # fmt: skip
def test_a_processor_that_cannot_be_told_is_refused(config, what, fix):
    with pytest.raises(ConfigError) as caught:
        ImageProcessor.from_config(config)

    assert what in caught.value.what
    assert fix in caught.value.fix


def test_one_that_cuts_tiles_is_refused_for_a_model_that_sees_one_square(checkpoint):
    edit_json(checkpoint / "preprocessor_config.json", image_processor_type="LlavaNextImageProcessorFast")

    with pytest.raises(CheckpointError, match="cuts an image into tiles, and this model sees one square"):
        models.load(checkpoint).files()
