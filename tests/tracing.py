"""Graphs that several tests have alike, traced once a session: tracing is most of the time that an export takes."""

import hashlib
import re
from contextlib import contextmanager

import onnx_ir as ir
import pytest
import torch
from torch import nn

from fico_export.devices import targets
from fico_export.exporter import graphs, trace
from fico_export.models.decoders.fused import FusedDecoder


def decoder_graph(model, precision="fp32", target="portable"):
    """The decoder of a checkpoint as an export for a target traces it, without weights."""
    plan, target = model.plan("none", None, {}), targets.get(target)
    jobs = graphs.graph_jobs(model, plan, precision, target)
    return next(job for job in jobs if job.name == "decoder_model_merged").trace()


@contextmanager
def traced_once(shared):
    """For the time of the block, modules that are alike in every value are traced once, by whichever worker comes first."""
    made, real = {}, trace.trace

    def remembered(make, opset):
        with torch.device("meta"):
            module = make()
        key = hashlib.sha256(f"{_fingerprint(module)} {opset}".encode()).hexdigest()[:16]
        if key not in made:
            folder = shared(f"trace-{key}", lambda folder: _save(real(make, opset), folder))
            made[key] = ir.load(folder / "graph.onnx")
        return made[key].clone()  # exports change what they get

    with pytest.MonkeyPatch.context() as patch:
        for place in (trace, graphs):
            patch.setattr(place, "trace", remembered)
        yield


def _save(graph, folder):
    """Write a graph without its weights, which are all one zero and as large as the model's: of each the shape is kept."""
    folder.mkdir()
    for value in graph.graph.initializers.values():
        stored = value.const_value
        if isinstance(stored.raw, nn.Parameter):
            value.const_value = ir.ExternalTensor(
                "none", None, None, stored.dtype, shape=stored.shape, name=value.name
            )
    ir.save(graph, folder / "graph.onnx")


def _fingerprint(module: nn.Module) -> str:
    """All that a trace can depend on: of every submodule its class and each value it holds, of parameters their shapes."""
    own = set(nn.Module().__dict__)
    parts = [
        (
            name,
            type(part),
            repr(sorted((k, repr(v)) for k, v in vars(part).items() if k not in own)),
            [(n, p.shape, p.dtype) for n, p in part.named_parameters(recurse=False)],
        )
        for name, part in module.named_modules()
    ]
    found = repr((parts, module.ports()))
    # How long a model's context is stands in every decoder's config, and one form alone makes a table of it.
    return found if isinstance(module, FusedDecoder) else re.sub(r"\bcontext=\d+", "context=…", found)
