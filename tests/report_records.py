"""Manifests and profiles as bundles and `fico profile` would have them, without either."""

from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import square
from fico_export.profile.record import Machine, Measured, Run, Spread


def manifest(name="tiny", method="uniform", keep=16, *, source="demo", **reduction):
    """64 patches of 14 px, `keep` of them kept by a method at the tower's output."""
    step = {"method": method, "site": "encoder output", "before": 64, "keep": keep, "schedule": {}}
    reduced = {
        "method": method, "options": {}, "steps": [step] if keep < 64 else [], "visual_tokens": 64, "handed_over": keep,
        "keep": keep, "cached": [keep, keep], "positions": "original",
    }  # fmt: skip
    return Manifest.model_validate(
        {
            "name": name, "profiles": [square(112, (8, 8), aside=0, patch_size=14).model_copy(update={"handed_over": (reduced | reduction)["handed_over"]})],
            "layout": {"rule": "square"}, "precision": "fp32", "target": "portable",
            "model": {"model_type": "llava", "source": source, "revision": None, "weights": {"model.safetensors": 1}},
            "reduction": reduced | reduction,
            "decoder": {"layers": 2, "kv_heads": 2, "head_dim": 16, "hidden_size": 64, "vocab_size": 512, "context": 2048},
            "tokens": {"image": "<image>", "image_id": 3, "bos": "<s>", "eos": "</s>", "eos_ids": [2]},
            "opset": 18, "ir_version": 10, "graphs": {}, "tools": {"torch": "2.13"}, "created": "2026-01-01T00:00:00+00:00",
            "files": {"config.json": {"sha256": "0" * 64, "size": 2}},
        }
    )  # fmt: skip


def spread(median):
    return Spread(
        median=median, mean=median, p10=0.9 * median, p90=1.2 * median, p99=1.3 * median,
        least=0.8 * median, most=1.4 * median,
    )  # fmt: skip


def measured(of, prefill=10.0, **changes):
    """An entry of a profile for a bundle's manifest; milliseconds that add up."""
    stages = {"preprocess": 1.0, "vision": 20.0, "embed": 0.5, "prefill": prefill, "decode": 30.0}
    entry = Measured(
        bundle=f"engines/{of.name}", name=of.name, method=of.reduction.method, keep=of.reduction.keep,
        visual_tokens=of.reduction.visual_tokens, precision=of.precision, target=of.target, backend="ort-cpu",
        prompt_tokens=40, new_tokens=16, stages={name: spread(ms) for name, ms in stages.items()},
        vision_parts={"tower": 0.9, "reducer": 0.1}, ttft=spread(21.5 + prefill), tpot=spread(2.0),
        end_to_end=spread(52 + prefill), tokens_per_second=500.0, coverage=0.99, host_peak_bytes=150 * 2**20,
    )  # fmt: skip
    return entry.model_copy(update=changes)


def run(*entries, **changes):
    """A profile of these entries."""
    first = entries[0].ttft.median
    made = Run(
        created="2026-01-02T03:04:05+00:00",
        machine=Machine(
            name="bench", system="Linux", power_mode="MAXN", clocks_mhz={"cpu": (2000.0, 1990.0)}, versions={"onnxruntime": "1"}
        ),
        iterations=5, prompt="What is it?", warm_up=1, bundles=list(entries), ratios={"ttft": [entry.ttft.median / first for entry in entries]},
    )  # fmt: skip
    return made.model_copy(update=changes)
