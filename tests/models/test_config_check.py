"""config.json: what cannot be a model is refused where it is read, in a moment and with little memory."""

import json
import resource
import subprocess
import sys
import time

import pytest

from fico_export import models
from fico_export.errors import CheckpointError

HUGE = 10**9
WRONG = {
    "text_config": [
        ("num_hidden_layers", [HUGE, 0, -1, 2.0, True, "2", [2], 10**30]),
        ("hidden_size", [0, -64, 64.0, True, "64", {}, 10**9, 66]),
        ("intermediate_size", [0, -1, 10**12, "160"]),
        ("num_attention_heads", [0, 3, 10**9, True, 4.5]),
        ("num_key_value_heads", [0, 3, 10**9, False]),
        ("head_dim", [-1, 15, 10**9, "16"]),
        ("vocab_size", [0, -1, 10**12, True]),
        ("max_position_embeddings", [0, -5, 10**30, "2048"]),
        ("sliding_window", [-1, 0.5, "x", 10**30]),
        ("use_sliding_window", ["yes", 2]),
        ("rms_norm_eps", [-1, "small", 10.0, [1e-6]]),
        ("rope_theta", [0, -1, "x", 10**30, [1]]),
        ("rope_scaling", ["x", [], {"rope_type": "linear", "factor": 0}, {"rope_type": "linear", "factor": "x"}]),
        ("rope_parameters", [{"rope_theta": 0}, {"rope_theta": "x", "rope_type": "default"}, 7]),
        ("attention_bias", ["no", 3, []]),
        ("tie_word_embeddings", ["no", {}]),
        ("num_labels", [HUGE, "x"]),
        ("hidden_act", [7, "a" * 1000, []]),
    ],
    "vision_config": [
        ("num_hidden_layers", [HUGE, 0, -1, True, "6"]),
        ("hidden_size", [0, 66, True, 10**9, "NoneType"]),
        ("patch_size", [0, -14, 14.5, "14", 10**6, 113]),
        ("image_size", [10**6, 0, -1, "112", [112, 112], 5]),
        ("num_attention_heads", [0, 5, "4"]),
        ("layer_norm_eps", [-1e-5, "x"]),
        ("num_channels", [1, 0, "3"]),
        ("num_labels", [HUGE]),
    ],
    None: [
        ("image_token_index", [-1, 10**30, "x", True, 1.5, [1]]),
        ("vision_feature_layer", [[], [99], [-2, "x"], "x", 1.5, True, 10**9, [[1]], list(range(100)), {}]),
        ("multimodal_projector_bias", ["x", 5]),
        ("projector_hidden_act", [5, "a" * 1000, "new"]),
        ("vision_config", [[], "x", 5]),
        ("text_config", [[], "x", 5]),
        ("num_labels", [HUGE, -1]),
        ("dtype", ["float99"]),
    ],
}  # fmt: skip
CASES = [(part, key, value) for part, keys in WRONG.items() for key, values in keys for value in values]


@pytest.fixture(scope="module")
def content(tiny_checkpoint):
    return json.loads((tiny_checkpoint / "config.json").read_text())


def changed(content, part, key, value):
    new = json.loads(json.dumps(content))
    (new if part is None else new[part])[key] = value
    return new


@pytest.mark.parametrize(("part", "key", "value"), CASES, ids=[f"{p}-{k}-{str(v)[:12]}" for p, k, v in CASES])
def test_a_value_that_no_model_has_is_refused(content, tmp_path, part, key, value):
    (tmp_path / "config.json").write_text(json.dumps(changed(content, part, key, value)))
    began = time.thread_time()
    with pytest.raises(CheckpointError) as caught:
        models.describe(tmp_path)
    assert time.thread_time() - began < 10
    assert key in caught.value.what or "config.json" in caught.value.what
    assert len(caught.value.what) < 600
    assert caught.value.fix


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "head_dim", None),
        ("text_config", "head_dim", 32),
        ("text_config", "sliding_window", 4095),
        ("text_config", "num_key_value_heads", 1),
        ("text_config", "rms_norm_eps", 0.00001),
        ("text_config", "rope_theta", 1_000_000),
        ("text_config", "tie_word_embeddings", True),
        ("vision_config", "num_channels", 3),
        ("vision_config", "projection_dim", 768),
        (None, "vision_feature_layer", [-2, -3]),
        (None, "vision_feature_layer", 0),
        (None, "multimodal_projector_bias", False),
        (None, "model_max_length", 1000000000000000019884624838656),
        (None, "pad_token_id", -1),
    ],
)
def test_what_published_configs_hold_is_read(content, tmp_path, part, key, value):
    (tmp_path / "config.json").write_text(json.dumps(changed(content, part, key, value)))
    assert models.describe(tmp_path).profile.patch_grid == (8, 8)


PLANS = """
import contextlib, io, json, sys
from fico_export.cli.main import app, invoke

for folder in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = invoke(app, "fico", ["plan", "--model", folder])
    print(json.dumps([code, said.getvalue()]))
"""


def test_a_plan_of_billions_of_layers_ends_in_little_memory(content, tmp_path):
    cases = [(part, key) for part, key, value in CASES if value == HUGE and key.startswith("num_")]
    for i, (part, key) in enumerate(cases):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "config.json").write_text(json.dumps(changed(content, part, key, HUGE)))
    done = subprocess.run(
        [sys.executable, "-c", PLANS, *(str(tmp_path / str(i)) for i in range(len(cases)))],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32)),
    )
    assert done.returncode == 0, done.stderr[-1000:]
    for (_, key), line in zip(cases, done.stdout.splitlines(), strict=True):
        code, said = json.loads(line)
        assert code == 2, said
        assert key in said
        assert "hint:" in said
