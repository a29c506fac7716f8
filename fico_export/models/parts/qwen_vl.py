"""What Qwen2.5-VL and Qwen3-VL share: images of any size in one grid of patches, of which 2×2 become a visual token.

A bundle is for the resolutions that are chosen at export: an image is resized to one of them, and every shape in the graph is fixed.
Source: Bai et al., arXiv 2502.13923; checkpoints as Qwen publishes them and as transformers 5 saves them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fico_export.bundle import graph_names
from fico_export.bundle.profiles import MAX_SIDE, MAX_TILES, VIDEO, LayoutRecord, Profile
from fico_export.errors import CheckpointError, ConfigError
from fico_export.models.mergers.joined import Joined
from fico_export.models.parts import config_check, lacks, qwen_check, texts
from fico_export.models.parts.opened import opened
from fico_export.models.parts.text_config import decoder_config
from fico_export.models.source import Architecture, EqualLayers, Files, SourceModel, parameter_shapes
from fico_export.models.towers.qwen import QwenTower, QwenVisionConfig
from fico_export.models.vision import VisionEncoder
from fico_export.models.weights import Rename, read_json
from fico_export.options import ExportOptions
from fico_export.reducers.base.plan import Limits, ReductionPlan, make_plan
from fico_export.reducers.base.reducer import Depth
from fico_export.reducers.base.tiling import EQUAL, Tiling

_USUAL = 448
"""Side of the square that a bundle is for by default, in pixels; the nearest multiple of a cell."""

_RESOLUTION = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.IGNORECASE)

RENAMES: tuple[Rename, ...] = (
    (re.compile(r"^model\.(?=visual\.|language_model\.)"), ""),
    (re.compile(r"^(language_model\.)?model\.(?=layers\.|embed_tokens\.|norm\.)"), "language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^visual\.blocks\."), "vision_tower.encoder.layers."),
    (re.compile(r"^visual\.patch_embed\.proj\."), "vision_tower.embeddings.patch_embedding."),
    (re.compile(r"^visual\.pos_embed\."), "vision_tower.embeddings.position_embedding."),
    (re.compile(r"^visual\.merger\.ln_q\."), "multi_modal_projector.norm."),
    (re.compile(r"^visual\.merger\.mlp\.0\."), "multi_modal_projector.linear_fc1."),
    (re.compile(r"^visual\.merger\.mlp\.2\."), "multi_modal_projector.linear_fc2."),
    (re.compile(r"^visual\.merger\."), "multi_modal_projector."),
    (re.compile(r"^visual\.(?=deepstack_merger_list\.)"), "multi_modal_projector."),
)
"""To canonical names: the public layouts, what transformers 5 has in memory, and what it saves."""


@dataclass(frozen=True)
class Variety:
    """A model family of this kind.

    Attributes:
        name: for messages.
        model_type: as in config.json.
        config_class: transformers' class of its config.
        transformers_class: transformers' class of the whole model.
        image_processor: the one that transformers takes where no file names one.
        shape: (vision_config, grid of patches) → shape of the tower.
        tower: (shape, dtype) → the tower.
        norm: channels → the norm of the merger.
        planes: vision_config → layers of the tower after which a plane is made for the decoder.
        videos: whether it sees a video as images with the text of their times between them.
    """

    name: str
    model_type: str
    config_class: Any
    transformers_class: str
    image_processor: str
    shape: Callable[[Any, tuple[int, int]], QwenVisionConfig]
    tower: Callable[[QwenVisionConfig, torch.dtype], QwenTower]
    norm: Callable[[int], torch.nn.Module]
    planes: Callable[[Any], tuple[int, ...]] = lambda vision: ()
    videos: bool = False


def load(variety: Variety, folder: Path, revision: str | None) -> SourceModel:
    """The model in a folder, every tensor found and of the right shape.

    Raises:
        CheckpointError: the config asks for something that is not supported, or tensors are missing.
    """
    raw = read_json(folder / "config.json")
    described, config = describe(variety, raw), _parsed(variety, raw)
    files = partial(_files, variety, config.vision_config)
    return opened(folder, revision, raw, config, described, renames=RENAMES, files=files)


def describe(variety: Variety, raw: dict[str, Any]) -> Architecture:
    """What the content of config.json says, without any other file.

    Raises:
        CheckpointError: it asks for something that is not supported.
    """
    config = _parsed(variety, raw)
    seen = config.vision_config
    with config_check.reading(variety.name):
        planes, decoder = variety.planes(seen), decoder_config(config.text_config)
        if len(planes) > decoder.layers:
            raise _wrong(
                "vision_config.deepstack_visual_indexes",
                planes,
                f"at most {decoder.layers} layers, as the decoder has",
            )
        decoder = replace(decoder, planes=len(planes))
        if seen.out_hidden_size != decoder.hidden_size:
            expected = f"hidden_size of the decoder, {decoder.hidden_size}"
            raise _wrong("vision_config.out_hidden_size", seen.out_hidden_size, expected)
        if not decoder.rope_axes:
            raise _wrong("rope_scaling", config.text_config.rope_parameters, "one with mrope_section")
        first = _profile(_usual(seen), _usual(seen), seen)
        tower = _tower(variety, seen, first)

    def plan(
        method: str,
        keep: int | None,
        settings: dict[str, Any],
        profile: Profile | None = None,
        tiling: Tiling = EQUAL,
    ) -> ReductionPlan:
        return make_plan(method, keep, settings, _limits(tower, decoder.layers, profile or first))

    def vision(
        plan: ReductionPlan, dtype: torch.dtype, profile: Profile | None = None, layers: int | None = None
    ) -> VisionEncoder:
        taken = profile or first
        shape = _tower(variety, seen, taken)
        after = planes
        if layers is not None:
            shape, after = replace(shape, layers=layers), (layers - 1,) * len(planes)
        norm = variety.norm(shape.hidden_size)
        merger = Joined(norm, shape.side, shape.hidden_size, decoder.hidden_size, dtype, after)
        return VisionEncoder(variety.tower(shape, dtype), merger, plan, (shape.layers,), False, taken)

    with config_check.reading(variety.name):
        shapes = parameter_shapes(lambda: vision(plan("none", None, {}), torch.float32), decoder)
    return Architecture(
        model_type=variety.model_type,
        shapes=shapes,
        profiles=(first,),
        layout=LayoutRecord(rule="grid", axes=decoder.axes),
        decoder_config=decoder,
        plan=plan,
        vision=vision,
        transformers_class=variety.transformers_class,
        shape=partial(_shape, config),
        choices=("resolution", "frames") if variety.videos else ("resolution",),
        equal_layers=None if tower.window else EqualLayers(tower.layers, _readers(planes)),
    )


def _limits(tower: QwenVisionConfig, layers: int, profile: Profile) -> Limits:
    """Those of images of a profile, of a decoder of so many layers."""
    return Limits(
        profile.visual_tokens // profile.tiles,
        0,
        Depth(tower.layers, tower.layers),
        Depth(layers, layers - 1),
        has_cls=False,
        tiles=profile.tiles,
        windowed=frozenset(layer for layer in range(tower.layers) if tower.windowed(layer)),
        lacks=lacks.OF_JOINED,
    )


def _readers(planes: tuple[int, ...]) -> dict[str, int]:
    """The mergers of planes, and the layers that they read."""
    return {f"multi_modal_projector.deepstack_merger_list.{i}": layer for i, layer in enumerate(planes)}


def _shape(config: Any, options: ExportOptions) -> tuple[tuple[Profile, ...], LayoutRecord, Tiling]:
    """The resolutions that a request asks for; a video has the first."""
    seen = config.vision_config
    profiles: dict[str, Profile] = {}
    for text in options.resolution or (f"{_usual(seen)}x{_usual(seen)}",):
        profile = _profile(*_sides(text, seen), seen)
        profiles[profile.name] = profile
    first, *others = profiles.values()
    named = (p.model_copy(update={"graph": f"{graph_names.VISION}_{p.name}"}) for p in others)
    if options.frames is None:
        return (first, *named), LayoutRecord(rule="grid", axes=3), EQUAL
    video = _video(options.frames, first, seen)
    if options.method == "none":  # all tiles are treated alike: a graph of one serves them
        video = video.model_copy(update={"input_shape": (video.frames, *first.input_shape[1:])})
    around = {"start": config.vision_start_token_id, "end": config.vision_end_token_id}
    return (first, *named, video), LayoutRecord(rule="grid", axes=3, numbers=around), EQUAL


def _video(frames: int, still: Profile, seen: Any) -> Profile:
    """The profile of a video of so many frames, each as large as a still image; a tile is as many as a patch spans.

    Raises:
        ConfigError: they are no whole tiles, or too many.
    """
    span: int = seen.temporal_patch_size
    most = MAX_TILES // span * span
    nearest = min(max(span, frames // span * span), most)
    if frames != nearest:
        raise ConfigError(
            f"--frames {frames}: a visual token shows {span} frames, and a video has a multiple of {span}, at most {most}",
            fix=f"--frames {nearest}",
        )
    tiles, tokens = frames // span, frames // span * still.visual_tokens
    changed = {"tile_grid": (1, tiles), "tiles": tiles, "visual_tokens": tokens, "handed_over": tokens}
    shown = {"frames": span, "input_shape": (frames, *still.input_shape[1:])}
    name = {"name": VIDEO, "graph": f"{graph_names.VISION}_{VIDEO}"}
    return still.model_copy(update={**name, **changed, **shown})


def _sides(text: str, seen: Any) -> tuple[int, int]:
    """Height and width of a resolution.

    Raises:
        ConfigError: it is none, or no multiple of a cell.
    """
    cell = seen.patch_size * seen.spatial_merge_size
    found = _RESOLUTION.fullmatch(text)
    if found is None:
        usual = _usual(seen)
        raise ConfigError(
            f"--resolution {text!r:.40} is no height and width",
            fix=f"give it as HxW in pixels, such as {usual}x{usual}",
        )
    height, width = int(found[1]), int(found[2])
    nearest = [min(max(cell, round(side / cell) * cell), MAX_SIDE // cell * cell) for side in (height, width)]
    if [height, width] != nearest:
        raise ConfigError(
            f"--resolution {text}: a visual token shows {cell}×{cell} pixels, and sides are multiples of {cell}, at most {MAX_SIDE}",
            fix=f"--resolution {nearest[0]}x{nearest[1]}",
        )
    return height, width


def _usual(seen: Any) -> int:
    cell: int = seen.patch_size * seen.spatial_merge_size
    return max(cell, round(_USUAL / cell) * cell)


def _profile(height: int, width: int, seen: Any) -> Profile:
    grid = height // seen.patch_size, width // seen.patch_size
    cells = grid[0] // seen.spatial_merge_size, grid[1] // seen.spatial_merge_size
    return Profile(
        name=f"{height}x{width}",
        graph=graph_names.VISION,
        tile_grid=(1, 1),
        tiles=1,
        patch_grid=grid,
        token_grid=cells,
        patch_size=seen.patch_size,
        input_shape=(1, 3, height, width),
        visual_tokens=cells[0] * cells[1],
        handed_over=cells[0] * cells[1],
    )


def tower_shape(seen: Any, grid: tuple[int, int], **own: Any) -> QwenVisionConfig:
    """Shape of the tower of a vision_config, for a grid of patches; `own` is what only one family's towers have."""
    return QwenVisionConfig(
        hidden_size=seen.hidden_size,
        intermediate_size=seen.intermediate_size,
        layers=seen.depth,
        heads=seen.num_heads,
        activation=seen.hidden_act,
        grid=grid,
        patch_size=seen.patch_size,
        frames=seen.temporal_patch_size,
        side=seen.spatial_merge_size,
        **own,
    )


def _tower(variety: Variety, seen: Any, profile: Profile) -> QwenVisionConfig:
    shape = variety.shape(seen, profile.patch_grid)
    head, rest = divmod(shape.hidden_size, shape.heads)
    if rest or head % 4:
        raise _wrong(
            "vision_config.num_heads",
            shape.heads,
            f"one of which each of hidden_size {shape.hidden_size} has a multiple of 4",
        )
    return replace(shape, moving=profile.frames > 1)


def _files(variety: Variety, seen: Any, files: Files) -> Files:
    """The text files, with the image processor that transformers takes where none is named.

    Raises:
        CheckpointError: it cuts patches of another size than the tower has.
    """
    named = files.preprocessor
    for key, value in (("patch_size", seen.patch_size), ("merge_size", seen.spatial_merge_size)):
        if named.get(key, value) != value:
            raise CheckpointError(
                f"preprocessor_config.json: {key} is {named[key]!r:.40}, and config.json makes it {value}",
                fix="use the preprocessor_config.json and config.json of one checkpoint",
            )
    return texts.with_processor_named(files, variety.image_processor)


def _parsed(variety: Variety, raw: dict[str, Any]) -> Any:
    with config_check.reading(variety.name):
        qwen_check.check(raw)
        return variety.config_class.from_dict(raw)


def _wrong(key: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"config.json: {key} is {value!r:.60}, not {expected}", fix=config_check.FIX)
