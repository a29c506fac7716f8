"""Graphs that several exports have alike, traced once a session: tracing is most of the time that an export takes.

A graph is traced without weights: config.json, the plan and the precision say what it is. A test of tracing itself imports the
function by name, and gets the real one.
"""

import json
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from fico_export.exporter import graphs
from fico_export.models.parts.clip_text import Clip
from fico_export.models.parts.family import Vlm


def _decoder(model: Vlm) -> str:
    return repr(model.decoder_config)


def _vision(model: Vlm) -> str:
    """Of config.json, all but the decoder: which decoder it is shows in its channels alone."""
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    apart = {"text_config", "dtype", "torch_dtype", "tie_word_embeddings", "transformers_version"}
    read = {key: value for key, value in config.items() if key not in apart}
    clip = _clip(model.clip) if model.clip else ""
    return repr((sorted(read.items()), model.grid, model.image_size, model.decoder_config.hidden_size, clip))


def _prefill(model: Vlm) -> str:
    return repr((model.decoder_config, model.grid))


def _clip(clip: Clip) -> str:
    return (clip.folder / "config.json").read_text(encoding="utf-8")


# What each reads of its model.
READS: dict[str, Callable] = {
    "trace_vision": _vision,
    "trace_clip_text": _clip,
    "trace_prefill": _prefill,
    "trace_embed": _decoder,
    "trace_decoder": _decoder,
    "trace_fused_decoder": _decoder,
    "trace_with_past": _decoder,
    "trace_static": _decoder,
}


@contextmanager
def traced_once():
    """For the time of the block, the functions of exporter/graphs.py trace once for what they read."""
    with pytest.MonkeyPatch.context() as patch:
        for name, reads in READS.items():
            patch.setattr(graphs, name, _once(getattr(graphs, name), reads))
        yield


def _once(trace, reads):
    made = {}

    def remembered(model, *given, **options):
        key = (reads(model), repr(given), repr(sorted(options.items())))
        if key not in made:
            made[key] = trace(model, *given, **options)
        return made[key].clone()  # exports change what they get

    return remembered
