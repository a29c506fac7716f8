"""Which stage of a model a layer belongs to, by the names that our exporter gives to nodes: module/Operator_number.

TensorRT joins nodes into layers: a detailed layer info lists them, otherwise the layer's own name may. A layer of nodes of
several stages is shared among them by their number, and counted as `mixed`; one that names no node of ours, or only the two
ends of a range, cannot be attributed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from fico_export.logs.records import Engine, Profile, Timed

_MODULES = (
    (r"vision_tower\.embeddings", "patch embedding"),
    (r"vision_tower\b", "vision tower"),
    (r"reduce\.", "reducer"),
    (r"multi_modal_projector\b", "projector"),
    (r"clip\.", "CLIP"),
    (r"language_model\.embed_tokens", "token embedding"),
    (r"language_model\.layers\.\d+\.(?:self_attn|input_layernorm)\b", "decoder attention"),
    (r"language_model\.layers\.\d+\.(?:mlp|post_attention_layernorm)\b", "decoder MLP"),
    (r"language_model\.layers\.\d+/", "decoder residual"),
    (r"language_model\.norm\b", "decoder head"),
    (r"lm_head\b", "decoder head"),
    (r"graph/", "rest of the graph"),
)
STAGES = tuple(dict.fromkeys(stage for _, stage in _MODULES))
_NODE = re.compile(
    r"(?<![\w/])(?<!\w\.)(?:vision_tower|reduce|multi_modal_projector|clip|language_model|lm_head|graph)[\w.]*/\w+"
)
_LAYER = re.compile(r"(?<![\w.])(vision_tower\.encoder|language_model)\.layers\.(\d{1,6})\b")


@dataclass(frozen=True)
class Attribution:
    """Milliseconds of a run by stage. `mixed_ms` of them were shared out, `inferred_ms` follow from the nodes around."""

    stages: dict[str, float]
    unattributed_ms: float
    mixed_ms: float
    inferred_ms: float

    @property
    def total_ms(self) -> float:
        """Of all layers."""
        return sum(self.stages.values()) + self.unattributed_ms

    @property
    def unattributed_share(self) -> float:
        """Of the total, 0 … 1."""
        return self.unattributed_ms / self.total_ms if self.total_ms else 0.0


def stage_of(node: str) -> str | None:
    """The stage of an ONNX node by its name; None for one that has no module's name."""
    return next((stage for pattern, stage in _MODULES if re.match(pattern, node)), None)


def nodes_of(layer: str) -> list[str]:
    """The ONNX nodes that a layer's own name gives: several, where it was made of several."""
    return _NODE.findall(layer)


def layer_numbers(names: list[str]) -> dict[str, int]:
    """Of `vision_tower.encoder` and `language_model` the highest layer that names give."""
    highest: dict[str, int] = {}
    for name in names:
        for stack, number in _LAYER.findall(name):
            highest[stack] = max(highest.get(stack, 0), int(number))
    return highest


def attribute(profile: Profile, engine: Engine | None = None) -> Attribution:
    """Share out a profile's time; with the layer info of its engine, by the nodes that this lists."""
    listed = {layer.name: layer.nodes for layer in engine.layers} if engine else {}
    found = [_stages(layer, listed.get(layer.name, ())) for layer in profile.layers]
    stages = dict.fromkeys(STAGES, 0.0)
    unattributed = mixed = inferred = 0.0
    for i, (layer, counts) in enumerate(zip(profile.layers, found, strict=True)):
        if not counts and profile.tool == "onnxruntime" and (near := _around(found, i)):
            # Its optimiser puts in nodes of its own, such as a change of layout, between those that it serves.
            counts = Counter([near])
            inferred += layer.mean_ms
        if not counts:
            unattributed += layer.mean_ms
            continue
        mixed += layer.mean_ms if len(counts) > 1 else 0.0
        for stage, count in counts.items():
            stages[stage] += layer.mean_ms * count / counts.total()
    return Attribution({s: ms for s, ms in stages.items() if ms}, unattributed, mixed, inferred)


def _stages(layer: Timed, nodes: tuple[str, ...]) -> Counter[str]:
    names = list(nodes) or nodes_of(layer.name)
    counts = Counter(stage for name in names if (stage := stage_of(name)))
    if not nodes and len(counts) > 1 and _is_range(layer.name):
        return Counter()  # its first and its last node: what lies between is not known
    return counts


def _is_range(name: str) -> bool:
    """Whether it is `{ForeignNode[first...last]}`; found step by step, as a pattern would try all beginnings with all ends."""
    at = 0
    for part in ("{ForeignNode[", "...", "]}"):
        at = name.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


def _around(found: list[Counter[str]], i: int) -> str | None:
    """The stage of the nearest attributed layers before and after, where it is one."""
    before = next((c for c in reversed(found[:i]) if c), None)
    after = next((c for c in found[i + 1 :] if c), None)
    sides = {next(iter(c)) for c in (before, after) if c}
    return sides.pop() if len(sides) == 1 else None
