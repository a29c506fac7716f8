"""The towers of Qwen-VL against transformers' helpers, and the cues of cells against NumPy loops."""

import numpy as np
import pytest
import torch
from anyres_checkpoints import picture
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from fico_export.models.towers.qwen import Windows
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.stages.select import take
from fico_export.runtime.inputs.preprocess import ImageProcessor

SIDE, WINDOW = 2, 2  # patches on a side of a cell, cells on a side of a window
# In cells: whole windows of Qwen2.5-VL, ragged ones below, at the right and at both, and a single row.
GRIDS = [(4, 4), (2, 6), (3, 4), (4, 5), (5, 3), (1, 7)]


def encoder(qwen, cells, method="none", keep=None, settings=None):
    """The vision graph's module of images of so many cells."""
    model = qwen.shaped(qwen.kind.resolution(*cells), method=method)
    plan = model.plan(method, keep, settings or {})
    with torch.device("meta"):
        module = model.vision(plan, torch.float32, profile=model.profile)
    return model.with_weights(module)


def shown(qwen, cells, seed=0):
    """[1, 3, H, W] of an image, and the image."""
    image = picture(*qwen.kind.size(*cells), seed)
    return torch.from_numpy(ImageProcessor.from_config(qwen.model.files().preprocessor)(image)), image


def grid_of(cells):
    return torch.tensor([[1, cells[0] * SIDE, cells[1] * SIDE]])


@pytest.mark.parametrize("cells", GRIDS)
def test_features_and_planes_of_every_grid_are_those_of_transformers(qwen, cells):
    pixels, image = shown(qwen, cells)
    area = image.width * image.height
    features, planes = qwen.theirs.features(image, size={"shortest_edge": area, "longest_edge": area})
    with torch.inference_mode():
        mine, index, *more = encoder(qwen, cells)(pixels)

    np.testing.assert_allclose(mine[0], features, atol=2e-5)
    assert index[0].tolist() == list(range(cells[0] * cells[1]))
    assert len(more) == (planes is not None)
    if planes is not None:
        np.testing.assert_allclose(more[0][0], planes, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "keep", "settings"), [("none", None, {}), ("divprune", 7, {}), ("tome", 11, {})]
)
@pytest.mark.parametrize("cells", [(4, 4), (3, 5)])
def test_two_images_at_once_become_what_each_becomes_alone(qwen, cells, method, keep, settings):
    images = torch.cat([shown(qwen, cells, seed)[0] for seed in range(2)])
    module = encoder(qwen, cells, method, keep, settings)
    with torch.inference_mode():
        both = module(images)
        alone = [module(image[None]) for image in images]

    for got, *each in zip(both, *alone, strict=True):
        torch.testing.assert_close(got, torch.cat(each), atol=2e-6, rtol=1e-5)
    assert (both[0][0] - both[0][1]).abs().max() > 0.1


def test_windows_are_cut_as_transformers_orders_them_and_joined_again():
    rows, columns, channels = 2, 3, 5
    cells = (rows * WINDOW, columns * WINDOW)
    count = cells[0] * cells[1]
    x = torch.arange(2.0 * count * SIDE**2 * channels).reshape(2, -1, channels)
    windows = Windows(rows, columns, WINDOW)
    order, ends = get_vision_window_index(grid_of(cells), SIDE, WINDOW * SIDE * 14, 14)
    expected = x.unflatten(1, (count, -1))[:, order].flatten(1, 2)

    assert windows.cut(x).shape == (2 * rows * columns, WINDOW**2 * SIDE**2, channels)
    torch.testing.assert_close(windows.cut(x).reshape(2, -1, channels), expected, rtol=0, atol=0)
    assert ends.diff().tolist() == [WINDOW**2 * SIDE**2] * rows * columns
    torch.testing.assert_close(windows.joined(windows.cut(x)), x, rtol=0, atol=0)


@pytest.mark.parametrize("cells", GRIDS)
def test_a_row_attends_to_its_window_alone(qwens, cells):
    """Whole windows are cut out, of ragged ones a mask says which rows see each other."""
    tower = encoder(qwens("qwen2_5_vl"), cells).vision_tower
    order, ends = get_vision_window_index(grid_of(cells), SIDE, WINDOW * SIDE * 14, 14)
    window = torch.zeros(cells[0] * cells[1], dtype=torch.int64)
    for number, (start, end) in enumerate(zip(ends[:-1] // SIDE**2, ends[1:] // SIDE**2, strict=True)):
        window[order[start:end]] = number
    window = window.repeat_interleave(SIDE**2)
    seen = tower.around(None).windowed

    whole = cells[0] % WINDOW == 0 and cells[1] % WINDOW == 0
    assert (seen.windows is not None) == whole
    if not whole:
        assert torch.equal(seen.allowed[0, 0], window[:, None] == window)
    live = torch.tensor([[0, 2, 3, cells[0] * cells[1] - 1]])
    of_live = window.unflatten(0, (-1, SIDE**2))[live[0]].flatten()
    assert torch.equal(tower.around(live).windowed.allowed[0, 0], of_live[:, None] == of_live)
    assert [layer.windowed for layer in tower.encoder.layers] == [True, False, True, False]


@pytest.mark.parametrize("cells", GRIDS)
def test_rotary_angles_are_those_of_transformers(qwen, cells):
    tower = encoder(qwen, cells).vision_tower
    places = get_vision_position_ids(grid_of(cells), SIDE)
    cos, sin = qwen.theirs.model.model.visual.rotary_pos_emb(torch.zeros(1), places)
    half = cos.shape[-1] // 2
    around, live = tower.around(None), torch.tensor([[1, 3, cells[0] * cells[1] - 1]])
    some = tower.around(live).full

    for mine, theirs, of_live in ((around.full.cos, cos, some.cos), (around.full.sin, sin, some.sin)):
        torch.testing.assert_close(mine[0], theirs[:, :half], rtol=0, atol=0)
        of_cells = theirs[:, :half].unflatten(0, (-1, SIDE**2))
        torch.testing.assert_close(of_live[0], of_cells[live[0]].flatten(0, 1), rtol=0, atol=0)
    if windows := around.windowed.windows:
        torch.testing.assert_close(windows.joined(around.windowed.cos), around.full.cos, rtol=0, atol=0)


@pytest.mark.parametrize("cells", [*GRIDS, (9, 2), (3, 3)])  # more patches than the table has, and as many
def test_the_table_of_positions_is_resampled_as_by_transformers(qwens, cells):
    qwen = qwens("qwen3_vl")
    embeddings = encoder(qwen, cells).vision_tower.embeddings
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_of(cells), 6, mode="bilinear", align_corners=True, spatial_merge_size=SIDE
    )
    table = qwen.theirs.model.model.visual.pos_embed.weight.detach()

    torch.testing.assert_close(embeddings.positions(), (table[indices] * weights[..., None]).sum(1))


CELL, HEADS, CHANNELS = 4, 2, 6


@pytest.fixture(scope="module")
def cues():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(2, 5 * CELL, CHANNELS, generator=generator) for _ in range(2))
    positions = torch.tensor([[0, 1, 2, 4, 5], [0, 2, 3, 4, 5]])
    return Cues((2, 3), positions, queries, keys, heads=HEADS, cell=CELL)


def test_cues_of_cells_are_the_means_of_their_patches(cues):
    size = CHANNELS // HEADS
    for image in range(2):
        queries, keys = (part[image].double().numpy() for part in (cues.queries, cues.keys))
        n = len(queries)
        scaled, attended = np.zeros((n, n)), np.zeros((n, n))
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = queries[:, part] @ keys[:, part].T / size**0.5
            scaled += scores / HEADS
            attended += np.exp(scores) / np.exp(scores).sum(1, keepdims=True) / HEADS
        expected = np.zeros((2, 5, 5))
        received, mean_keys = np.zeros(5), np.zeros((5, size))
        for i in range(5):
            for a in range(CELL):
                received[i] += attended[:, i * CELL + a].mean() / CELL
                mean_keys[i] += keys[i * CELL + a].reshape(HEADS, size).mean(0) / CELL
                for j in range(5):
                    for b in range(CELL):
                        expected[:, i, j] += [
                            part[i * CELL + a, j * CELL + b] / CELL**2 for part in (scaled, attended)
                        ]

        np.testing.assert_allclose(cues.logits()[image], expected[0], atol=1e-6)
        np.testing.assert_allclose(cues.attention()[image], expected[1], atol=1e-6)
        np.testing.assert_allclose(cues.received()[image], received, atol=1e-6)
        np.testing.assert_allclose(cues.cls_attention()[image], received, atol=1e-6)  # there is no CLS token
        np.testing.assert_allclose(cues.mean_keys()[image], mean_keys, atol=1e-6)


def test_cells_that_are_left_take_their_patches_along(cues):
    indices = torch.tensor([[0, 3], [2, 4]])
    left = cues.kept(indices)

    assert left.positions.tolist() == [[0, 4], [3, 5]]
    for part, kept in ((cues.queries, left.queries), (cues.keys, left.keys)):
        for image in range(2):
            rows = [cell * CELL + patch for cell in indices[image].tolist() for patch in range(CELL)]
            assert torch.equal(kept[image], part[image, rows])
    torch.testing.assert_close(left.mean_keys(), take(cues.mean_keys(), indices))
