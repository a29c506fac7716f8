"""Graphs that several tests have alike, traced once a session: tracing is most of the time that an export takes."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration as registration

from fico_export.devices import targets
from fico_export.exporter import graphs, trace


def decoder_graph(model, precision="fp32"):
    """The plain decoder of a checkpoint as an export traces it, without weights."""
    plan, target = model.plan("none", None, {}), targets.get("portable")
    jobs = graphs.graph_jobs(model, plan, precision, target)
    return next(job for job in jobs if job.name == "decoder_model_merged").trace()


@contextmanager
def traced_once():
    """For the time of the block, modules that are alike in every value are traced once.

    And torch's table of how its operators become ONNX's is made once for each opset: it takes a fifth of a trace.
    """
    made, real = {}, trace.trace

    def remembered(make, opset):
        with torch.device("meta"):
            module = make()
        key = (_fingerprint(module), opset)
        if key not in made:
            made[key] = real(make, opset)
        return made[key].clone()  # exports change what they get

    with pytest.MonkeyPatch.context() as patch:
        for place in (trace, graphs):
            patch.setattr(place, "trace", remembered)
        table = registration.ONNXRegistry.from_torchlib
        patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(cache(table)))
        yield


def _fingerprint(module: nn.Module) -> tuple:
    """All that a trace can depend on: of every submodule its class and each value it holds, of parameters their shapes."""
    own = set(nn.Module().__dict__)
    return tuple(
        (
            name,
            type(part),
            repr(sorted((k, repr(v)) for k, v in vars(part).items() if k not in own)),
            [(n, p.shape, p.dtype) for n, p in part.named_parameters(recurse=False)],
        )
        for name, part in module.named_modules()
    ).__repr__(), repr(module.ports())
