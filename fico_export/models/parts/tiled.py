"""What InternVL, SmolVLM and Idefics3 share: equal square tiles, whose patches are joined cell by cell, and a tile of the whole image.

The checkpoint's image processor says which grids of tiles there are. With `--method none` a bundle is for all of them, and one graph of one
tile serves them; a method is for one tile unless `--profile` names grids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fico_export import tokenizer
from fico_export.bundle import graph_names
from fico_export.bundle.profiles import MAX_TILES, LayoutRecord, Profile
from fico_export.errors import CheckpointError, ConfigError
from fico_export.models.mergers.base import Merger
from fico_export.models.parts import config_check, lacks, texts, tile_graphs, tiled_check
from fico_export.models.parts.opened import opened
from fico_export.models.parts.text_config import decoder_config
from fico_export.models.parts.tile_graphs import ALL
from fico_export.models.source import Architecture, Files, SourceModel, parameter_shapes
from fico_export.models.towers.base import Tower
from fico_export.models.towers.clip import ClipConfig
from fico_export.models.vision import VisionEncoder
from fico_export.models.weights import Rename, nothing, read_json
from fico_export.options import ExportOptions
from fico_export.reducers.base.plan import Limits, ReductionPlan, make_plan
from fico_export.reducers.base.reducer import Depth
from fico_export.reducers.base.tiling import EQUAL, Tiling

Grid = tuple[int, int]
"""Rows and columns of tiles."""

ONE = "1"
"""Name of the profile of one tile."""


@dataclass(frozen=True)
class Tiles:
    """How a checkpoint's image processor shows an image.

    Attributes:
        grids: that an image can have, in the order in which the layout's rule looks at them.
        numbers: of the layout.
        texts: of the layout, as text.
    """

    grids: tuple[Grid, ...]
    numbers: Mapping[str, int]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Variety:
    """A model family of this kind.

    Attributes:
        name: for messages.
        model_type: as in config.json.
        config_class: transformers' class of its config.
        transformers_class: transformers' class of the whole model.
        image_processor: the one that transformers takes where no file names one.
        rule: of the layout.
        decoders: model types of the decoders that it has.
        shape: config → shape of the tower, `side` that of a cell.
        tower: (shape, dtype) → the tower.
        has_cls: whether it has a CLS token.
        merger: (config, shape, dtype) → the merger.
        tiles: (content of preprocessor_config.json, side of a tile) → how it shows an image; raises CheckpointError.
        length: key of processor_config.json that says how many tokens a tile has.
        renames: from the checkpoint's keys to canonical names.
        unread: tells of a tensor whether the model is known to have it and not to need it.
    """

    name: str
    model_type: str
    config_class: Any
    transformers_class: str
    image_processor: str
    rule: str
    decoders: tuple[str, ...]
    shape: Callable[[Any], ClipConfig]
    tower: Callable[[Any, torch.dtype], Tower]
    has_cls: bool
    merger: Callable[[Any, ClipConfig, torch.dtype], Merger]
    tiles: Callable[[Mapping[str, Any], int], Tiles]
    length: str
    renames: Sequence[Rename]
    unread: Callable[[str], bool] = nothing


def load(variety: Variety, folder: Path, revision: str | None) -> SourceModel:
    """The model in a folder, every tensor found and of the right shape.

    Raises:
        CheckpointError: the config asks for something that is not supported, or tensors are missing.
    """
    raw = read_json(folder / "config.json")
    config = _parsed(variety, raw)
    tower = _tower(variety, config)
    files = partial(_files, variety, tower)
    found = files(texts.files(folder, raw, config))
    tiles = variety.tiles(found.preprocessor, tower.image_size)
    ids = _ids(found.tokenizer, folder, tiles.texts)
    described = _described(variety, config, tower, tiles, ids)
    return opened(
        folder, revision, raw, config, described, unread=variety.unread, renames=variety.renames, files=files
    )


def describe(variety: Variety, raw: dict[str, Any]) -> Architecture:
    """What the content of config.json says, with the tiles of the processor's defaults, and a token for each text around them.

    Raises:
        CheckpointError: it asks for something that is not supported.
    """
    config = _parsed(variety, raw)
    tower = _tower(variety, config)
    tiles = variety.tiles({}, tower.image_size)
    return _described(variety, config, tower, tiles, {name: [0] for name in tiles.texts})


def _ids(content: str, folder: Path, words: Mapping[str, str]) -> dict[str, list[int]]:
    """Token ids of the texts around tiles.

    Raises:
        CheckpointError: one that is no white space is no token of its own.
    """
    path, fix = folder / "tokenizer.json", "use the tokenizer.json of this checkpoint"
    bounded = tokenizer.read(content, str(path), error=CheckpointError, fix=fix)
    found = {name: bounded.encode(word, add_special_tokens=False) for name, word in words.items()}
    for name, word in words.items():
        if word.strip() and len(found[name]) != 1:
            raise CheckpointError(
                f"{path} has no token {word!r}, which the model puts around the tiles of an image", fix=fix
            )
    return found


def _described(
    variety: Variety, config: Any, tower: ClipConfig, tiles: Tiles, ids: dict[str, list[int]]
) -> Architecture:
    with config_check.reading(variety.name):
        decoder = decoder_config(config.text_config)
    known = {profile.name: profile for profile in (_profile(grid, tower) for grid in [(1, 1), *tiles.grids])}
    own = tuple(known[_name(grid)] for grid in tiles.grids)
    layout = LayoutRecord(rule=variety.rule, numbers=dict(tiles.numbers), texts=ids)
    first = known[ONE]
    of_one = Limits(
        first.visual_tokens,
        0,
        Depth(tower.layers, tower.layers),
        Depth(decoder.layers, decoder.layers - 1),
        has_cls=variety.has_cls,
        lacks=lacks.OF_JOINED,
    )

    def plan(
        method: str,
        keep: int | None,
        settings: dict[str, Any],
        profile: Profile | None = None,
        tiling: Tiling = EQUAL,
    ) -> ReductionPlan:
        count = (profile or first).tiles
        tiling = tiling if count > 1 else replace(tiling, kind="per-tile")
        return make_plan(method, keep, settings, replace(of_one, tiles=count, tiling=tiling))

    def vision(
        plan: ReductionPlan, dtype: torch.dtype, profile: Profile | None = None, layers: int | None = None
    ) -> VisionEncoder:
        merger = variety.merger(config, tower, dtype)
        return VisionEncoder(
            variety.tower(tower, dtype), merger, plan, (tower.layers,), False, profile or first
        )

    with config_check.reading(variety.name):
        shapes = parameter_shapes(lambda: vision(plan("none", None, {}), torch.float32), decoder)
    return Architecture(
        model_type=variety.model_type,
        shapes=shapes,
        profiles=(first,),
        layout=layout,
        decoder_config=decoder,
        plan=plan,
        vision=vision,
        transformers_class=variety.transformers_class,
        shape=partial(_shape, known, own, layout),
        choices=("profile", "tiling"),
    )


def _tower(variety: Variety, config: Any) -> ClipConfig:
    with config_check.reading(variety.name):
        tower = variety.shape(config)
        if tower.grid[0] % tower.side:
            raise CheckpointError(
                f"config.json: a tile of {tower.grid[0]} patches a side does not consist of cells of {tower.side}",
                fix=config_check.FIX,
            )
    return tower


def _name(grid: Grid) -> str:
    return ONE if grid == (1, 1) else f"{grid[0]}x{grid[1]}"


def _profile(grid: Grid, tower: ClipConfig) -> Profile:
    count = grid[0] * grid[1] + (grid != (1, 1))
    cells = tower.grid[0] // tower.side, tower.grid[1] // tower.side
    total = count * cells[0] * cells[1]
    return Profile(
        name=_name(grid),
        graph=graph_names.VISION,
        tile_grid=grid,
        tiles=count,
        patch_grid=tower.grid,
        token_grid=cells,
        patch_size=tower.patch_size,
        input_shape=(count, 3, tower.image_size, tower.image_size),
        visual_tokens=total,
        handed_over=total,
    )


def _shape(
    known: Mapping[str, Profile], own: tuple[Profile, ...], layout: LayoutRecord, options: ExportOptions
) -> tuple[tuple[Profile, ...], LayoutRecord, Tiling]:
    """The grids that a request asks for, each with the graph of its number of tiles."""
    whole = options.method == "none"
    names = options.profile or ((ALL,) if whole else (ONE,))
    tile_graphs.require_known(names, known)
    chosen = own if ALL in names else tuple(profile for name, profile in known.items() if name in names)
    if options.tiling == "split":
        raise ConfigError(
            "--tiling split reduces the first tile by itself, which here shows no whole image",
            fix="--tiling joint, or --tiling per-tile",
        )
    if whole:
        tile_graphs.require_a_method({"--tiling": options.tiling})
        return tile_graphs.tile_by_tile(chosen), layout, EQUAL
    return tile_graphs.by_count(chosen), layout, Tiling(options.tiling or "per-tile")


def at_most(grids: Iterable[Grid], what: str) -> tuple[Grid, ...]:
    """The grids, if none has more tiles than a bundle can have.

    Raises:
        CheckpointError: `what` makes one that has.
    """
    found = tuple(grids)
    if any(rows * columns + 1 > MAX_TILES for rows, columns in found):
        raise CheckpointError(
            f"preprocessor_config.json: {what} makes an image over {MAX_TILES} tiles",
            fix="use the preprocessor_config.json of this checkpoint",
        )
    return found


def whole_number(given: Mapping[str, Any], key: str, default: int, least: int, most: int) -> int:
    """A value of preprocessor_config.json.

    Raises:
        CheckpointError: it is no whole number in that range.
    """
    value = default if given.get(key) is None else given[key]
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(
            f"preprocessor_config.json: {key} is {value!r:.40}, not {least} … {most}",
            fix="use the preprocessor_config.json of this checkpoint",
        )
    return value


def _files(variety: Variety, tower: ClipConfig, files: Files) -> Files:
    """The text files, with the image processor that transformers takes where none is named.

    Raises:
        CheckpointError: the processor shows a tile by another number of tokens than the model.
    """
    tokens = (tower.grid[0] // tower.side) ** 2
    if (given := files.processor.get(variety.length, tokens)) != tokens:
        raise CheckpointError(
            f"processor_config.json: {variety.length} is {given!r:.40}, and config.json makes it {tokens}",
            fix="use the processor_config.json and config.json of one checkpoint",
        )
    return texts.with_processor_named(files, variety.image_processor)


def _parsed(variety: Variety, raw: dict[str, Any]) -> Any:
    with config_check.reading(variety.name):
        tiled_check.check(raw, variety.decoders)
        return variety.config_class.from_dict(raw)


def renames(*pairs: tuple[str, str]) -> tuple[Rename, ...]:
    """Patterns at the beginning of a key, and what they are replaced by."""
    return tuple((re.compile(f"^{pattern}"), replacement) for pattern, replacement in pairs)
