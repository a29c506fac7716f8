"""How many rows a static KV cache has, and how many sequences a decoder runs together."""

from __future__ import annotations

from fico_export.bundle.manifest import MOST_BATCH
from fico_export.devices import targets
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError
from fico_export.models.decoders.base import DecoderConfig
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Site

DEFAULT = 1024  # rows where none are asked for
TEXT_ROWS = 64  # that a short question and answer take


def cache_rows(target: Target, plan: ReductionPlan, context: int, asked: int | None) -> int | None:
    """Rows of the KV cache; None where the target's decoder has one that grows.

    Args:
        target: whose form of the decoder says which.
        plan: of the reduction.
        context: the model's own.
        asked: --max-context; None for `DEFAULT`, or the model's context where that is less.

    Raises:
        ConfigError: an image has no room in the model's context; --max-context for a cache that grows, beyond the model's context, or too small for an image and some text.
    """
    if plan.handed_over >= context:
        raise ConfigError(
            f"an image takes {plan.handed_over} visual tokens, and the model's context is {context}",
            fix="a smaller --keep, with a method that acts before the decoder; or of a Qwen-VL a smaller --resolution",
        )
    if not target.static_cache:
        if asked is None:
            return None
        raise ConfigError(
            f"--max-context with --target {target.name}, whose KV cache grows as far as the model's context",
            fix=f"drop it, or --target one of: {', '.join(targets.with_static_cache())}",
        )
    rows, least = min(context, DEFAULT) if asked is None else asked, plan.handed_over + TEXT_ROWS
    if rows > context:
        raise ConfigError(
            f"--max-context {rows}, and the model's context is {context}", fix=f"give at most {context}"
        )
    if rows < least:
        # Of a method inside the decoder, --keep changes nothing of it.
        fix = "a smaller --keep, with a method that acts before the decoder"
        raise ConfigError(
            f"a KV cache of {rows} rows, and an image takes {plan.handed_over} beside the text's {TEXT_ROWS} at least",
            fix=f"--max-context {least} or more" if least <= context else fix,
        )
    return rows


def require_batch(plan: ReductionPlan, asked: int) -> None:
    """Refuse a batch that no decoder of this plan runs.

    Raises:
        ConfigError: --max-batch is out of range, or the method acts inside the decoder.
    """
    if not 1 <= asked <= MOST_BATCH:
        raise ConfigError(f"max_batch is {asked}", fix=f"give 1 to {MOST_BATCH}")
    if asked > 1 and plan.at(Site.DECODER_LAYER) is not None:
        raise ConfigError(
            f"--max-batch {asked} with --method {plan.method}, which reduces inside the decoder: such a decoder runs one sequence at a time",
            fix="drop --max-batch, or give a method that acts before the decoder (`fico list methods`)",
        )


def bytes_per_row(config: DecoderConfig, itemsize: int) -> int:
    """Of keys and values of all layers, whose numbers have `itemsize` bytes."""
    return 2 * config.layers * config.kv_heads * config.head_dim * itemsize
