"""Traces that several bundles have alike, made once: tracing is most of the time that an export takes."""

from contextlib import contextmanager

import pytest

from fico_export.exporter import graphs
from fico_export.models.parts.family import Vlm


@contextmanager
def traced_once(*names):
    """For the time of the block, these functions of exporter/graphs.py trace once for equal arguments."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(graphs, name, _once(getattr(graphs, name)))
        yield


def _once(trace):
    made = {}

    def remembered(*given, **options):
        key = repr([x.folder if isinstance(x, Vlm) else x for x in given] + sorted(options.items()))
        if key not in made:
            made[key] = trace(*given, **options)
        return made[key].clone()  # exports change what they get

    return remembered
