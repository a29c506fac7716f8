"""LLaVA: a CLIP or SigLIP tower, a two-layer projector, and a Llama, Mistral or Qwen2 decoder.

Source: Liu et al., arXiv 2310.03744; checkpoints as llava-hf publishes them and as transformers 5 saves them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fico_export.bundle.manifest import Tokens
from fico_export.errors import CheckpointError, FicoError
from fico_export.models.parts.checkpoint import Checkpoint, read_json, read_text
from fico_export.models.parts.clip import ClipConfig, ClipTower
from fico_export.models.parts.config_check import Llava, check_config
from fico_export.models.parts.decoder import Decoder, DecoderConfig, EmbedTokens
from fico_export.models.parts.family import Architecture, Family, Files, Vlm
from fico_export.models.parts.siglip import SiglipTower
from fico_export.models.parts.vision import Projector, Tower, VisionEncoder
from fico_export.reducers.base.plan import Limits, Plan, make_plan
from fico_export.reducers.base.reducer import Depth, Site

_TOWERS: dict[str, type[Tower]] = {
    "clip_vision_model": ClipTower,
    "clip": ClipTower,
    "siglip_vision_model": SiglipTower,
}
_DECODERS = ("llama", "mistral", "qwen2")
_STRATEGIES = ("default", "full")
_STATIC_ROPES = ("linear", "llama3", "yarn")  # frequencies that do not depend on the length of the prompt


def load(folder: Path, revision: str | None) -> Vlm:
    """The model in a folder, every tensor found and of the right shape.

    Raises:
        CheckpointError: the config asks for something that is not supported, or tensors are missing.
    """
    raw = read_json(folder / "config.json")
    described, config = describe(raw), _parsed(raw)
    tied = bool(
        getattr(config, "tie_word_embeddings", False)
        or getattr(config.text_config, "tie_word_embeddings", False)
    )
    checkpoint = Checkpoint(
        folder, {"lm_head.weight": "language_model.embed_tokens.weight"} if tied else None
    )
    checkpoint.check(dict(described.shapes))
    return Vlm(
        **vars(described),
        folder=folder,
        revision=revision,
        checkpoint=checkpoint,
        tokens=_tokens(folder, config),
        files=lambda: _files(folder, raw),
    )


def describe(raw: dict[str, Any]) -> Architecture:
    """What the content of config.json says, without any other file.

    Raises:
        CheckpointError: it asks for something that is not supported.
    """
    config = _parsed(raw)
    with _reading_config():
        tower, feature_layers = _tower_config(config)
        decoder = _decoder_config(config)
    kind = _TOWERS[config.vision_config.model_type]
    keeps_cls = kind.cls_tokens > 0 and config.vision_feature_select_strategy == "full"

    def plan(method: str, keep: int | None, settings: dict[str, Any]) -> Plan:
        limits = Limits(
            tower.patches,
            int(keeps_cls),
            Depth(tower.total_layers, tower.layers),
            Depth(decoder.layers, decoder.layers - 1),
            has_cls=kind.cls_tokens > 0,
        )
        made = make_plan(method, keep, settings, limits)
        if made.at(Site.ENCODER_LAYER) and len(feature_layers) > 1:
            raise CheckpointError(
                f"--method {method} shortens the tower between the layers {feature_layers} that this model joins",
                fix="choose a method of another site: `fico list methods --verbose`",
            )
        return made

    def vision(made: Plan, dtype: torch.dtype) -> VisionEncoder:
        projector = Projector(
            tower.hidden_size * len(feature_layers),
            decoder.hidden_size,
            config.projector_hidden_act,
            getattr(config, "multimodal_projector_bias", True),
            dtype,
        )
        ahead = made.reads("following")
        return VisionEncoder(kind(tower, dtype, ahead=ahead), projector, made, feature_layers, keeps_cls)

    with _reading_config(), torch.device("meta"):
        parts = [
            vision(plan("none", None, {}), torch.float32),
            Decoder(decoder, torch.float32),
            EmbedTokens(decoder, torch.float32),
        ]
    return Architecture(
        model_type="llava",
        shapes={name: tuple(p.shape) for part in parts for name, p in part.named_parameters()},
        grid=tower.grid,
        image_size=tower.image_size,
        decoder_config=decoder,
        plan=plan,
        vision=vision,
    )


def _parsed(raw: dict[str, Any]) -> LlavaConfig:
    with _reading_config():
        check_config(Llava, raw)
        _check_supported(raw)
        config = LlavaConfig.from_dict(raw)
        check_config(Llava, config.to_dict())
        return config


@contextmanager
def _reading_config() -> Iterator[None]:
    """Names config.json in whatever transformers, a module or our arithmetic raises over one of its values."""
    try:
        yield
    except FicoError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"config.json describes no LLaVA model: {type(error).__name__}: {' '.join(str(error).split())}",
            fix="use the config.json that was published with this checkpoint",
        ) from error


def _check_supported(config: dict[str, Any]) -> None:
    """Refuse parts by name before transformers does, which would list all that it knows itself."""
    vision, decoder = config.get("vision_config") or {}, config.get("text_config") or {}
    tower = vision.get("model_type", "clip_vision_model")
    strategy = config.get("vision_feature_select_strategy", "default")
    for what, asked, supported in (
        ("vision tower", tower, tuple(_TOWERS)),
        ("decoder", decoder.get("model_type", _DECODERS[0]), _DECODERS),
        ("vision_feature_select_strategy", strategy, _STRATEGIES),
    ):
        if asked not in supported:
            raise CheckpointError(
                f"{what} {asked!r} is not supported", fix=f"supported: {', '.join(supported)}"
            )
    if strategy == "default" and not _TOWERS[tower].cls_tokens:
        raise CheckpointError(
            "vision_feature_select_strategy 'default' drops the first patch of a tower without a CLS token",
            fix='a model trained on all patches has "full" there in config.json',
        )


def _tower_config(config: Any) -> tuple[ClipConfig, tuple[int, ...]]:
    vision = config.vision_config
    asked = config.vision_feature_layer
    asked = asked if isinstance(asked, (list, tuple)) else [asked]
    total = vision.num_hidden_layers
    feature_layers = tuple(layer if layer >= 0 else total + 1 + layer for layer in asked)
    if not feature_layers or not all(0 <= layer <= total for layer in feature_layers):
        raise CheckpointError(
            f"vision_feature_layer {config.vision_feature_layer} is outside a tower of {total} layers",
            fix="use the config.json of this checkpoint",
        )
    return (
        ClipConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            layers=max(feature_layers),
            total_layers=total,
            heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            activation=vision.hidden_act,
            norm_eps=vision.layer_norm_eps,
        ),
        feature_layers,
    )


def _decoder_config(config: Any) -> DecoderConfig:
    text = config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    inv_freq, rope_scale = _rope(text, head_dim)
    # Qwen2 has biases on q, k and v and says so nowhere in its config.
    bias = bool(getattr(text, "attention_bias", False))
    window = (
        text.sliding_window
        if getattr(text, "use_sliding_window", True) and hasattr(text, "sliding_window")
        else None
    )
    return DecoderConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=text.vocab_size,
        # Within one window sliding attention is full attention; beyond it this decoder would differ, so it stops there.
        context=min(text.max_position_embeddings, window or text.max_position_embeddings),
        activation=text.hidden_act,
        norm_eps=text.rms_norm_eps,
        qkv_bias=bias or text.model_type == "qwen2",
        out_bias=bias,
        mlp_bias=bool(getattr(text, "mlp_bias", False)),
        inv_freq=inv_freq,
        rope_scale=rope_scale,
    )


def _rope(text: Any, head_dim: int) -> tuple[tuple[float, ...], float]:
    """Rotary frequencies [D/2] and the factor on cos and sin."""
    parameters = text.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        theta = parameters["rope_theta"]
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
        return tuple((1.0 / (theta**exponents)).tolist()), 1.0
    if kind not in _STATIC_ROPES:
        raise CheckpointError(
            f"rope_type {kind!r} is not supported", fix=f"supported: default, {', '.join(_STATIC_ROPES)}"
        )
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](text, torch.device("cpu"))
    return tuple(inv_freq.tolist()), float(scale)


def _tokens(folder: Path, config: Any) -> Tokens:
    tokenizer = read_json(_tokenizer_file(folder))
    try:
        added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"added_tokens of tokenizer.json cannot be read: {error!r}",
            fix="use the tokenizer.json of this checkpoint",
        ) from error
    image_id = config.image_token_id
    if image_id not in added:
        raise CheckpointError(
            f"image token id {image_id} of config.json is no added token of tokenizer.json",
            fix="use the tokenizer.json of this checkpoint",
        )
    settings = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id", getattr(config.text_config, "eos_token_id", None))
    return Tokens(
        image=added[image_id],
        image_id=image_id,
        bos=_text(settings.get("bos_token")),
        eos=_text(settings.get("eos_token")),
        eos_ids=eos if isinstance(eos, list) else [] if eos is None else [eos],
    )


def _files(folder: Path, config: dict[str, Any]) -> Files:
    settings = _optional_json(folder / "tokenizer_config.json")
    # transformers 5 nests the image processor in processor_config.json; older checkpoints keep it in a file of its own.
    processor = _optional_json(folder / "processor_config.json")
    preprocessor = processor.get("image_processor") or _optional_json(folder / "preprocessor_config.json")
    if not preprocessor:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, so pictures cannot be prepared",
            fix="copy preprocessor_config.json (or processor_config.json) of the checkpoint into the folder",
        )
    return Files(
        tokenizer=read_text(_tokenizer_file(folder)),
        tokenizer_config=settings,
        chat_template=_chat_template(folder, settings),
        config=config,
        generation_config=_optional_json(folder / "generation_config.json"),
        preprocessor=preprocessor,
        processor=processor,
    )


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return read_text(jinja)
    template = _optional_json(folder / "chat_template.json").get(
        "chat_template", tokenizer_config.get("chat_template")
    )
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"chat_template is a {type(template).__name__}, not one text",
            fix=f"write the template to use to {jinja}",
        )
    return template


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            fix='make it from tokenizer.model: `python -c "from transformers import AutoTokenizer as T; '
            "T.from_pretrained('DIR').save_pretrained('DIR')\"`",
        )
    return path


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _text(token: str | dict[str, str] | None) -> str | None:
    """A special token is a string, or an object that holds one."""
    return token["content"] if isinstance(token, dict) else token


FAMILY = Family(
    model_types=("llava",),
    aliases={
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
        "bakllava": "llava-hf/bakLlava-v1-hf",
        "llava-interleave-qwen-0.5b": "llava-hf/llava-interleave-qwen-0.5b-hf",
    },
    load=load,
    describe=describe,
)
