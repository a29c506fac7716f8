"""What the demo is asked about a scene, with the right answers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from fico_export.demo.scenes import COLOURS, SHAPES, Scene

KINDS = ("colour", "shape", "existence", "place", "count", "sign", "background")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question, its kind (one of `KINDS`), and the one right answer."""

    kind: str
    text: str
    answer: str


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Every unambiguous question about a scene; `rng` draws what the existence questions name in vain.

    Colour is asked of a shape that occurs once, shape of a colour that occurs once, place of a pair that occurs once;
    of the existence questions as many have the answer yes as no.
    """
    pairs = Counter((thing.colour, thing.shape) for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    shapes = Counter(thing.shape for thing in scene.things)
    sign = scene.sign
    asked = [
        Question("background", "What colour is the background?", scene.background),
        Question("background", "What pattern has the background?", scene.pattern),
        Question("sign", "What number is on the sign?", sign.number if sign else "none"),
        Question("existence", "Is there a sign?", "yes" if sign else "no"),
        Question("count", "How many objects are there?", str(len(scene.things))),
    ]
    if sign:
        asked.append(Question("place", "Where is the sign?", PLACES[sign.cell]))
    for thing in scene.things:
        if shapes[thing.shape] == 1:
            asked.append(Question("colour", f"What colour is the {thing.shape}?", thing.colour))
        if colours[thing.colour] == 1:
            asked.append(Question("shape", f"Which shape is {thing.colour}?", thing.shape))
        if pairs[thing.colour, thing.shape] == 1:
            asked.append(Question("place", f"Where is the {thing.colour} {thing.shape}?", PLACES[thing.cell]))
    asked += [Question("count", f"How many objects are {colour}?", str(n)) for colour, n in colours.items()]
    asked += [Question("count", f"How many objects are a {shape}?", str(n)) for shape, n in shapes.items()]
    for colour, shape in pairs:
        asked.append(Question("existence", f"Is there a {colour} {shape}?", "yes"))
        asked.append(
            Question("existence", "Is there a {} {}?".format(*_absent(scene, colour, shape, rng)), "no")
        )
    return asked


def one_of_each(scene: Scene) -> list[Question]:
    """At most one question of each kind, the same ones every time; answers are spread as evenly as the scene allows."""
    rng = random.Random(f"one of each/{scene.seed}")
    asked = questions(scene, rng)
    chosen = []
    for kind in KINDS:
        by_answer: dict[str, list[Question]] = {}
        for question in asked:
            if question.kind == kind:
                by_answer.setdefault(question.answer, []).append(question)
        if by_answer:
            chosen.append(rng.choice(by_answer[rng.choice(sorted(by_answer))]))
    return chosen


def _absent(scene: Scene, colour: str, shape: str, rng: random.Random) -> tuple[str, str]:
    """A colour and a shape that do not occur together, mostly a near miss: one of the two is in the picture."""
    present = {(thing.colour, thing.shape) for thing in scene.things}
    while True:
        miss = rng.choice(
            [(colour, rng.choice(SHAPES)), (rng.choice(list(COLOURS)), shape), (rng.choice(list(COLOURS)), rng.choice(SHAPES))]
        )  # fmt: skip
        if miss not in present:
            return miss
