"""A decoder's options, q/k norm, several axes of positions and added planes: every form against transformers' Qwen3-VL."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from fico_export.devices import targets
from fico_export.exporter import trace, weights
from fico_export.models import decoders
from fico_export.models.decoders.base import DecoderConfig
from fico_export.models.decoders.reducing import Prefill
from fico_export.models.parts.text_config import decoder_config
from fico_export.models.weights import Weights
from fico_export.reducers.base.plan import Limits, make_plan
from fico_export.reducers.base.reducer import Depth
from fico_export.runtime.backends.base import Step
from fico_export.runtime.backends.steps import inputs

SECTION = [3, 3, 2]
VISUAL = slice(3, 12)  # rows of a prompt that stand for an image of 3×3 cells
PROMPT, LENGTH, ROWS = 17, 20, 32


@pytest.fixture(scope="module")
def model():
    """transformers' model with planes after its first three layers, and a head."""
    config = Qwen3VLTextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True, "mrope_section": SECTION},
    )  # fmt: skip
    torch.manual_seed(0)
    made = Qwen3VLTextModel(config).eval()
    for name, parameter in made.named_parameters():
        noise = torch.randn_like(parameter)
        # A norm whose weights are all 1 would not show where it is left out.
        parameter.data = 1 + 0.3 * noise if "norm" in name else noise / parameter.shape[-1] ** 0.5
    made.lm_head = torch.nn.Linear(32, 96, bias=False)
    return made


@pytest.fixture(scope="module")
def config(model):
    """The same as this package describes it: frequencies t, h, w, t, h, w, … up to each section's end, and t from there on."""
    axes = [0] * 8
    for axis in (1, 2):
        axes[axis : 3 * SECTION[axis] : 3] = [axis] * len(axes[axis : 3 * SECTION[axis] : 3])
    plain = decoder_config(model.config)
    return DecoderConfig(**{**vars(plain), "rope_axes": tuple(axes), "planes": 3})


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3-vl")
    state = {f"language_model.{name}": t for name, t in model.state_dict().items() if "lm_head" not in name}
    save_file(state | {"lm_head.weight": model.lm_head.weight.data.clone()}, folder / "model.safetensors")
    return Weights(folder)


@pytest.fixture(scope="module")
def prompt():
    """Embeddings [S, C], positions [3, S], planes [3, S, C] that are zero outside the image."""
    random = np.random.RandomState(1)
    embeds = random.randn(LENGTH, 32).astype(np.float32)
    positions = np.tile(np.arange(LENGTH), (3, 1))
    row, column = np.divmod(np.arange(9), 3)
    positions[:, VISUAL] = np.stack([0 * row, row, column]) + 3
    positions[:, VISUAL.stop :] = np.arange(LENGTH - VISUAL.stop) + 6
    planes = np.zeros((3, LENGTH, 32), np.float32)
    planes[:, VISUAL] = random.randn(3, 9, 32)
    return embeds, positions, planes


@pytest.fixture(scope="module")
def want(model, prompt):
    """Logits [S, V] of the whole sequence at once, by transformers."""
    embeds, positions, planes = (torch.from_numpy(array) for array in prompt)
    mask = torch.zeros(1, LENGTH, dtype=torch.bool)
    mask[:, VISUAL] = True
    with torch.inference_mode():
        hidden = model(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            attention_mask=torch.ones(1, LENGTH, dtype=torch.int64),
            visual_pos_masks=mask,
            deepstack_visual_embeds=[*planes[:, VISUAL]],
            use_cache=False,
        )
        return model.lm_head(hidden.last_hidden_state)[0].numpy()


def test_frequencies_turn_by_the_axes_of_transformers(model, config):
    """Positions that are other than zero on one axis alone turn those frequencies that are the axis's."""
    positions = torch.zeros(3, 3, 1, dtype=torch.int64)
    for axis in range(3):
        positions[axis, axis] = 1
    _, sin = model.rotary_emb(torch.zeros(3, 1, 16), positions)
    turned = (sin[:, 0, :8] != 0).numpy()

    assert [int(np.argmax(turned[:, j])) for j in range(8)] == list(config.rope_axes)
    assert config.qk_norm


def test_the_options_change_the_answer(model, config, checkpoint, prompt, want):
    """The comparisons below can fail: without each of them the logits are others."""
    whole = dict(vars(config))
    for option, plain in (("rope_axes", (0,) * 7 + (1,)), ("planes", 0), ("qk_norm", False)):
        got = torch_logits(DecoderConfig(**(whole | {option: plain})), checkpoint, prompt)
        assert np.abs(got - want).max() > 0.01, option
    np.testing.assert_allclose(torch_logits(config, checkpoint, prompt), want, atol=2e-5)


def torch_logits(config, checkpoint, prompt):
    embeds, positions, planes = prompt
    module = filled(decoders.form("plain").module(config, torch.float32, None, False, 1), checkpoint)
    feeds = inputs([Step(None, embeds, positions[: config.axes], planes)], [0], 1, np.dtype(np.float32), 3)
    given = [torch.from_numpy(feeds[n]) for n in ("inputs_embeds", "position_ids", "deepstack_embeds")]
    empty = [torch.zeros(1, 2, 0, 16)] * 8
    with torch.inference_mode():
        mask = torch.ones(1, LENGTH, dtype=torch.int64)
        logits, *_ = module(given[0], mask, given[1], empty, given[2] if config.planes else None)
    return logits[0].numpy()


def filled(module, checkpoint):
    state = {name: checkpoint.load(name) for name, _ in module.named_parameters()}
    module.load_state_dict(state)
    return module.eval()


FORMS = {"plain": (18, False), "fused": (23, False), "external": (18, True), "in-place": (24, True)}


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/families/test_qwen_targets.py has each form in a whole model
@pytest.mark.parametrize("name", FORMS)
def test_each_form_gives_the_logits_of_transformers_in_pieces(
    name, config, checkpoint, prompt, want, tmp_path
):
    """A prompt, then tokens one by one after the cache, through ONNX Runtime."""
    opset, static = FORMS[name]
    form = decoders.form(name)
    graph = trace.trace(lambda: form.module(config, torch.float32, ROWS if static else None, False, 1), opset)
    graph.ir_version = targets.get("portable").ir_version
    weights.bind(graph, checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, tmp_path / "decoder.onnx", lambda count: None)
    session = ort.InferenceSession(str(tmp_path / "decoder.onnx"))
    past = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values")]
    # The fused form reads P + S rows of a buffer that it is given whole.
    rows = ROWS if static or name == "fused" else 0
    cache = [np.zeros((1, 2, rows, 16), np.float32) for _ in past]
    embeds, positions, planes = prompt
    done = 0
    for end in (PROMPT, *range(PROMPT + 1, LENGTH + 1)):
        part = Step(None, embeds[done:end], positions[:, done:end], planes[:, done:end])
        feeds = inputs([part], [0], 1, np.dtype(np.float32), 3) | dict(zip(past, cache, strict=True))
        if static:
            feeds["past_lengths"] = np.array([done])
        else:
            feeds["attention_mask"] = np.ones((1, end), np.int64)
        logits, *present = session.run(None, feeds)
        np.testing.assert_allclose(logits[0, -1], want[end - 1], atol=5e-5)
        if name == "external":  # it gives the new rows alone
            for kept, new in zip(cache, present, strict=True):
                kept[:, :, done:end] = new
        else:
            cache = present
        done = end


def test_a_decoder_that_reduces_takes_them_too(config, checkpoint, prompt, want):
    """Reducing nothing, its logits are those of transformers; and planes go with the tokens that are kept."""
    limits = Limits(9, 0, Depth(2, 2), Depth(4, 3))
    (step,) = make_plan("fastv", 4, {"layer": "2"}, limits).steps
    embeds, positions, planes = prompt
    given = torch.from_numpy(embeds)[None], torch.from_numpy(positions)[:, None], torch.arange(3, 12)[None]
    added = torch.from_numpy(planes)[None]
    idle = type(step)(**{**vars(step), "keep": 9, "schedule": dict.fromkeys(step.schedule, 9)})
    with torch.inference_mode():
        logits, *_ = filled(Prefill(config, idle, torch.float32), checkpoint)(*given, added)
        np.testing.assert_allclose(logits[0, -1].numpy(), want[-1], atol=5e-5)

        module = filled(Prefill(config, step, torch.float32), checkpoint)
        got, kept, *_ = module(*given, added)
        gone = np.setdiff1d(np.arange(9), kept[0].numpy())
        other = planes.copy()
        other[2, VISUAL][gone] = (
            99  # after the layer that reduces, what is added to a dropped token adds to nothing
        )
        same, *_ = module(*given, torch.from_numpy(other)[None])
    assert kept.shape == (1, 4)
    torch.testing.assert_close(got, same)


def test_planes_of_a_batch_stand_in_their_rows():
    ones = np.ones((2, 3), np.float32)
    steps = [
        Step(None, ones, np.zeros((3, 2), int), np.full((1, 2, 3), 7.0)),
        Step(None, ones, np.zeros((3, 2), int)),
    ]
    found = inputs(steps, [2, 0], 4, np.dtype(np.float32), 1)["deepstack_embeds"]

    assert found.shape == (4, 1, 2, 3)
    assert found[2].tolist() == [[[7.0] * 3] * 2]
    assert not found[[0, 1, 3]].any()
