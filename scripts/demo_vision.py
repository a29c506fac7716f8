"""First stage of the demo's training: the vision tower learns to say, at every patch, what is there.

The labels come from the scenes' geometry. They are read off the layer that LLaVA takes its features from (-2), through
linear heads that are thrown away afterwards; the class token learns a summary of the scene at the same layer and at the
last one, so that its attention means something where reducers look at it. All 576 patches are always there.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from fico_export.demo import scenes
from fico_export.demo.questions import PLACES
from fico_export.demo.scenes import GLYPH, PITCH, SIZE, Scene

PATCH = 8
GRID = SIZE // PATCH
LOCALITY = 1.7  # how sharply the first layers look at their neighbours at the start
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Classes per patch, and the weight of their loss; -1 is a patch that the head is not asked about.
HEADS = {
    "shape": (7, 1.0),  # none, five shapes, sign
    "colour": (9, 1.0),  # none, eight colours
    "pair": (40, 1.0),
    "cell": (9, 0.3),
    "digit": (31, 1.5),  # none, digit × its place on the sign
    "background": (4, 0.3),
    "pattern": (4, 0.5),
    "same_colour": (5, 0.5),  # how many objects have this one's colour
    "same_shape": (5, 0.5),
    "objects": (5, 0.5),
}
OBJECTS_ONLY = ("pair", "cell", "same_colour", "same_shape")  # what a bare patch is not asked
COLUMNS = [
    *(n for n, _ in HEADS.values()),
    2,
]  # of the read-outs: the heads' classes, and the offset to the centre
# The words of each read-out's class, as tokens; None where there are none to say.
WORDS: list[list[str] | None] = [
    *[None, *([f"▁{shape}"] for shape in scenes.SHAPES), ["▁sign"]],
    *[None, *([f"▁{colour}"] for colour in scenes.COLOURS)],
    *[None] * 40,
    *([f"▁{word}" for word in place.split()] for place in PLACES),
    *[None, *([str(digit)] for _ in range(3) for digit in range(10))],
    *([f"▁{colour}"] for colour in scenes.BACKGROUNDS),
    *([f"▁{pattern}"] for pattern in scenes.PATTERNS),
    *[None] * 17,
]
SUMMARY = (
    40 + 13 + 4 + 4 + 4 + 5
)  # pairs, colours and shapes, background, pattern, digits on the sign, objects
_COLOURS, _BACKGROUNDS = list(scenes.COLOURS), list(scenes.BACKGROUNDS)


class Heads(nn.Module):
    """Linear read-outs of the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patches = nn.Linear(width, sum(COLUMNS))
        self.summary = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, SUMMARY)) for _ in range(2)
        )


def pixels(pictures: list[Image.Image]) -> Tensor:
    """Pictures of the model's own size as it sees them: `[B, 3, 192, 192]`, normalised."""
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    return (stacked / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def labels(scene: Scene) -> dict[str, np.ndarray]:
    """What each patch shows: `[576]` int64 per head, `offset` `[576, 2]` to the object's centre, `summary` `[SUMMARY]`."""
    canvas = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(canvas)
    for i, thing in enumerate(scene.things):
        draw.polygon(scenes.outline(thing), fill=i + 1)
    sign, digits = scene.sign, Image.new("L", (SIZE, SIZE))
    if sign:
        left, top, right, bottom = sign.box
        draw.rectangle((left, top, right - 1, bottom - 1), fill=len(scene.things) + 1)
        for i in range(len(sign.number)):
            x, y = left + 5 + PITCH * i, top + 5
            ImageDraw.Draw(digits).rectangle((x, y, x + 5 * GLYPH - 1, y + 7 * GLYPH - 1), fill=i + 1)
    what = _owner(canvas, len(scene.things) + 1)
    place = _owner(digits, 3)

    def per_thing(none: int, things: list[int], of_sign: int) -> np.ndarray:
        return np.array([none, *things, of_sign])[what]

    things = scene.things
    shape = [scenes.SHAPES.index(t.shape) for t in things]
    colour = [_COLOURS.index(t.colour) for t in things]
    pairs = [5 * c + s for c, s in zip(colour, shape, strict=True)]
    number = [int(d) for d in sign.number] if sign else []
    at = np.array([[0, 0], *([t.x, t.y] for t in things), [sign.x, sign.y] if sign else [0, 0]])
    centres = (np.mgrid[:GRID, :GRID][::-1].reshape(2, -1).T + 0.5) * PATCH
    summary = np.zeros(SUMMARY, np.float32)
    summary[[*pairs, *(40 + c for c in colour), *(48 + s for s in shape)]] = 1
    summary[53 + _BACKGROUNDS.index(scene.background)] = summary[
        57 + scenes.PATTERNS.index(scene.pattern)
    ] = 1
    summary[61 + len(number)] = summary[65 + len(things) - 1] = 1
    everywhere = np.ones(GRID * GRID, np.int64)
    return {
        "shape": per_thing(0, [1 + s for s in shape], 6),
        "colour": per_thing(0, [1 + c for c in colour], 0),
        "pair": per_thing(-1, pairs, -1),
        "cell": per_thing(-1, [t.cell for t in things], sign.cell if sign else -1),
        "digit": np.array([0, *(1 + 10 * i + d for i, d in enumerate(number)), *[0] * (3 - len(number))])[
            place
        ],
        "background": everywhere * _BACKGROUNDS.index(scene.background),
        "pattern": everywhere * scenes.PATTERNS.index(scene.pattern),
        "same_colour": per_thing(-1, [colour.count(c) - 1 for c in colour], -1),
        "same_shape": per_thing(-1, [shape.count(s) - 1 for s in shape], -1),
        "objects": everywhere * (len(things) - 1),
        "offset": np.where(what[:, None] > 0, (at[what] - centres) / 32, np.nan).astype(np.float32),
        "summary": summary,
    }


def _owner(canvas: Image.Image, n: int) -> np.ndarray:
    """The id from 1 to n that covers most of each patch, 0 where none covers a quarter: `[576]`."""
    patches = (
        np.asarray(canvas).reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    )
    share = np.stack([(patches == i).mean(1) for i in range(1, n + 1)], 1)
    return np.where(share.max(1) >= 0.25, 1 + share.argmax(1), 0)


def features(tower: CLIPVisionModel, pixel_values: Tensor) -> Tensor:
    """Hidden states of layer -2, class token included: `[B, 577, C]`, the same as transformers' `hidden_states[-2]`."""
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


def class_token(tower: CLIPVisionModel, hidden: Tensor) -> Tensor:
    """The class token after the last layer, `[B, C]`; nobody reads the patches there, so they are not computed."""
    layer, attn = tower.encoder.layers[-1], tower.encoder.layers[-1].self_attn
    x = layer.layer_norm1(hidden)

    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        split(attn.q_proj(x[:, :1])), split(attn.k_proj(x)), split(attn.v_proj(x))
    )
    token = hidden[:, :1] + attn.out_proj(mixed.transpose(1, 2).flatten(2))
    token = token + layer.mlp(layer.layer_norm2(token))
    return token[:, 0]


def batch(step: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Fresh scenes of that step: a scene is never seen twice."""
    drawn = [scenes.scene(step * size + i, "train") for i in range(size)]
    wanted = [labels(scene) for scene in drawn]
    stacked = {name: torch.from_numpy(np.stack([w[name] for w in wanted])) for name in wanted[0]}
    return pixels([scenes.render(scene) for scene in drawn]), stacked


def loss(tower: CLIPVisionModel, heads: Heads, step: int, size: int) -> tuple[Tensor, dict[str, float]]:
    """The stage's loss on that step's scenes, and the share of patches that each head gets right."""
    pixel_values, wanted = batch(step, size)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = features(tower, pixel_values)
        guesses = heads.patches(heads.norm(hidden[:, 1:])).float()
        summaries = [heads.summary[0](hidden[:, 0]), heads.summary[1](class_token(tower, hidden))]
    total, right = torch.zeros(()), {}
    columns = guesses.split(COLUMNS, dim=-1)
    for (name, (_, weight)), guess in zip(HEADS.items(), columns, strict=False):
        target = wanted[name].flatten()
        asked = target >= 0
        per_patch = F.cross_entropy(guess.flatten(0, 1), target, ignore_index=-1, reduction="none")
        # Objects and signs cover a seventh of the picture: bare patches must not outweigh them.
        worth = torch.where(target > 0, 1.0, 0.15) if name in ("shape", "colour", "digit") else asked.float()
        total = total + weight * (per_patch * worth).sum() / worth.sum().clamp(min=1)
        counted = (
            (target > 0) & (target < 6)
            if name == "shape"
            else target > 0
            if name in ("colour", "digit")
            else asked
        )
        right[name] = float((guess.flatten(0, 1).argmax(-1) == target)[counted].float().mean())
    there = ~wanted["offset"].isnan()
    total = total + 2.0 * F.smooth_l1_loss(columns[-1][there], wanted["offset"][there], beta=0.1)
    for summary in summaries:
        total = total + 2.0 * F.binary_cross_entropy_with_logits(summary.float(), wanted["summary"])
    exact = (summaries[1] > 0) == wanted["summary"].bool()
    right["summary"] = float(exact.float().mean())
    return total, right


def start(width: int, heads: int, layers: int, seed: int) -> CLIPVisionModel:
    """A fresh tower, its position table started as two-dimensional sines."""
    from transformers import CLIPVisionConfig

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=64,
        attn_implementation="sdpa",
    )
    tower = CLIPVisionModel(config)
    for name, parameter in tower.named_parameters():
        if parameter.dim() == 2 and "layers" in name:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(tower.embeddings.patch_embedding.weight, std=(3 * PATCH * PATCH) ** -0.5)
    frequencies = 1 / 20 ** (torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    waves = [
        fn(axis.reshape(-1, 1) * frequencies) for axis in (rows, columns) for fn in (torch.sin, torch.cos)
    ]
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = torch.cat(waves, 1)
        for depth, layer in enumerate(tower.encoder.layers[:-2]):
            _look_around(layer.self_attn, frequencies, reach=0.5 + 0.5 * depth)
    return tower


def _look_around(attention: nn.Module, frequencies: Tensor, reach: float) -> None:
    """Start a layer's heads looking at a patch's diagonal neighbours, each head into another quarter.

    From uniform attention over 576 patches, shapes are not found for thousands of steps. Sines turn into those of a place
    further on by a rotation: a key that is the position itself, and a query that is the rotated one, meet there.
    """
    n, pairs = len(frequencies), attention.head_dim // 4  # pairs of sine and cosine per axis in one head
    for head in range(attention.num_heads):
        first = head * attention.head_dim
        for axis in range(2):
            ahead = reach if (head >> axis) % 2 else -reach
            for i in range(pairs):
                f = (i * n) // pairs + head % (n // pairs)
                sine, cosine = 2 * n * axis + f, 2 * n * axis + n + f
                row, angle = first + 2 * (axis * pairs + i), ahead * frequencies[f]
                for matrix, turn in (
                    (attention.k_proj.weight, torch.zeros(())),
                    (attention.q_proj.weight, angle),
                ):
                    matrix[row : row + 2] *= 0.2
                    matrix[row, sine] += LOCALITY * turn.cos()
                    matrix[row, cosine] += LOCALITY * turn.sin()
                    matrix[row + 1, sine] -= LOCALITY * turn.sin()
                    matrix[row + 1, cosine] += LOCALITY * turn.cos()
