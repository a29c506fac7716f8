"""What transformers' modules make of an image and of a prompt when tokens are merged in the tower, or dropped in the decoder."""

from contextlib import contextmanager

import numpy as np
import torch
from reference import merging
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

HEADS, PATCHES, SIDE, WINDOW = 4, 4, 2, 2


def tome(theirs, image, keep):
    """(features [K, D], planes [L, K, D] or None, kept index [K]) of an image whose cells are merged evenly over all layers.

    Planes of earlier layers are merged with the cells that they are of, by the same weights: as more channels of theirs.
    """
    fed, visual = theirs.processor.image_processor(image, return_tensors="pt"), theirs.model.model.visual
    grid = fed["image_grid_thw"]
    columns, deep = int(grid[0, 2]) // SIDE, getattr(visual, "deepstack_visual_indexes", [])
    with torch.no_grad():
        x = visual.patch_embed(fed["pixel_values"])
        if deep:
            indices, weights = get_vision_interpolation_indices_and_weights(grid, 6, "bilinear", True, SIDE)
            x = x + (visual.pos_embed.weight[indices] * weights[..., None]).sum(1)
        angles = visual.rotary_pos_emb(x, get_vision_position_ids(grid, SIDE))
        cells = np.arange(len(x) // PATCHES)
        drops, more = divmod(len(cells) - keep, len(visual.blocks))
        sizes, planes = np.ones(len(cells)), []
        for number, block in enumerate(visual.blocks):
            rows = (cells[:, None] * PATCHES + np.arange(PATCHES)).ravel()
            window = cells // columns // WINDOW * columns + cells % columns // WINDOW
            windowed = not deep and number not in visual.fullatt_block_indexes
            within = np.repeat(window if windowed else 0 * window, PATCHES)
            normed = block.norm1(x)
            parts = block.attn.qkv(normed).reshape(len(x), 3, HEADS, -1).permute(1, 0, 2, 3)
            queries, keys = apply_rotary_pos_emb_vision(parts[0], parts[1], *(part[rows] for part in angles))
            scores = torch.einsum("ihd,jhd->hij", queries, keys) * queries.shape[-1] ** -0.5
            scores = scores + torch.from_numpy(np.log(np.repeat(sizes, PATCHES))).float()
            scores[:, within[:, None] != within] = -torch.inf
            attended = torch.einsum("hij,jhd->ihd", scores.softmax(-1), parts[2])
            x = x + block.attn.proj(attended.flatten(1))
            together = torch.cat([x.reshape(len(cells), -1), *planes], dim=1).numpy()
            mean_keys = keys.flatten(1).unflatten(0, (-1, PATCHES)).mean(1).numpy()
            left = len(cells) - drops - (number < more)
            merged, index, sizes = merging.tome_layer(together, mean_keys, sizes, HEADS, left, False)
            merged, cells = torch.from_numpy(merged).float(), cells[index]
            x, *planes = merged.split([PATCHES * x.shape[1], *(plane.shape[1] for plane in planes)], dim=1)
            x = x.reshape(PATCHES * len(cells), -1)
            x = x + block.mlp(block.norm2(x))
            if number in deep:
                planes.append(visual.deepstack_merger_list[list(deep).index(number)](x))
        return visual.merger(x).numpy(), np.stack([np.asarray(p) for p in planes]) if planes else None, cells


def fastv(theirs, embeds, positions, planes, visual, layer, keep):
    """(logits [V] after the last row, kept [K]) of a prompt: after `layer` layers only K of the visual rows [N] are left.

    Those that its last row attends to most, averaged over heads. With kept indices for `keep`, those: then rows may follow.
    """
    language = theirs.model.model.language_model
    x, places = torch.from_numpy(embeds)[None], torch.from_numpy(positions)[:, None]
    kept = keep
    with torch.no_grad(), _weights_shown(language) as attention:
        for number, block in enumerate(language.layers):
            causal = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
            x = block(x, position_embeddings=language.rotary_emb(x, places), attention_mask=causal)
            if number == layer - 1:
                if isinstance(keep, int):
                    received = attention[-1][0, :, -1].mean(0)[visual].numpy()
                    kept = np.sort(np.argsort(-received, kind="stable")[:keep])
                stays = np.ones(x.shape[1], bool)
                stays[np.delete(visual, kept)] = False
                x, places = x[:, stays], places[:, :, stays]
                planes = None if planes is None else planes[:, stays]
            if planes is not None and number < len(planes):
                x = x + torch.from_numpy(planes[number])
        return theirs.model.lm_head(language.norm(x))[0, -1].numpy(), kept


@contextmanager
def _weights_shown(language):
    """The attention [1, H, S, S] of each layer that runs in the block, in their order."""
    found, before = [], language.config._attn_implementation
    language.config._attn_implementation = "eager"
    hooks = [
        layer.self_attn.register_forward_hook(lambda module, given, made: found.append(made[1]))
        for layer in language.layers
    ]
    try:
        yield found
    finally:
        language.config._attn_implementation = before
        for hook in hooks:
            hook.remove()
