#!/usr/bin/env python3
"""Do a bundle's greedy answers equal transformers' own, token by token?

    python scripts/check_greedy.py CHECKPOINT_FOLDER
    python scripts/check_greedy.py CHECKPOINT_FOLDER --new-tokens 64 --pictures 2 --bundle engines/my-bundle

Exports the checkpoint with `--method none --precision fp32` (or takes the bundle given), asks it about scikit-image's
images through the runtime, and compares the token ids with those of `LlavaForConditionalGeneration.generate` in FP32:
one image, a follow-up question in the same conversation, two images in one prompt, and text alone.
The two models are never in memory together. Exits 1 on any difference, with the reference's lead at that token:
a lead near zero is a tie that rounding decides.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skimage.data
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import fico_export
from fico_export.models.parts.transformers_quiet import quiet_transformers

PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "camera")
QUESTIONS = (
    "What is in this picture?",
    "How many objects are there, and of which colour?",
    "Describe the background.",
    "Is it day or night?",
    "Read any text that you see.",
)
FOLLOW_UP = "And what might happen next?"
COMPARE = "What do these two images have in common?"


@dataclass(frozen=True)
class Turn:
    """One question, the images it is about, and what to call it."""

    label: str
    prompt: str
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """Token ids of the right answer, and how far each token's logit leads the runner-up's."""

    ids: list[int]
    leads: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a LLaVA checkpoint")
    parser.add_argument(
        "--bundle", type=Path, help="bundle to check; exported to a temporary folder if missing"
    )
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens per answer at most (default 32)")
    parser.add_argument("--pictures", type=int, default=len(PICTURES), help="1 to 5 of them (default 5)")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of the bundle; 0 for one per core"
    )
    args = parser.parse_args()

    talks = conversations(args.pictures)
    expected = reference_answers(args.checkpoint, talks, args.new_tokens)
    gc.collect()
    with bundle_of(args.checkpoint, args.bundle) as bundle:
        wrong = compare(bundle, talks, expected, args.new_tokens, args.threads)
    total = sum(map(len, talks))
    # Had a checkpoint one answer to everything, equality would mean little.
    distinct = len({tuple(answer.ids) for talk in expected for answer in talk})
    print(f"{total - wrong} of {total} answers are equal ({distinct} distinct)")
    return 1 if wrong else 0


def conversations(count: int) -> list[list[Turn]]:
    """For each image: asked twice, shown beside the next one, and a question without it."""
    talks = []
    for i in range(count):
        picture, other = PICTURES[i], PICTURES[(i + 1) % len(PICTURES)]
        talks += [
            [Turn("one picture", QUESTIONS[i], (picture,)), Turn("follow-up", FOLLOW_UP)],
            [Turn("two pictures", COMPARE, (picture, other))],
            [Turn("text only", QUESTIONS[i])],
        ]
    return talks


def reference_answers(checkpoint: Path, talks: list[list[Turn]], new_tokens: int) -> list[list[Reference]]:
    """What transformers answers in FP32, each turn given the whole conversation before it."""
    say("load the reference")
    quiet_transformers()
    processor = AutoProcessor.from_pretrained(checkpoint)
    model: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    answers: list[list[Reference]] = []
    for talk in talks:
        messages: list[dict[str, Any]] = []
        answers.append([])
        for turn in talk:
            began = time.perf_counter()
            images = [{"type": "image", "image": picture(name)} for name in turn.pictures]
            messages.append({"role": "user", "content": [*images, {"type": "text", "text": turn.prompt}]})
            answer = generate(model, processor, messages, new_tokens)
            text = processor.tokenizer.decode(answer.ids, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
            answers[-1].append(answer)
            say(f"reference  {title(turn):<34}{time.perf_counter() - began:6.1f} s")
    return answers


def generate(model: Any, processor: Any, messages: list[dict[str, Any]], new_tokens: int) -> Reference:
    """Greedy ids, an end-of-sequence token included where there is one."""
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=new_tokens, return_dict_in_generate=True, output_logits=True
    )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    best = [logits[0].topk(2).values for logits in output.logits]
    return Reference(ids, [float(top[0] - top[1]) for top in best])


@contextmanager
def bundle_of(checkpoint: Path, given: Path | None) -> Iterator[Path]:
    """The bundle given, or one exported for the while."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fico-greedy-") as folder:
        say("export")
        yield fico_export.export(checkpoint, method="none", out=Path(folder) / "bundle", verify=False)


def compare(
    bundle: Path, talks: list[list[Turn]], expected: list[list[Reference]], new_tokens: int, threads: int
) -> int:
    """Ask the bundle the same; prints one line per answer and returns how many differ."""
    say("load the bundle")
    vlm = fico_export.load(bundle, backend="ort-cpu", threads=threads)
    wrong = 0
    for talk, references in zip(talks, expected, strict=True):
        chat = vlm.chat()
        for turn, reference in zip(talk, references, strict=True):
            images = [picture(name) for name in turn.pictures]
            answer = chat.ask(turn.prompt, images, max_new_tokens=new_tokens)
            equal = answer.token_ids == reference.ids
            wrong += not equal
            print(
                f"{'equal' if equal else 'DIFFERS':<9}{title(turn):<34}{len(answer.token_ids):>4} tokens after"
                f"{answer.prompt_tokens:>6} ({answer.cached_tokens} cached), TTFT {answer.ttft_ms:.0f} ms, "
                f"TPOT {answer.tpot_ms or 0:.1f} ms"
                + ("" if equal else f"; {difference(answer.token_ids, reference)}"),
                flush=True,
            )
    return wrong


def difference(ids: list[int], reference: Reference) -> str:
    """Where two answers part, and how sure the reference was there."""
    pairs = enumerate(zip(ids, reference.ids, strict=False))
    at = next((i for i, (got, right) in pairs if got != right), min(len(ids), len(reference.ids)))
    if at == len(reference.ids):
        return f"goes on after token {at}, the reference's last"
    got = ids[at] if at < len(ids) else "nothing"
    return f"token {at} is {got}, should be {reference.ids[at]}, which leads by {reference.leads[at]:.2e}"


def picture(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def title(turn: Turn) -> str:
    return " ".join((turn.label, *turn.pictures))


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
