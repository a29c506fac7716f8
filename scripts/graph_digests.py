"""Digests of every graph that the demo and a tiny checkpoint export to, to show that a change of the code changes no graph.

    python scripts/graph_digests.py --write tests/project/graph_digests.json    before the change
    python scripts/graph_digests.py --check tests/project/graph_digests.json    after it

A digest is of all that a runtime reads of a graph but the weights' numbers: inputs, outputs, nodes with their names, attributes
and order, constants, and the shapes of the weights. What lies between nodes is counted through: torch's names for it mean nothing.
Weights are traced as the checkpoint's own files, which no change touches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from fico_export import demo, models, reducers
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.devices import targets
from fico_export.errors import ConfigError
from fico_export.exporter import context, precision, quantize, trace, weights
from fico_export.exporter.graphs import graph_jobs
from fico_export.options import ExportOptions
from fico_export.reducers.base.reducer import Site

_TINY = {
    "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
               "image_size": 112, "patch_size": 14},
    "text": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2},
}  # fmt: skip
_KEEP = {"demo": 64, "tiny": 16}


def digest(model: ir.Model) -> str:
    """SHA-256 of a graph without its weights."""
    return hashlib.sha256("\n".join(_lines(model.graph)).encode()).hexdigest()[:16]


def _lines(graph: ir.Graph) -> Iterator[str]:
    known = {
        value: str(value.name) for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())
    }
    for kind, values in (("in", graph.inputs), ("out", graph.outputs)):
        for value in values:
            yield f"{kind} {value.name} {value.dtype} {value.shape}"
    for name, value in graph.initializers.items():
        held = value.const_value
        lazy = isinstance(held, ir.LazyTensor | ir.ExternalTensor) or held is None
        yield f"weight {name} {value.dtype} {value.shape} {'' if lazy else _hash(held)}"
    for node in graph:
        for value in node.outputs:
            known.setdefault(value, f"between {len(known)}")
        # A body reads values of the graph around it by their names.
        names = [
            known.get(value, value.name) if value else "" for value in (*node.inputs, None, *node.outputs)
        ]
        yield f"node {node.name} {node.domain}::{node.op_type}:{node.version} {names}"
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type is ir.AttributeType.GRAPH:
                yield f"body {name}"
                yield from _lines(attribute.value)
            elif attribute.type is ir.AttributeType.TENSOR:
                yield f"attribute {name} {_hash(attribute.value)}"
            else:
                yield f"attribute {name} {attribute.value}"


def _hash(tensor: ir.TensorProtocol) -> str:
    return hashlib.sha256(tensor.tobytes()).hexdigest()[:16]


def digests(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Names and digests of all graphs of one checkpoint: vision graphs of every method, decoders of every target."""
    model = models.load(folder)
    for method in reducers.names():
        try:
            plan = model.plan(method, None if method == "none" else _KEEP[name], {})
        except ConfigError:
            continue
        if plan.reads("clip_text"):
            continue
        for target in targets.names() if _inside(plan) or method == "none" else ["portable"]:
            for kind in targets.get(target).precisions if method == "none" else ["fp32"]:
                yield from _of(name, model, plan, target, kind)


def _of(name, model, plan, target_name: str, kind: str) -> Iterator[tuple[str, str]]:
    target = targets.get(target_name)
    asked = ExportOptions(precision=kind, block=32 if kind == "int4" else None)
    quantization = precision.quantization(asked, target, model.shapes)
    rows = context.cache_rows(target, plan, model.decoder_config.context, None)
    for job in graph_jobs(model, plan, kind, target, quantization, rows):
        if not _asked(job.name, target_name, alone=plan.method != "none" and not _inside(plan)):
            continue
        graph = job.trace()
        if quantization is not None and job.quantized:
            quantize.bind(graph, model.checkpoint, quantization)
        weights.bind(graph, model.checkpoint, lambda text: None)
        trace.simplify(graph)
        yield f"{name}/{plan.method}/{target_name}/{kind}/{job.name}", digest(graph)


def _inside(plan) -> bool:
    return plan.at(Site.DECODER_LAYER) is not None


def _asked(graph: str, target: str, *, alone: bool) -> bool:
    """Whether a graph is not the same as that of another case: of methods that act before it, the decoder is."""
    if graph == "vision_encoder":
        return target == "portable"
    return not alone and (graph != "embed_tokens" or target == "portable")


def main() -> int:
    """Write the digests, or compare them with those that were written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="JSON file to write the digests to")
    parser.add_argument("--check", type=Path, metavar="FILE", help="JSON file to compare the digests with")

    parser.add_argument("--only", choices=("tiny", "demo"), help="one of the two checkpoints")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        write_random_checkpoint(Path(work) / "tiny", vision=_TINY["vision"], text=_TINY["text"])
        found = {}
        for name, folder in (("tiny", Path(work) / "tiny"), ("demo", demo.FOLDER)):
            if given.only not in (None, name):
                continue
            for key, value in digests(name, folder):
                found[key] = value
                print(value, key, flush=True)
    if given.write:
        given.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not given.check:
        return 0
    stored = json.loads(given.check.read_text(encoding="utf-8"))
    stored = {key: value for key, value in stored.items() if given.only in (None, key.split("/")[0])}
    changed = sorted(key for key in stored.keys() | found.keys() if stored.get(key) != found.get(key))
    print(f"{len(stored) - len(changed)} of {len(stored)} graphs unchanged", *changed, sep="\n  ")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
