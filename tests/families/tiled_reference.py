"""What transformers' modules make of a tile whose cells are dropped or merged inside the tower, cell by cell.

Letters: N patches of a tile in raster order, n cells of p patches, C channels of the tower; `first` rows of a CLS token stand in front.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from reference import merging
from reference import reducers as reference

HEADS = 4


@dataclass
class Layer:
    """A layer of either tower; `scales` are InternVL's factors on its two branches."""

    norms: tuple[Any, Any]
    attention: Any
    out: Any
    mlp: Any
    scales: tuple[Any, Any] = (1.0, 1.0)

    def projected(self, x):
        """Queries, keys and values of rows [m, C]."""
        normed = self.norms[0](x)
        q, k, v = (getattr(self.attention, f"{name}_proj")(normed) for name in "qkv")
        return getattr(self.attention, "q_norm", _same)(q), getattr(self.attention, "k_norm", _same)(k), v

    def attended(self, x, sizes):
        """Rows [m, C] after the first half, their queries and their keys; sizes [m] are patches that a row holds."""
        queries, keys, values = self.projected(x)
        q, k, v = (rows.unflatten(-1, (HEADS, -1)) for rows in (queries, keys, values))
        scores = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
        weights = (scores + torch.from_numpy(np.log(sizes)).float()).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", weights, v).flatten(1)
        return x + self.scales[0] * self.out(mixed), queries.numpy(), keys.numpy()

    def fed_forward(self, x):
        """The second half."""
        return x + self.scales[1] * self.mlp(self.norms[1](x))


def _same(x):
    return x


@dataclass
class Tower:
    """Transformers' tower and merger with a tile's cells one after another."""

    first: int
    layers: list[Layer]
    embed: Callable[[Any], Any]
    merge: Callable[[Any], Any]

    @classmethod
    def of(cls, theirs):
        core = theirs.model.model
        if theirs.kind.family == "internvl":
            tower = core.vision_tower
            layers = [
                Layer((one.layernorm_before, one.layernorm_after), one.attention, one.attention.projection_layer, one.mlp,
                      (one.lambda_1, one.lambda_2))
                for one in tower.encoder.layer
            ]  # fmt: skip
            return cls(1, layers, tower.embeddings, core.multi_modal_projector)
        tower = core.vision_model
        layers = [
            Layer((one.layer_norm1, one.layer_norm2), one.self_attn, one.self_attn.out_proj, one.mlp)
            for one in tower.encoder.layers
        ]

        def embed(pixels):
            side = tower.embeddings.num_patches_per_side
            return tower.embeddings(pixels, torch.ones(1, side, side, dtype=torch.bool))

        def merge(cells):
            normed = tower.post_layernorm(cells.unflatten(-1, (theirs.kind.joined**2, -1)))
            return core.connector.modality_projection(normed.flatten(-2))

        return cls(0, layers, embed, merge)


def cells_of(kind):
    """[n, p] which patches, in raster order, a cell has: row by row."""
    side, joined = kind.cells * kind.joined, kind.joined
    raster = np.arange(side**2).reshape(kind.cells, joined, kind.cells, joined)
    return raster.transpose(0, 2, 1, 3).reshape(kind.a_tile, -1)


def reduced(theirs, tile, keep, reduce, layers=None):
    """(features [K, D], kept index [K]) of a tile [3, S, S] that loses cells between the halves of some layers.

    Args:
        theirs: transformers with the checkpoint.
        tile: its pixels.
        keep: K.
        reduce: (cells [n, p·C], queries [first + n, A], keys likewise, sizes [n], their index, how many to leave) → cells, which of
            them, sizes. Queries and keys are means over the patches of a cell.
        layers: those that drop; all by default. The first drop one more where the count is uneven.
    """
    kind, tower = theirs.kind, Tower.of(theirs)
    first, patches = tower.first, kind.joined**2
    active = list(range(len(tower.layers))) if layers is None else layers
    drops = dict(zip(active, reference.ficoco_v_schedule(kind.a_tile, keep, len(active)), strict=True))
    with torch.no_grad():
        rows = tower.embed(torch.from_numpy(tile)[None])[0]
        x = torch.cat([rows[:first], rows[first:][cells_of(kind).ravel()]])
        index, sizes = np.arange(kind.a_tile), np.ones(kind.a_tile)
        for number, layer in enumerate(tower.layers):
            x, *cues = layer.attended(x, np.concatenate([np.ones(first), np.repeat(sizes, patches)]))
            if drops.get(number):
                means = (
                    np.concatenate([cue[:first], cue[first:].reshape(len(index), patches, -1).mean(1)])
                    for cue in cues
                )
                cells = x[first:].reshape(len(index), -1).numpy()
                left, kept, sizes = reduce(cells, *means, sizes, index, len(index) - drops[number])
                index = index[kept]
                x = torch.cat([x[:first], torch.from_numpy(left).float().reshape(-1, x.shape[1])])
            x = layer.fed_forward(x)
        return tower.merge(x[first:].reshape(len(index), -1)).numpy(), index


def tome(theirs, tile, keep):
    """ToMe, evenly over all layers."""
    cls = theirs.kind.family == "internvl"

    def reduce(cells, queries, keys, sizes, index, left):
        return merging.tome_layer(cells, keys, sizes, HEADS, left, cls)

    return reduced(theirs, tile, keep, reduce)


def ficoco(theirs, tile, keep):
    """FiCoCo-V, evenly over all layers from the second on."""
    kind = theirs.kind

    def reduce(cells, queries, keys, sizes, index, left):
        merged, kept = reference.ficoco_v_layer(
            cells, queries, keys, heads=HEADS, positions=index, grid=(kind.cells,) * 2, drop=len(index) - left,
            cls=kind.family == "internvl",
        )  # fmt: skip
        return merged, kept, np.ones(len(kept))

    return reduced(theirs, tile, keep, reduce, layers=list(range(1, len(Tower.of(theirs).layers))))


def cls_topk(theirs, tile, keep):
    """The cells whose patches the CLS token, or without one all tokens, attend to most in the last layer."""
    tower, attention, seen = Tower.of(theirs), [], theirs.model.model
    vision = seen.vision_tower if tower.first else seen.vision_model
    before = vision.config._attn_implementation
    hook = tower.layers[-1].attention.register_forward_hook(
        lambda module, given, made: attention.append(made[1])
    )
    vision.config._attn_implementation = "eager"
    try:
        features = theirs.features(tile[None])[0]
    finally:
        vision.config._attn_implementation = before
        hook.remove()
    weights = attention[0][0].mean(0).numpy()
    received = (weights[0, 1:] if tower.first else weights.mean(0))[cells_of(theirs.kind)].mean(1)
    index = np.sort(np.argsort(-received, kind="stable")[:keep])
    return features[index], index
