"""The options that say how an answer's tokens are chosen and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.errors import ConfigError

if TYPE_CHECKING:
    from fico_export.runtime.sampling import Sampling

NewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help="Longest answer in tokens; by default what generation_config.json says, or 256.",
        show_default=False,
    ),
]
GreedyOption = Annotated[
    bool, typer.Option("--greedy", help="Take the likeliest token even where the model's authors sample.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", help="Sample at this temperature; 0 is --greedy.", show_default=False),
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", help="Sample among tokens of this total probability.", show_default=False),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", help="Sample among so many tokens; 0 for all.", show_default=False),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        help="Sample among tokens at least this share as likely as the likeliest.",
        show_default=False,
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        help="Make tokens that were there less likely; 1 for no penalty.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Random seed for sampling: the same seed, the same answer.", show_default=False
    ),
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="A string that ends an answer; repeatable.")
]


def sampling_of(
    *,
    greedy: bool,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> Sampling:
    """What the options ask for; what they leave open is the bundle's.

    Raises:
        ConfigError: a value is out of its range, or two contradict each other.
    """
    from fico_export.runtime.sampling import Sampling

    if greedy and temperature:
        raise ConfigError(f"--greedy with --temperature {temperature:g}", fix="drop one of them")
    return Sampling(
        temperature=0 if greedy else temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
