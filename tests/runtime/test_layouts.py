"""What stands for an image in a prompt: every rule against plain loops, and what a reduction and a policy make of it."""

import json

import numpy as np
import pytest
from PIL import Image
from report_records import manifest as manifest_of

from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import LayoutRecord, Profile, square
from fico_export.errors import BundleError, InputError
from fico_export.runtime.inputs import layouts
from fico_export.runtime.inputs.images import ImageFeatures
from fico_export.runtime.inputs.layout import Layout, require_room
from fico_export.runtime.inputs.layouts.base import NONE, Block
from fico_export.runtime.inputs.positions import COMPACT, ORIGINAL, as_input, following

IMAGE = 3
NEWLINE = 13


def tiled(tile_grid=(2, 3), token_grid=(2, 4)):
    tiles, cells = tile_grid[0] * tile_grid[1], token_grid[0] * token_grid[1]
    return Profile(
        name="tiled", graph="vision_encoder", tile_grid=tile_grid, tiles=tiles, patch_grid=(4, 8), token_grid=token_grid,
        patch_size=7, input_shape=(tiles, 3, 28, 56), visual_tokens=tiles * cells, handed_over=tiles * cells,
    )  # fmt: skip


def loops(profile, axes, newline):
    """Rows of the grid rule, one after the other: (token id, visual token, position on each axis)."""
    (tile_rows, tile_columns), (rows, columns) = profile.tile_grid, profile.token_grid
    found, count = [], 0
    for row in range(tile_rows * rows):
        for column in range(tile_columns * columns + (newline is not None)):
            last = column == tile_columns * columns
            tile = (row // rows) * tile_columns + column // columns
            visual = NONE if last else tile * rows * columns + (row % rows) * columns + column % columns
            place = [count] if axes == 1 else [0] * (axes - 2) + [row, column]
            found.append((newline if last else NONE, visual, place))
            count += 1
    return found


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("newline", [None, NEWLINE])
@pytest.mark.parametrize("profile", [tiled(), tiled((1, 1), (3, 2)), tiled((1, 2), (2, 2))])
def test_the_grid_rule_equals_plain_loops(profile, newline, axes):
    numbers = {} if newline is None else {"newline": newline}
    record = LayoutRecord(rule="grid", numbers=numbers, axes=axes)
    block = layouts.get("grid").block(profile, (100, 50), record)
    want = loops(profile, axes, newline)

    assert block.ids.tolist() == [row[0] for row in want]
    assert block.visual.tolist() == [row[1] for row in want]
    assert block.offsets.T.tolist() == [row[2] for row in want]
    assert sorted(set(block.visual.tolist()) - {NONE}) == list(range(profile.visual_tokens))
    assert block.span > block.offsets.max()


def test_the_tiles_of_the_grid_rule_are_the_parts_of_the_image_that_it_says():
    profile, rule = tiled(), layouts.get("grid")
    y, x = np.mgrid[0:100, 0:180]
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    cut = rule.cut(picture, profile, LayoutRecord(rule="grid"), Image.Resampling.BILINEAR)

    assert len(cut) == profile.tiles
    for image, tile in zip(cut, rule.tiles(picture.size, profile), strict=True):
        left, top, right, bottom = tile.box
        red, green = np.asarray(image)[..., :2].mean((0, 1))
        assert image.size == tile.size == (56, 28)
        assert red == pytest.approx((left + right - 1) / 2, abs=1)
        assert green == pytest.approx((top + bottom - 1) / 2, abs=1)


def test_the_square_rule_counts_a_cls_token_too():
    block = layouts.get("square").block(
        square(112, (8, 8), aside=1, patch_size=14), (9, 9), LayoutRecord(rule="square")
    )

    assert block.visual.tolist() == list(range(65))
    assert block.offsets.tolist() == [list(range(65))]
    assert (block.span, block.runs) == (65, [range(65)])


def interleaved():
    """2×2 cells, after each row of them a text token: what SmolVLM's and LLaVA-NeXT's prompts are like."""
    record = LayoutRecord(rule="grid", numbers={"newline": NEWLINE})
    return layouts.get("grid").block(tiled((1, 1), (2, 2)), (9, 9), record)


def test_what_is_left_stands_where_it_stood_between_all_text_tokens():
    kept = interleaved().kept(np.array([1, 2]))

    assert kept.ids.tolist() == [NONE, NEWLINE, NONE, NEWLINE]
    assert kept.visual.tolist() == [0, NONE, 1, NONE]
    assert kept.offsets.tolist() == [[1, 2, 3, 5]]
    assert kept.runs == [range(1), NEWLINE, range(2, 3), NEWLINE]
    assert ORIGINAL.place(kept) is kept
    counted = COMPACT.place(kept)
    assert (counted.offsets.tolist(), counted.span) == ([[0, 1, 2, 3]], 4)


def layout_of(profile, positions="original", axes=1, **numbers):
    record = LayoutRecord(rule="grid", numbers=numbers, axes=axes)
    return Layout(record, [profile], positions, IMAGE)


def encoded(layout, size, keep, digest="a"):
    index = np.asarray(keep)
    return ImageFeatures(
        np.zeros((len(index), 2), np.float32), index, digest, size, layout.place(size, index)
    )


ROWS, COLUMNS = [0, 1, 1, 2, 2, 4, 4, 5, 5, 7, 8], [0, 2, 3, 1, 3, 5, 6, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("positions", "want", "then"),
    [("original", [ROWS, COLUMNS], 9), ("compact", [[*range(11)]] * 2, 11)],
)
def test_a_prompt_with_two_images_on_two_axes(positions, want, then):
    """Two of 2×2 cells kept, a text token after each row: an image begins where the text left off, and takes the longer side, 3."""
    layout = layout_of(tiled((1, 1), (2, 2)), positions, axes=2, newline=NEWLINE)
    images = [encoded(layout, (9, 9), [1, 2], digest) for digest in "ab"]
    got = layout.lay_out([5, IMAGE, IMAGE, 6, 7], images)

    assert got.ids.tolist() == [5, NONE, 13, NONE, 13, NONE, 13, NONE, 13, 6, 7]
    assert got.visual.tolist() == [NONE, 0, NONE, 1, NONE, 2, NONE, 3, NONE, NONE, NONE]
    assert got.keys == [5, ("a", 0), 13, ("a", 1), 13, ("b", 0), 13, ("b", 1), 13, 6, 7]
    assert got.positions.tolist() == want
    assert got.next_position == then


def test_rows_and_span_are_known_before_an_image_is_encoded():
    profile = tiled((1, 1), (2, 2)).model_copy(update={"handed_over": 3})
    for positions, span in (("original", 6), ("compact", 5)):
        layout = layout_of(profile, positions, newline=NEWLINE)
        image = encoded(layout, (9, 9), [0, 2, 3])

        assert layout.rows((9, 9)) == len(image.block.ids) == 5
        assert layout.span((9, 9)) == image.span == span


def test_the_whole_prompt_is_the_one_without_a_reduction():
    layout = layout_of(tiled((1, 1), (1, 3)), newline=NEWLINE)

    assert layout.whole_ids([5, IMAGE, 6], [(9, 9)]) == [5, IMAGE, IMAGE, IMAGE, NEWLINE, 6]


def test_a_prompt_without_room_is_refused_by_rows_and_by_positions():
    manifest = manifest_of(keep=16)
    layout = Layout.of(manifest)
    longest = manifest.decoder.context - 65  # the image takes 64 positions, and one is left for the answer

    assert require_room(manifest, layout, [5] * longest + [IMAGE], [(9, 9)]) == longest + 16
    with pytest.raises(InputError, match="takes 2048 positions, 16 tokens an image; the model has 2048"):
        require_room(manifest, layout, [5] * (longest + 1) + [IMAGE], [(9, 9)])


def test_positions_as_a_graph_takes_them():
    one, two = np.arange(3)[None], np.stack([np.arange(3), np.arange(3) + 5])

    assert as_input(one).shape == (1, 3)
    assert as_input(two).shape == (2, 1, 3)
    assert following(np.array([[4, 9], [4, 9]]), 2).tolist() == [[10, 11], [10, 11]]


def test_a_rule_that_there_is_not_is_refused():
    manifest = manifest_of().model_copy(update={"layout": LayoutRecord(rule="spiral")})

    with pytest.raises(
        BundleError, match="by the rule 'spiral'; this fico_export knows anyres, grid, rowcol, square, tiles"
    ):
        Layout.of(manifest)


def test_a_text_token_that_the_model_has_not_is_refused():
    record = LayoutRecord(rule="grid", numbers={"newline": 512})
    manifest = manifest_of().model_copy(update={"layout": record})

    with pytest.raises(BundleError, match="by the token 512, and its decoder has 512"):
        Layout.of(manifest)


@pytest.mark.parametrize("version", [3, 4])
def test_a_manifest_of_an_earlier_schema_has_one_profile(version):
    new = manifest_of(keep=16)
    old = json.loads(new.model_dump_json()) | {"schema_version": version, "image_size": 112}
    for key in ("profiles", "layout", "request"):
        del old[key]
    old["reduction"] |= {"grid": [8, 8], "kept_aside": 0}
    read = Manifest.parse(json.dumps(old), "manifest.json")

    assert read.profiles == new.profiles
    assert read.layout == new.layout


@pytest.mark.parametrize(
    ("rule", "change", "words"),
    [
        ("square", {"tiles": 2}, "it has 2 tiles, not one"),
        ("grid", {"visual_tokens": 65}, "no part of its grid"),
        ("grid", {"tiles": 2}, "no part of its grid"),
    ],
)
def test_a_profile_that_a_rule_cannot_show_is_refused(rule, change, words):
    profile = square(112, (8, 8), aside=0, patch_size=14).model_copy(update=change)
    manifest = manifest_of().model_copy(update={"profiles": [profile], "layout": LayoutRecord(rule=rule)})

    with pytest.raises(BundleError, match=words):
        Layout.of(manifest)


AROUND = {"start": [5], "end": [6]}
ROWCOL = {"tile": [5], "global": [6], "end": [5]}


@pytest.mark.parametrize(
    ("record", "change", "words"),
    [
        ({"rule": "tiles", "texts": AROUND}, {"tiles": 2}, "not one, nor a grid and a thumbnail"),
        ({"rule": "tiles", "texts": AROUND}, {"tile_grid": (2, 1)}, "not one, nor a grid and a thumbnail"),
        ({"rule": "tiles", "texts": AROUND}, {"visual_tokens": 65}, "no part of a grid"),
        ({"rule": "tiles", "texts": ROWCOL}, {}, "its texts are not start and end"),
        ({"rule": "tiles", "texts": AROUND, "numbers": {"longest": 3}}, {}, "there is no number longest"),
        ({"rule": "rowcol", "texts": ROWCOL}, {}, "its numbers are not longest alone"),
        ({"rule": "rowcol", "texts": ROWCOL, "numbers": {"longest": 0}}, {}, "of 1 … 8192"),
        ({"rule": "rowcol", "texts": ROWCOL, "numbers": {"longest": 8193}}, {}, "of 1 … 8192"),
        ({"rule": "rowcol", "texts": AROUND, "numbers": {"longest": 64}}, {}, "there is no text global"),
        (
            {"rule": "rowcol", "texts": ROWCOL, "numbers": {"longest": 64}},
            {"tile_grid": (1, 2), "tiles": 3, "visual_tokens": 192},
            "there is no text blank",
        ),
        ({"rule": "rowcol", "texts": ROWCOL | {"end": [512]}, "numbers": {"longest": 64}}, {}, "by the token 512"),
    ],
)  # fmt: skip
def test_equal_tiles_that_a_rule_cannot_show_are_refused(record, change, words):
    profile = square(112, (8, 8), aside=0, patch_size=14).model_copy(update=change)
    given = {"profiles": [profile], "layout": LayoutRecord(**record)}

    with pytest.raises(BundleError, match=words):
        Layout.of(manifest_of().model_copy(update=given))


def test_a_text_of_no_tokens_is_none():
    record = LayoutRecord(rule="tiles", texts={"start": [], "end": [6]})
    ids = Layout.of(manifest_of(keep=64).model_copy(update={"layout": record})).whole_ids([3], [(9, 9)])

    assert ids == [3] * 64 + [6]
    assert all(type(token) is int for token in ids)


@pytest.mark.parametrize("rule", ["square", "grid", "anyres"])
def test_a_text_of_a_rule_that_reads_none_is_refused(rule):
    profile = square(112, (8, 8), aside=0, patch_size=14)
    record = LayoutRecord(rule=rule, texts={"start": [5]})

    assert layouts.get(rule).problem(profile, record) == "there is no text start"


@pytest.mark.parametrize("rule", ["square", "grid"])
def test_a_number_that_a_rule_does_not_know_is_refused(rule):
    record = LayoutRecord(rule=rule, numbers={"newlines": 5})

    with pytest.raises(BundleError, match="there is no number newlines"):
        Layout.of(manifest_of().model_copy(update={"layout": record}))


def test_text_between_visual_tokens_stays_where_the_decoder_reduces():
    record = LayoutRecord(rule="grid", numbers={"newline": 5})
    layout = Layout.of(manifest_of(keep=16, handed_over=64).model_copy(update={"layout": record}))
    laid_out = layout.lay_out([7, 8], [])
    assert laid_out.visual_rows.tolist() == []

    block = layout.place((1, 1), np.arange(64))
    shown = ImageFeatures(np.zeros((64, 4)), np.arange(64), "digest", (1, 1), block)
    laid_out = layout.lay_out([7, layout._image_id, 8], [shown])
    assert laid_out.visual_rows.tolist() == [1 + row for row in range(72) if row % 9 < 8]
    assert (laid_out.visual[laid_out.visual_rows] == np.arange(64)).all()


def test_a_block_without_visual_tokens_is_text():
    block = Block(np.array([5, 6]), np.array([NONE, NONE]), np.arange(2)[None], 2)

    assert block.runs == [5, 6]
    assert block.kept(np.zeros(0, np.int64)).ids.tolist() == [5, 6]
