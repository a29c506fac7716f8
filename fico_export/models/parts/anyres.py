"""How LLaVA-NeXT and LLaVA-OneVision see images: the whole image as one tile, and a grid of tiles that its shape chooses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fico_export import reducers
from fico_export.bundle import graph_names
from fico_export.bundle.profiles import MAX_TILES, NEWLINES, VIDEO, LayoutRecord, Profile
from fico_export.errors import CheckpointError, ConfigError
from fico_export.models.parts import config_check, tile_graphs
from fico_export.models.parts.llava_like import Images
from fico_export.models.parts.tile_graphs import ALL
from fico_export.models.source import Files
from fico_export.models.towers.clip import ClipConfig
from fico_export.options import ExportOptions
from fico_export.reducers.base.reducer import Composite, Reducer, Site
from fico_export.reducers.base.tiling import EQUAL, Tiling

USUAL = "2x2"
"""The grid to which published reducers resize every image."""

SINGLE = "1"
"""The profile of one tile, of each of several images in a prompt."""


def images(
    config: Any, tower: ClipConfig, aside: int, *, most: int = 0, single: bool = False, videos: bool = False
) -> Images:
    """The grids of a config.json's pinpoints.

    Args:
        config: as transformers reads it.
        tower: shape of the tower.
        aside: visual tokens of a tile beside its patches.
        most: so many first tiles as which a grid may have tokens at most, where nothing is reduced; 0 for any number.
        single: whether several images of a prompt are one tile each.
        videos: whether it sees videos, whose frames have half as many rows and columns of tokens as a tile, rounded up.

    Raises:
        CheckpointError: a pinpoint is no multiple of the tile, or the CLS token is among the visual tokens.
    """
    if aside:
        raise CheckpointError(
            "vision_feature_select_strategy 'full' keeps the CLS token, which has no place in a grid of tiles",
            fix='a model of this family has "default" there in config.json',
        )
    profiles = tuple(_profile(pinpoint, tower) for pinpoint in config.image_grid_pinpoints)
    if len({profile.name for profile in profiles}) < len(profiles):
        raise _wrong(config.image_grid_pinpoints, "a list in which each stands once")
    if single:
        profiles = (*profiles, _profile_of(SINGLE, (1, 1), 1, tower))
    return Images(
        profiles,
        LayoutRecord(rule="anyres"),
        partial(_shape, profiles, most, tower if videos else None),
        newline=True,
        choices=("profile", "tiling", "base_keep", "unpad", "newlines", "frames"),
    )


def same_pinpoints(files: Files, config: Any) -> Files:
    """The text files, whose image processor has the config's pinpoints.

    Raises:
        CheckpointError: it has others.
    """
    given = files.preprocessor.get("image_grid_pinpoints")
    if given is not None and [list(p) for p in given] != [list(p) for p in config.image_grid_pinpoints]:
        raise CheckpointError(
            "image_grid_pinpoints of preprocessor_config.json are not those of config.json",
            fix="use the preprocessor_config.json and config.json of one checkpoint",
        )
    return files


def _wrong(value: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"config.json: image_grid_pinpoints is {value!r:.80}, not {expected}", fix=config_check.FIX
    )


def _profile(pinpoint: Sequence[int], tower: ClipConfig) -> Profile:
    side = tower.image_size
    (rows, rest), (columns, beside) = divmod(pinpoint[0], side), divmod(pinpoint[1], side)
    tiles = rows * columns + 1
    if rest or beside or not 2 <= tiles <= MAX_TILES:
        raise _wrong(list(pinpoint), f"multiples of the tile's side, {side}")
    return _profile_of(f"{rows}x{columns}", (rows, columns), tiles, tower)


def _profile_of(name: str, grid: tuple[int, int], tiles: int, tower: ClipConfig) -> Profile:
    side, total = tower.image_size, tiles * tower.patches
    return Profile(
        name=name,
        graph=graph_names.VISION,
        tile_grid=grid,
        tiles=tiles,
        patch_grid=tower.grid,
        token_grid=tower.grid,
        patch_size=tower.patch_size,
        input_shape=(tiles, 3, side, side),
        visual_tokens=total,
        handed_over=total,
    )


def _shape(
    profiles: tuple[Profile, ...], most: int, of_videos: ClipConfig | None, options: ExportOptions
) -> tuple[tuple[Profile, ...], LayoutRecord, Tiling]:
    """The grids that a request asks for, each with the graph of its number of tiles."""
    whole = options.method == "none"
    if whole:
        others = None if options.newlines == "all" else options.newlines  # than the model's own
        tile_graphs.require_a_method(
            {"--tiling": options.tiling, "--base-keep": options.base_keep, "--newlines": others}
        )
    chosen = _chosen(profiles, options.profile or ((ALL,) if whole else ()), options.method)
    videos = () if options.frames is None else (_video(options.frames, of_videos),)
    newlines = options.newlines or ("all" if whole else "rows" if options.unpad else "drop")
    unpad = whole or options.unpad
    numbers = {"unpad": int(unpad), "newlines": NEWLINES.index(newlines)}
    if whole and most:
        numbers["most"] = most
    if profiles[-1].name == SINGLE:
        numbers["single"] = 1
    record = LayoutRecord(rule="anyres", numbers=numbers)
    if whole:
        return tile_graphs.tile_by_tile((*chosen, *videos)), record, EQUAL
    tiling = Tiling(options.tiling or "per-tile", options.base_keep, masked=options.unpad)
    return (*tile_graphs.by_count(chosen), *videos), record, tiling


def _video(frames: int, tower: ClipConfig | None) -> Profile:
    if tower is None:
        raise ConfigError("--frames with a model that sees no videos", fix="drop --frames")
    if not 2 <= frames <= MAX_TILES:
        raise ConfigError(f"--frames {frames} is outside 2 … {MAX_TILES}", fix="give another number")
    base, (rows, columns) = _profile_of(VIDEO, (1, frames), frames, tower), tower.grid
    pooled = (-(-rows // 2), -(-columns // 2))
    total = frames * pooled[0] * pooled[1]
    changed = {"token_grid": pooled, "visual_tokens": total, "handed_over": total}
    return base.model_copy(update={**changed, "graph": f"{graph_names.VISION}_{VIDEO}"})


def _chosen(profiles: tuple[Profile, ...], names: tuple[str, ...], method: str | None) -> tuple[Profile, ...]:
    """The profiles of these names; the usual one first, as a bundle's numbers are those of its first.

    The others stay in the order of the pinpoints, which decides between grids that waste as much of an image. By default the usual
    one, and that of several images, unless the decoder reduces, which takes one image.
    """
    profiles = tuple(sorted(profiles, key=lambda profile: profile.name != USUAL))
    known = {profile.name: profile for profile in profiles}
    tile_graphs.require_known(names, known)
    if ALL in names:
        return profiles
    if names:
        return tuple(profile for profile in profiles if profile.name in names)
    grids = [profile for profile in profiles if profile.name != SINGLE]
    others = [] if method is None or _in_decoder(method) else [p for p in profiles if p.name == SINGLE]
    return (known.get(USUAL, grids[-1]), *others)


def _in_decoder(method: str) -> bool:
    """Whether the last method of a chain acts there."""
    record = reducers.get(method.split(",")[-1].partition("@")[0].strip())
    parts = [reducers.get(part) for part in record.parts] if isinstance(record, Composite) else [record]
    return any(isinstance(part, Reducer) and part.site is Site.DECODER_LAYER for part in parts)
