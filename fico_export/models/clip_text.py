"""The text tower of a CLIP model: the graph that a prompt goes through where a method compares it with the image.

| tensor | shape | dtype |
|---|---|---|
| input_ids (in) | [B, L] | int64, L = 77: begin, at most 75 tokens, end, and anything to fill up the row |
| clip_text (out) | [B, P] | float32, of unit length |

Source: Radford et al., arXiv 2103.00020; checkpoints as transformers saves a `CLIPModel`. Parameter names are theirs, after
`clip.`, under which they go beside LLaVA's. Letters: B batch, L rows, C channels, P channels of the joint space.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig

from fico_export import models, tokenizer
from fico_export.errors import CheckpointError, ConfigError, unknown_name
from fico_export.models.layers import LayerNorm
from fico_export.models.parts import config_check
from fico_export.models.ports import GraphModule, Port, Ports
from fico_export.models.towers.clip import ClipEncoder, ClipLayer, StackConfig
from fico_export.models.vision import ClipSpace
from fico_export.models.weights import Weights, read_json, read_text
from fico_export.reducers.stages.filter import normalize
from fico_export.reducers.stages.select import take

PREFIX = "clip."
ALIASES = {"clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336"}
_LARGEST_ID = 2  # the eos_token_id of older configs: wrong, and read as "the largest id of the row"
_CONVERT = (
    'convert them on a machine you trust: `python -c "from transformers import CLIPModel as M, AutoTokenizer as T; '
    "M.from_pretrained('IN').save_pretrained('OUT'); T.from_pretrained('IN').save_pretrained('OUT')\"`, "
    "and give --clip-text OUT"
)


@dataclass(frozen=True)
class TextConfig(StackConfig):
    """Shape of a text tower; `context` is L, `projection` P."""

    context: int
    vocab_size: int
    projection: int
    eos_id: int


class TextEmbeddings(nn.Module):
    """Tokens and their learned positions."""

    def __init__(self, config: TextConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.position_embedding = nn.Embedding(config.context, config.hidden_size, dtype=dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, L] → [B, L, C]."""
        return self.token_embedding(input_ids) + self.position_embedding.weight


class TextModel(nn.Module):
    """Embeddings, causal layers and the last norm, under the checkpoints' names."""

    def __init__(self, config: TextConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config, dtype)
        self.encoder = ClipEncoder(config, dtype, ahead=False)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, L] → [B, L, C]."""
        hidden = self.embeddings(input_ids)
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        causal = place[None, :] <= place[:, None]
        for layer in self.encoder.layers:
            assert isinstance(layer, ClipLayer)
            hidden = layer.feed_forward(layer.attend(hidden, allowed=causal)[0])
        return self.final_layer_norm(hidden)


class TextTower(nn.Module):
    """The text model and the projection of what it says at the end of the text."""

    def __init__(self, config: TextConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.eos_id = config.eos_id
        self.text_model = TextModel(config, dtype)
        self.text_projection = nn.Linear(config.hidden_size, config.projection, bias=False, dtype=dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, L] → [B, P], not of unit length."""
        ids = input_ids.to(torch.float32)
        ends = ids == (ids.amax(-1, keepdim=True) if self.eos_id == _LARGEST_ID else self.eos_id)
        # Distinct keys, the largest at the first end: what fills up the row may be ends too.
        place = torch.arange(ids.shape[1], 0, -1, dtype=torch.float32, device=ids.device)
        first = torch.where(ends, place, 0.0).argmax(-1, keepdim=True)
        return self.text_projection(take(self.text_model(input_ids), first)[:, 0])


class ClipText(GraphModule):
    """The graph."""

    def __init__(self, config: TextConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.clip = TextTower(config, dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, L] → [B, P]."""
        return normalize(self.clip(input_ids).to(torch.float32))

    def ports(self) -> Ports:
        """As in the table above, for one prompt."""
        text = Port("clip_text", (1, self.config.projection), torch.float32)
        return Ports((Port("input_ids", (1, self.config.context)),), (text,))


@dataclass(frozen=True)
class Clip:
    """A CLIP checkpoint that was read and found whole.

    Attributes:
        source: alias, hub id or absolute folder, as it was named.
        folder: where it lies.
        revision: commit of the hub repository, or None for a plain folder.
        checkpoint: its tensors.
        text: shape of its text tower.
        vision_size: channels of its vision tower.
        vision_eps: of that tower's last norm.
        tokenizer: text of tokenizer.json.
    """

    source: str
    folder: Path
    revision: str | None
    checkpoint: Weights
    text: TextConfig
    vision_size: int
    vision_eps: float
    tokenizer: str

    def weights(self) -> dict[str, int]:
        """Size in bytes of each file of weights, as of a `Vlm`."""
        return {file.name: file.stat().st_size for file in self.checkpoint.files}

    def text_graph(self, dtype: torch.dtype) -> ClipText:
        """The text graph's module, parameters uninitialised."""
        return ClipText(self.text, dtype)

    def space(self, dtype: torch.dtype) -> ClipSpace:
        """The vision graph's way to the joint space, parameters uninitialised."""
        return ClipSpace(self.vision_size, self.text.projection, self.vision_eps, dtype)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that the graphs read, by its name after `clip.`."""
        with torch.device("meta"):
            parts = (self.text_graph(torch.float32).clip, self.space(torch.float32))
        return {name: tuple(p.shape) for part in parts for name, p in part.named_parameters()}


def open_clip(name: str, revision: str | None = None) -> Clip:
    """The CLIP model named by an alias, a hub id, or its folder, every tensor found and of the right shape.

    Raises:
        CheckpointError: no such model, no CLIP checkpoint, or a damaged one.
    """
    if name not in ALIASES and "/" not in name and not Path(name).exists():
        raise unknown_name("CLIP model", name, ALIASES)
    with _for_clip_text():
        folder, found = models.find(ALIASES.get(name, name), revision)
        source = str(folder) if Path(name).expanduser().is_dir() else name
        return _load(folder, found, source)


@contextmanager
def _for_clip_text() -> Iterator[None]:
    """Says which of the two models an error is about."""
    try:
        yield
    except ConfigError as error:
        fix = error.fix.replace("--model", "--clip-text")
        raise CheckpointError(f"--clip-text: {error.what}", fix=fix) from error


def _load(folder: Path, revision: str | None, source: str) -> Clip:
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != "clip":
        raise CheckpointError(
            f"model_type {raw.get('model_type')!r} in {folder / 'config.json'} is no CLIP model's",
            fix=f"give the CLIP model that the vision tower comes from, such as {next(iter(ALIASES))}",
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no .safetensors; pickled weights are not read", fix=_CONVERT)
    config_check.check_clip(raw)
    try:
        config = CLIPConfig.from_dict(raw)
        config_check.check_fit(config.to_dict())
        text, vision = config.text_config, config.vision_config
        clip = Clip(
            source=source,
            folder=folder,
            revision=revision,
            checkpoint=Weights(folder),
            text=TextConfig(
                hidden_size=text.hidden_size,
                intermediate_size=text.intermediate_size,
                heads=text.num_attention_heads,
                activation=text.hidden_act,
                norm_eps=text.layer_norm_eps,
                layers=text.num_hidden_layers,
                context=text.max_position_embeddings,
                vocab_size=text.vocab_size,
                projection=config.projection_dim,
                eos_id=text.eos_token_id,
            ),
            vision_size=vision.hidden_size,
            vision_eps=vision.layer_norm_eps,
            tokenizer=read_text(folder / "tokenizer.json"),
        )
        shapes = clip.shapes()
    except ConfigError:
        raise
    except Exception as error:  # whatever transformers or a module raises over a value of the config
        raise CheckpointError(
            f"config.json describes no CLIP model: {type(error).__name__}: {' '.join(str(error).split())}",
            fix=config_check.FIX,
        ) from error
    clip.checkpoint.check(shapes, _unread)
    _check_tokenizer(clip)
    return clip


def _unread(name: str) -> bool:
    """Whether a tensor is of what a prompt does not go through: the vision tower, and the scale that CLIP was trained with."""
    return name == "logit_scale" or name.startswith("vision_model.")


def _check_tokenizer(clip: Clip) -> None:
    """The runtime frames each piece of a prompt by what the tokenizer puts around an empty text."""
    fix = "use the tokenizer.json of this checkpoint"
    found = tokenizer.read(clip.tokenizer, "tokenizer.json", error=CheckpointError, fix=fix)
    frame = found.encode("", add_special_tokens=True)
    if len(frame) != 2 or max(frame) >= clip.text.vocab_size:
        raise CheckpointError(
            f"tokenizer.json puts the ids {frame} around a text, where a CLIP model of {clip.text.vocab_size} tokens "
            "has a begin and an end",
            fix="use the tokenizer.json of this checkpoint",
        )
