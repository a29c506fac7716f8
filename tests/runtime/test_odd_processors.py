"""Values of preprocessor_config.json that no image processor has: an error names the key and how to correct it."""

import warnings

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fico_export.errors import ConfigError
from fico_export.runtime.inputs.preprocess import ImageProcessor

CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
NAN, INF = float("nan"), float("inf")
CHANNELS = [
    [], [0.5], [0.5] * 4, [0.5] * 100_000, "half", ["0.5"] * 3, [NAN, 0.5, 0.5], [INF] * 3, [1e30, 0.5, 0.5], [10**400] * 3,
    [True, True, True], [None, 0.5, 0.5], [[0.5], [0.5], [0.5]], {"r": 0.5}, True, None, 1e9,
]  # fmt: skip
EDGES = [
    0, -1, 10**9, 2**63, 2.5, "28", True, None, [], [28, 28], {}, {"height": 28}, {"height": 28, "width": 10**9},
    {"shortest_edge": "28"}, {"shortest_edge": True}, {"height": 28.0, "width": 28.0}, {"longest_edge": 28}, {"shortest_edge": [28]},
]  # fmt: skip
SWITCHES = [
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_pad",
    "do_convert_rgb",
    "default_to_square",
]
ODD = {
    "image_mean": CHANNELS,
    "image_std": [*CHANNELS, 0, [0.5, 0.0, 0.5], [0.5, 0.5, 1e-30], [-0.5, 0.5, 0.5]],
    "rescale_factor": [0, -1.0, NAN, INF, 1e30, 10**400, "1/255", True, None, [], [1 / 255]],
    "size": EDGES,
    "crop_size": EDGES,
    "resample": [6, -1, 10**9, "3", "bicubic", True, False, 3.5, None, [], [3], {}],
    **{switch: ["true", "", 1, 0, 2.5, [], {}, [True]] for switch in SWITCHES},
    "image_processor_type": [3, ["CLIPImageProcessor"], {"name": "CLIP"}, "x" * 100_000],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}-{str(value)[:40]}")
        for key, values in ODD.items()
        for value in values
    ],
)
def test_an_odd_value_names_its_key_and_how_to_correct_it(key, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's, of a number that got too large
        with pytest.raises(ConfigError) as caught:
            ImageProcessor.from_config({**CLIP, key: value})

    named = "image processor" if key == "image_processor_type" else f"the image processor's {key} is "
    assert named in caught.value.what
    assert len(caught.value.what) < 300  # a list of a million numbers is not printed
    assert key in caught.value.fix or "known: CLIPImageProcessor" in caught.value.fix


@pytest.mark.parametrize("config", [[], "CLIPImageProcessor", None, 3, [CLIP]], ids=str)
def test_what_is_no_object_is_refused(config):
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json holds .*not an object") as caught:
        ImageProcessor.from_config(config)
    assert "published with this checkpoint" in caught.value.fix


@pytest.mark.parametrize(
    "change",
    [
        {"do_center_crop": None},
        {"do_normalize": None, "image_std": None},
        {"do_rescale": None, "rescale_factor": None, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.4, 57.1, 57.4]},
        {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
    ],
    ids=str,
)  # fmt: skip
def test_what_transformers_takes_keeps_its_bits(change):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    config = CLIP | change

    theirs = CLIPImageProcessorPil(**config)(image, return_tensors="np")["pixel_values"]
    ours = ImageProcessor.from_config(config)(image)
    np.testing.assert_array_equal(ours, theirs.astype(np.float32))
