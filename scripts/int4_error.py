"""What INT4 costs: the error of weights by rounding and block, and the perplexity of the demo model's golden answers.

    python scripts/int4_error.py [CHECKPOINT]

Prints the tables of docs/int4.md; with a checkpoint, the error of four matrices of each of its layers too, and the speed.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fico_export import calibration, demo, models
from fico_export.bundle.manifest import Quantization
from fico_export.demo import scenes
from fico_export.exporter import awq, quantize
from fico_export.exporter.rounding import quantize as round_blocks
from fico_export.exporter.stream import Streamed, Tokens
from fico_export.models.source import SourceModel
from fico_export.models.weights import Weights
from fico_export.progress import Silent
from fico_export.runtime.inputs.prompt import PromptFormatter

GOLDEN = Path(__file__).parents[1] / "tests" / "demo" / "golden.json"
EMBEDDINGS = "language_model.embed_tokens.weight"


def onto(weight: torch.Tensor, block: int, level: float) -> torch.Tensor:
    """Squared error with the largest weight of each block on `level`: 7 is plain rounding, −8 Q4_0."""
    blocks = weight.unflatten(1, (-1, block))
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = (largest / level if level < 0 else largest.abs() / level).to(torch.float16).to(torch.float32)
    codes = torch.where(scale == 0, 0, blocks / scale).round().clamp(-8, 7)
    return (codes * scale - blocks).square().sum()


def searched(weight: torch.Tensor, block: int, *, signed: bool) -> torch.Tensor:
    return (
        (round_blocks(weight, 4, block, signed=signed).dequantized(weight.shape[1]) - weight).square().sum()
    )


def matrices(checkpoint: SourceModel) -> Iterator[torch.Tensor]:
    for i in range(checkpoint.decoder_config.layers):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            yield checkpoint.checkpoint.load(f"language_model.layers.{i}.{part}.weight").to(torch.float32)


def errors(checkpoint: SourceModel | None) -> None:
    """Relative RMSE of each rounding on each kind of tensor."""
    generator = np.random.RandomState(0)
    normal = generator.randn(512, 1536).astype(np.float32) * 0.02
    kinds = {
        "normal": [torch.from_numpy(normal)],
        "Student's t, 4": [torch.from_numpy(generator.standard_t(4, (512, 1536)).astype(np.float32))],
        "1 % outliers × 20": [
            torch.from_numpy(normal * np.where(generator.rand(512, 1536) < 0.01, 20, 1).astype(np.float32))
        ],
        "demo model": list(matrices(models.load(demo.FOLDER))),
    }
    if checkpoint is not None:
        kinds[checkpoint.folder.name] = list(matrices(checkpoint))
    print(
        "| weights | block | Q4_0 | largest on 7 | search, positive scales | search, signed scales |\n|---|---|---:|---:|---:|---:|"
    )
    for name, tensors in kinds.items():
        for block in (32, 128):
            whole = [t[:, : t.shape[1] // block * block].contiguous() for t in tensors]
            energy = sum(float(t.square().sum()) for t in whole)
            ways = (
                lambda t, b=block: onto(t, b, -8),
                lambda t, b=block: onto(t, b, 7),
                lambda t, b=block: searched(t, b, signed=False),
                lambda t, b=block: searched(t, b, signed=True),
            )
            cells = (math.sqrt(sum(float(way(t)) for t in whole) / energy) for way in ways)
            print(f"| {name} | {block} |", " | ".join(f"{100 * cell:.2f} %" for cell in cells), "|")


def perplexity() -> None:
    """Of the golden answers, given image and question; channels are calibrated on scenes that are asked nothing of."""
    checkpoint = models.load(demo.FOLDER)
    config, weights = checkpoint.decoder_config, checkpoint.checkpoint
    texts = checkpoint.files()
    formatter = PromptFormatter(texts.tokenizer, texts.chat_template, checkpoint.tokens)
    table = weights.load(EMBEDDINGS).to(torch.float32)
    golden = json.loads(GOLDEN.read_text())["questions"]
    asked = [(scenes.render(scenes.scene(q["scene"], "held-out")), q["text"]) for q in golden]
    answers = [[*formatter.text_ids(q["answer"]), checkpoint.tokens.eos_ids[0]] for q in golden]
    sequences = []
    for prompt, answer in zip(calibration.sequences(checkpoint, asked), answers, strict=True):
        embeds = torch.cat([prompt.embeds, table[answer[:-1]][None]], 1)
        sequences.append(Tokens(embeds, torch.arange(embeds.shape[1])[None]))
    others = [(scenes.render(scenes.scene(200_000 + i, "held-out")), "What is in the picture?") for i in range(8)]  # fmt: skip
    prompts = list(calibration.sequences(checkpoint, others))

    def score(view: Weights) -> tuple[float, float]:
        streamed = Streamed(view, config, sequences)
        for i in range(config.layers):
            streamed.run(streamed.layer(i))
        loss, count, right = 0.0, 0, 0
        for logits, answer in zip(streamed.logits(), answers, strict=True):
            said = logits[-len(answer) :].log_softmax(-1)
            loss -= float(said[range(len(answer)), answer].sum())
            count += len(answer)
            right += said.argmax(-1).tolist() == answer
        return math.exp(loss / count), right

    print("\n| demo model | block | scales | perplexity | golden answers right |\n|---|---|---|---:|---:|")
    print("| FP32 | | | {:.4f} | {} of 64 |".format(*score(weights)))
    for signed in (False, True):
        for scheme in ("rtn", "awq"):
            record = Quantization(
                bits=4,
                block=32,
                scheme=scheme,
                head_bits=None,
                vision_bits=None,
                form="dequantize",
                activations="fp32",
                signed_scales=signed,
                opset=21,
            )
            view = weights
            if scheme == "awq":
                view = awq.folded(weights, awq.search(weights, config, prompts, record, Silent()))
            result = score(quantize.dequantized(view, record))
            print(
                "| {} | 32 | {} | {:.4f} | {} of 64 |".format(
                    scheme, "signed" if signed else "positive", *result
                )
            )


def speed() -> None:
    """Weights a second of this machine, a matrix as LLaVA-1.5-7B has them."""
    weight = torch.randn(4096, 11008).to(torch.float16) * 0.02
    for block, signed in ((128, False), (128, True), (32, True)):
        wall, cpu = time.perf_counter(), time.process_time()
        round_blocks(weight, 4, block, signed=signed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rate = weight.numel() / wall / 1e6
        print(
            f"block {block}, {'signed' if signed else 'positive'}: {rate:.0f} million weights/s, {weight.numel() / cpu / 1e6:.0f} per core"
        )


if __name__ == "__main__":
    given = models.load(Path(sys.argv[1])) if len(sys.argv) > 1 else None
    errors(given)
    perplexity()
    if given is not None:
        speed()
