"""SmolVLM and SmolVLM2: a SigLIP tower with its last norm, cells of several patches a side, one linear layer, a Llama decoder.

Source: Marafioti et al., arXiv 2504.05299; transformers' SmolVLMForConditionalGeneration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import SmolVLMConfig

from fico_export.errors import CheckpointError
from fico_export.models.mergers.joined_linear import JoinedLinear
from fico_export.models.parts import config_check, tiled
from fico_export.models.parts.tiled import Tiles, Variety
from fico_export.models.parts.tower_shape import tower_shape
from fico_export.models.source import Family
from fico_export.models.towers.clip import ClipConfig
from fico_export.models.towers.siglip import SiglipTower

_FIX = "use the preprocessor_config.json of this checkpoint"
_FAKE = "<fake_token_around_image>"
_LONGEST = 4  # tiles on the longer side, by the image processors' defaults
_MOST = 4096  # pixels of a side, beyond which transformers scales an image down


def _shape(config: Any) -> ClipConfig:
    shape = tower_shape(ClipConfig, config.vision_config, side=config.scale_factor)
    if not _in_raster_order(shape.grid[0]):
        raise CheckpointError(
            f"config.json: transformers numbers the positions of {shape.grid[0]} patches a side otherwise than row by row",
            fix=config_check.FIX,
        )
    return shape


def _in_raster_order(side: int) -> bool:
    """Whether transformers, which finds a patch's position by comparing fractions, finds each row its own."""
    bounds = torch.arange(1 / side, 1.0, 1 / side, device="cpu")
    step = 1.0 / torch.tensor(side, device="cpu")
    fractions = torch.arange(side, dtype=torch.float32, device="cpu") * step
    found = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), bounds, right=True)
    return found.tolist() == list(range(side))


def _merger(config: Any, shape: ClipConfig, dtype: torch.dtype) -> JoinedLinear:
    outputs = config.text_config.hidden_size
    return JoinedLinear(shape.side, shape.hidden_size, outputs, shape.norm_eps, dtype)


def _tiles(given: Mapping[str, Any], side: int) -> Tiles:
    """The grids that a preprocessor_config.json allows: the longer side has as many tiles as its length holds.

    Raises:
        CheckpointError: it makes tiles of another size than the tower sees, or does not enlarge an image.
    """
    tile = _edge(given, "max_image_size", side)
    longest = _edge(given, "size", _LONGEST * side)
    if tile != side:
        raise CheckpointError(
            f"preprocessor_config.json: max_image_size is {tile}, and config.json makes it {side}", fix=_FIX
        )
    if longest % 2 or not 1 < longest <= _MOST:
        raise CheckpointError(
            f"preprocessor_config.json: the longest edge is {longest}, not an even number of at most {_MOST}",
            fix=_FIX,
        )
    if given.get("do_resize") is False:
        raise CheckpointError(
            "preprocessor_config.json: do_resize is false, and images come in any size", fix=_FIX
        )
    most = 1 if given.get("do_image_splitting") is False else math.ceil(longest / side)
    grids = [(most, shorter) for shorter in range(1, most + 1)] + [
        (shorter, most) for shorter in range(1, most)
    ]
    # First that of a photograph, by whose numbers a bundle is described.
    grids.sort(key=lambda grid: abs(grid[0] / grid[1] - 3 / 4))
    places = [f"row_{row + 1}_col_{column + 1}" for row in range(most) for column in range(most)]
    texts = {"tile": _FAKE, "global": "<global-img>", "end": _FAKE}
    if most > 1:
        texts |= {**{name: f"<{name}>" for name in places}, "line": "\n", "blank": "\n\n"}
    return Tiles(tiled.at_most(grids, "size"), {"longest": longest}, texts)


def _edge(given: Mapping[str, Any], key: str, default: int) -> int:
    value = given.get(key)
    edge = value.get("longest_edge") if isinstance(value, Mapping) else value
    if value is None:
        edge = default
    if type(edge) is not int or not 1 <= edge <= 2**13:
        raise CheckpointError(
            f"preprocessor_config.json: {key} is {value!r:.60}, not a longest_edge", fix=_FIX
        )
    return edge


SMOLVLM = Variety(
    name="SmolVLM",
    model_type="smolvlm",
    config_class=SmolVLMConfig,
    transformers_class="SmolVLMForConditionalGeneration",
    image_processor="SmolVLMImageProcessor",
    rule="rowcol",
    decoders=("llama", "mistral", "qwen2", "qwen3"),
    shape=_shape,
    tower=SiglipTower,
    has_cls=False,
    merger=_merger,
    tiles=_tiles,
    length="image_seq_len",
    renames=tiled.renames(
        (r"model\.(?=vision_model\.|connector\.|text_model\.)", ""),
        (r"vision_model\.post_layernorm\.", "multi_modal_projector.norm."),
        (r"vision_model\.", "vision_tower."),
        (r"connector\.modality_projection\.proj\.", "multi_modal_projector.linear."),
        (r"text_model\.", "language_model."),
    ),
)

FAMILY = Family(
    model_types=("smolvlm",),
    aliases={
        "smolvlm2-256m": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "smolvlm2-500m": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "smolvlm2-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    },
    load=partial(tiled.load, SMOLVLM),
    describe=partial(tiled.describe, SMOLVLM),
)
