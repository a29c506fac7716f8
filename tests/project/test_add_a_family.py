"""docs/add-a-family.md to the letter: a family unlike LLaVA in every part is exported, reduced, verified and answers right."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exhaustive import exhaustive
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import fico_export
from fico_export import models
from fico_export.bundle.manifest import Manifest
from fico_export.demo.checkpoint import write_tokenizer
from fico_export.errors import ConfigError
from fico_export.models import families
from fico_export.plan import advice
from fico_export.plan.planner import PlanRequest
from fico_export.report.kept import view_of
from fico_export.runtime.inputs.prompt import Message

ROOT = Path(__file__).parents[2]
(SOURCE,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-a-family.md").read_text(), re.DOTALL)
QUESTION = "what is in this picture"
IMAGE = 500
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
VISION = {"side": 56, "patch": 7, "hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 2}
KEYS = {
    "vision_tower.": "tower.",
    "multi_modal_projector.": "merger.",
    "lm_head.": "decoder.head.",
    "language_model.": "decoder.",
}


@pytest.fixture(scope="module")
def duo(tmp_path_factory):
    """The file in a folder that the registry reads too, and a checkpoint of random weights under the keys of its family."""
    folder = tmp_path_factory.mktemp("duo")
    (folder / "families").mkdir()
    (folder / "families/duo.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "__path__", [*families.__path__, str(folder / "families")])
        yield write_checkpoint(folder / "checkpoint")
        sys.modules.pop("fico_export.models.families.duo", None)


def write_checkpoint(folder):
    folder.mkdir()
    raw = {"model_type": "duo", "image_token_id": IMAGE, "vision": VISION, "text_config": TEXT}
    shapes = models.known_families()["duo"].describe(raw).shapes
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        key = next(name.replace(ours, theirs, 1) for ours, theirs in KEYS.items() if name.startswith(ours))
        scale = 0.1 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
        tensors[key] = torch.randn(shape, generator=generator) * scale + ("norm" in name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, [QUESTION * 3], IMAGE)
    side = {"height": VISION["side"], "width": VISION["side"]}
    processor = {"image_processor_type": "SiglipImageProcessor", "size": side, "resample": 3}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def two_profiles(duo, tmp_path_factory):
    """The same family with a profile of one tile besides, for images that are not wide, and its checkpoint."""
    source = SOURCE.replace("profiles=(only,)", "profiles=(only, square)").replace('"duo"', '"duo_both"')
    source = source.replace(
        "    def plan(\n",
        """    square = only.model_copy(
        update={
            "name": "one-tile", "graph": "vision_encoder_one_tile", "tile_grid": (1, 1), "tiles": 1,
            "input_shape": (1, *only.input_shape[1:]), "visual_tokens": cells, "handed_over": cells,
        }
    )

    def plan(\n""",
    )
    (Path(families.__path__[-1]) / "duo_both.py").write_text(source)
    folder = shutil.copytree(duo, tmp_path_factory.mktemp("both") / "checkpoint")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "duo_both"}))
    yield folder
    sys.modules.pop("fico_export.models.families.duo_both", None)


@pytest.fixture(scope="module")
def bundle(duo, tmp_path_factory):
    @functools.cache
    def make(**options):
        return fico_export.export(duo, out=tmp_path_factory.mktemp("bundle") / "duo", verify=False, **options)

    return make


class Rotary(nn.Module):
    """transformers' rotary embeddings at positions [2, S], whose frequencies take turns."""

    def forward(self, x, position_ids):
        size = TEXT["hidden_size"] // TEXT["num_attention_heads"]
        angles = torch.zeros(1, self.positions.shape[1], size)
        for s, (row, column) in enumerate(self.positions.T.tolist()):
            for j in range(size // 2):
                angles[0, s, j] = angles[0, s, j + size // 2] = (row, column)[j % 2] / 10000 ** (2 * j / size)
        return angles.cos(), angles.sin()


@pytest.fixture(scope="module")
def reference(duo):
    """(embeddings [S, C], positions [2, S]) → logits [S, V] of transformers' Llama with the checkpoint's weights."""
    tensors = load_file(duo / "model.safetensors")
    state = {k.removeprefix("decoder."): t for k, t in tensors.items() if k.startswith("decoder.")}
    state = {"lm_head.weight" if k == "head.weight" else f"model.{k}": t for k, t in state.items()}
    llama = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
    llama.load_state_dict(state)
    llama.model.rotary_emb = rotary = Rotary()

    def logits(embeds, positions):
        rotary.positions = torch.as_tensor(np.asarray(positions))
        with torch.inference_mode():
            return llama(inputs_embeds=embeds[None], use_cache=False).logits[0]

    logits.tensors, logits.embed = tensors, llama.get_input_embeddings()
    return logits


def features_of(tensors, tiles):
    """[2, 3, 56, 56] → [2, 16, D], patch by patch."""
    t = {k.removeprefix("tower."): v for k, v in tensors.items() if k.startswith("tower.")}
    x = F.conv2d(tiles, t["patches.weight"], t["patches.bias"], stride=7).flatten(2).mT
    for i in range(VISION["layers"]):
        layer = {
            k.removeprefix(f"encoder.layers.{i}."): v
            for k, v in t.items()
            if k.startswith(f"encoder.layers.{i}.")
        }
        q, k, v = F.linear(
            F.rms_norm(x, (32,), layer["norm.weight"], 1e-6), layer["qkv.weight"], layer["qkv.bias"]
        ).chunk(3, -1)
        q, k, v = (part.view(2, 64, 2, 16).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 64, 32)
        x = x + F.linear(mixed, layer["out.weight"], layer["out.bias"])
        x = x + F.linear(
            F.gelu(F.linear(x, layer["up.weight"], layer["up.bias"])),
            layer["down.weight"],
            layer["down.bias"],
        )
    cells = []
    for row in range(4):
        for column in range(4):
            four = [x[:, (2 * row + i) * 8 + 2 * column + j] for i in (0, 1) for j in (0, 1)]
            cells.append(
                F.linear(torch.cat(four, -1), tensors["merger.linear.weight"], tensors["merger.linear.bias"])
            )
    return torch.stack(cells, 1)


def answer(reference, vlm, picture, keep_index, count):
    """Greedy tokens by plain loops: tiles cut by hand, 2-D positions, the whole sequence anew for each token."""
    halves = picture.resize((112, 56), resample=3)
    tiles = [np.asarray(halves.crop((56 * i, 0, 56 * i + 56, 56)), np.float32) for i in (0, 1)]
    pixels = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.inference_mode():
        features = features_of(reference.tensors, pixels)
    rows, positions, at = [], [], 0
    for token in vlm.formatter.encode([Message("user", QUESTION, 1)]):
        if token != IMAGE:
            rows.append(reference.embed(torch.tensor(token)))
            positions.append((at, at))
            at += 1
            continue
        for row in range(4):
            for column in range(8):
                tile, cell = divmod(column, 4)
                if tile * 16 + row * 4 + cell in keep_index:
                    rows.append(features[tile, row * 4 + cell])
                    positions.append((at + row, at + column))
        at += 8  # the longer side
    tokens = []
    for _ in range(count):
        logits = reference(torch.stack(rows).detach(), np.array(positions).T)
        tokens.append(int(logits[-1].argmax()))
        rows.append(reference.embed(torch.tensor(tokens[-1])))
        positions.append((at, at))
        at += 1
    return tokens


@pytest.mark.parametrize(
    ("method", "keep"), [("none", None), ("dpp", 8), exhaustive("fastv", 8), exhaustive("ficoco-v", 8)]
)
def test_it_is_exported_verified_and_answers_as_plain_loops_do(
    method, keep, bundle, duo, reference, photographs
):
    folder = bundle(method=method, keep=keep)
    vlm, report = fico_export.load(folder), fico_export.verify(folder, model=str(duo))
    encoded = vlm.encode_image(photographs[0])

    assert report.checks
    assert not report.failed
    assert encoded.features.shape == ((keep if method in ("dpp", "ficoco-v") else 32), 64)
    assert encoded.offsets.shape == (2, len(encoded.features))
    assert encoded.span == 8
    if method in ("none", "dpp"):  # the others merge, or keep a part in the decoder
        want = answer(reference, vlm, photographs[0], set(encoded.keep_index.tolist()), 6)
        assert vlm.generate(QUESTION, photographs[:1], max_new_tokens=6).token_ids == want


@pytest.mark.exhaustive  # positions of several axes in each form: tests/families/test_qwen_targets.py
@pytest.mark.parametrize("target", ["ort", "trt-10.3"])
def test_every_decoder_form_answers_alike(target, bundle, photographs):
    want = fico_export.load(bundle(keep=8, method="dpp"))
    got = fico_export.load(
        bundle(keep=8, method="dpp", target=target, max_context=None if target == "ort" else 128)
    )
    answers = [vlm.generate(QUESTION, photographs[:1], max_new_tokens=6).token_ids for vlm in (want, got)]

    assert answers[0] == answers[1]


@pytest.mark.parametrize(("method", "keep"), [exhaustive("none", None), ("dpp", 8)])
def test_a_profile_for_each_shape_of_image_has_a_graph_of_its_own_on_the_same_weights(
    method, keep, two_profiles, tmp_path
):
    folder = fico_export.export(two_profiles, keep, method=method, out=tmp_path / "both")  # and is verified
    manifest, vlm = Manifest.load(folder), fico_export.load(folder)
    wide, square = Image.new("RGB", (400, 200), "red"), Image.new("RGB", (300, 280), "red")
    graphs = [manifest.graphs[profile.graph] for profile in manifest.profiles]

    assert [profile.handed_over for profile in manifest.profiles] == ([32, 16] if keep is None else [8, 8])
    assert [len(vlm.encode_image(image).features) for image in (wide, square)] == (
        [32, 16] if keep is None else [8, 8]
    )
    assert [vlm.encode_image(image).span for image in (wide, square)] == [8, 4]
    stored = [{w.location for w in external(folder / graph.file)} for graph in graphs]
    assert stored[0] == stored[1]
    answer = vlm.generate(QUESTION, [wide, square], max_new_tokens=4)
    assert answer.visual_tokens == sum(profile.handed_over for profile in manifest.profiles)


def external(path):
    """Weights of a graph that lie in files beside it."""
    values = ir.load(path).graph.initializers.values()
    return [value.const_value for value in values if isinstance(value.const_value, ir.ExternalTensor)]


def test_it_is_planned(duo):
    planned = advice.plan(models.describe(duo), PlanRequest(method="fastv", keep=8))

    assert (planned.visual_tokens, planned.keep) == (32, 8)


def test_each_tile_keeps_its_share_and_the_kept_cells_are_drawn_in_their_tiles(bundle, photographs, tmp_path):
    folder = bundle(method="dpp", keep=8)
    profile = Manifest.load(folder).profile
    vlm = fico_export.load(folder)
    kept = vlm.encode_image(photographs[0]).keep_index

    assert (profile.tiles, profile.token_grid, profile.handed_over) == (2, (4, 4), 8)
    assert (kept < 16).sum() == 4
    boxes, (width, height) = view_of(vlm, photographs[0]).patch_boxes(), photographs[0].size
    assert len(boxes) == 32
    assert (boxes[:16, 2] <= width / 2 + 1e-6).all()
    assert (boxes[16:, 0] >= width / 2 - 1e-6).all()
    assert boxes[15].tolist() == pytest.approx([3 / 8 * width, 3 / 4 * height, width / 2, height])


@pytest.mark.parametrize(
    ("method", "keep", "words"),
    [
        ("zooprune", 8, "reads how far the projector moves each token"),
        ("prumerge", 8, "reads the layer after the features"),
        ("dpp", 1, "outside 2 … 32"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(method, keep, words, bundle):
    with pytest.raises(ConfigError, match=re.escape(words)):
        bundle(method=method, keep=keep)


def test_the_file_is_short_and_passes_the_checks_of_the_house(tmp_path):
    path = tmp_path / "duo.py"
    path.write_text(SOURCE)

    assert len(SOURCE.splitlines()) < 160
    for tool in (["ruff", "check"], ["ruff", "format", "--check", "--diff"]):
        line = [sys.executable, "-m", *tool, "--config", str(ROOT / "pyproject.toml"), str(path)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
