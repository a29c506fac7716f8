"""A request and a device → what it needs, how long it takes, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

from fico_export.devices.catalog import Device, PowerMode
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError
from fico_export.exporter import context
from fico_export.exporter.precision import quantization, resolve
from fico_export.models import decoders
from fico_export.models.decoders.base import DecoderForm
from fico_export.models.source import Architecture
from fico_export.options import ExportOptions
from fico_export.plan import costs, roofline
from fico_export.plan.costs import Flops, Storage
from fico_export.plan.roofline import Kind, Range
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Site
from fico_export.runtime.inputs.layout import Layout

Verdict = Literal["fits", "may fit", "does not fit"]
_KINDS: dict[str, tuple[Kind, Kind]] = {  # of the tower and of the decoder
    "fp32": ("fp32", "fp32"),
    "fp16": ("vision", "prefill"),
    "int4": ("vision", "prefill_int4"),
}


@dataclass(frozen=True, kw_only=True)
class PlanRequest(ExportOptions):
    """What is to be planned: an export, whose method is named, and the text tokens of the prompt and of the answer."""

    text_tokens: int = 40
    new_tokens: int = 128


@dataclass(frozen=True)
class Work:
    """A request's plan, and the FLOPs of an image and of the prompt, which no precision and no device changes.

    `others` are the tokens of the prompt that are no visual ones: its text, and what the model puts around an image's tiles. Bytes of the
    vision graph depend only on how weights are stored, and most devices store them alike.
    """

    plan: ReductionPlan
    others: int
    vision: Flops
    prefill: Flops
    vision_weights: Callable[[Storage], int]
    vision_activations: Callable[[Storage], tuple[int, int]]


@dataclass(frozen=True)
class Weights:
    """Bytes: of the vision graph, of the decoder without its head, of lm_head."""

    vision: int
    decoder: int
    head: int


@dataclass(frozen=True)
class Stage:
    """FLOPs of a stage by part, the bytes that it moves at least, and those of its weights."""

    name: Literal["vision", "prefill", "decode"]
    flops: Flops
    moved_bytes: int
    weight_bytes: int
    kind: Kind
    layers: int

    @property
    def total_flops(self) -> int:
        """Of all parts."""
        return sum(self.flops.values())


@dataclass(frozen=True)
class Part:
    """Bytes of memory that something takes; exact where the ends of the range are one."""

    name: str
    bytes: Range


@dataclass(frozen=True)
class Speed:
    """Estimates in a power mode: milliseconds of vision, prefill and their sum; of a further token; tokens a second."""

    mode: str
    vision_ms: Range
    prefill_ms: Range
    first_token_ms: Range
    token_ms: Range
    tokens_per_second: Range


@dataclass(frozen=True)
class Alternative:
    """Flags, or another device, by which it would fit."""

    flags: str
    verdict: Verdict


@dataclass(frozen=True)
class Estimate:
    """All that is known of a request on a device; without one there is no room, verdict or speed.

    `note` says why the precision is not the one that the device prefers. `rows` are those of the longest cache of a layer. `speeds` is empty too where the device's peak or bandwidth is not known.
    """

    device: str | None
    target: str
    precision: str
    method: str
    visual_tokens: int
    keep: int
    prompt_tokens: int
    rows: int
    stages: tuple[Stage, ...]
    memory: tuple[Part, ...]
    needed: Range
    room: Range | None
    verdict: Verdict | None
    speeds: tuple[Speed, ...]
    options: tuple[Alternative, ...] = ()
    note: str = ""

    @property
    def fastest(self) -> Speed | None:
        """In the mode with the first token first."""
        return min(self.speeds, key=lambda s: (s.first_token_ms.likely, s.token_ms.likely), default=None)


def count(model: Architecture, request: PlanRequest) -> Work:
    """What a request has to compute.

    Raises:
        ConfigError: the model cannot have the method or the budget.
    """
    assert request.method is not None
    model = model.shaped(request)
    made = model.plan(request.method, request.keep, request.settings)
    others = request.text_tokens + _around(model)
    return Work(
        made,
        others,
        costs.vision_flops(model, made),
        costs.prefill_flops(model, made, others),
        cache(partial(costs.vision_weights, model, made)),
        cache(partial(costs.vision_activations, model, made)),
    )


def _around(model: Architecture) -> int:
    """Rows of a prompt that stand around the visual tokens of an image of the first profile."""
    layout = Layout(model.layout, model.profiles, "original", 0)
    (rows, columns), (height, width) = model.profile.tile_grid, model.profile.size
    shown = columns * width, rows * height
    return layout.rows(shown) - layout.features(shown)


def estimate(model: Architecture, request: PlanRequest, device: Device | None, work: Work) -> Estimate:
    """The estimate alone, of what `count` found.

    Raises:
        ConfigError: as of `plan`.
    """
    target, precision, note = resolve(device, request, model.shapes)
    record = quantization(replace(request, precision=precision), target, model.shapes)
    storage = Storage(precision, record)
    made = work.plan
    rows = _rows(model, work, request, target)
    decoder, head = costs.decoder_weights(model.decoder_config, storage)
    weights = Weights(work.vision_weights(storage), decoder, head)
    stages = _stages(model, work, target, storage, weights, rows)
    memory = _memory(model, work, request, target, storage, weights, rows, device)
    needed = sum((part.bytes for part in memory), Range(0, 0, 0))
    room = _room(device) if device else None
    return Estimate(
        device=device.name if device else None,
        target=target.name,
        precision=precision,
        method=made.method,
        visual_tokens=made.visual_tokens,
        keep=made.keep,
        prompt_tokens=made.handed_over + work.others,
        rows=max(rows),
        stages=stages,
        memory=memory,
        needed=needed,
        room=room,
        verdict=_verdict(needed, room) if room else None,
        speeds=tuple(_speeds(stages, device)) if device and "ort-cpu" not in target.backends else (),
        note=note,
    )


def _rows(model: Architecture, work: Work, request: PlanRequest, target: Target) -> list[int]:
    """Rows of each layer's cache at the end of the answer, or all there are of a static one."""
    config, made = model.decoder_config, work.plan
    static = context.cache_rows(target, made, config.context, request.max_context)
    context.require_batch(made, request.max_batch)
    longest, most = made.handed_over + work.others + request.new_tokens, static or config.context
    if longest > most:
        larger = f"--max-context {longest}, or " if static and longest <= config.context else ""
        raise ConfigError(
            f"{made.handed_over} visual tokens, {work.others} of text and {request.new_tokens} new ones are "
            f"{longest}, and the cache ends at {most}",
            fix=f"{larger}a smaller --keep, --text-tokens or --new-tokens",
        )
    grown = [n + longest - made.handed_over for n in made.cached(config.layers)]
    return [static] * config.layers if static else grown


def _stages(
    model: Architecture, work: Work, target: Target, storage: Storage, weights: Weights, rows: list[int]
) -> tuple[Stage, ...]:
    config = model.decoder_config
    cache = costs.cache_bytes_per_row(config, storage) * sum(rows) // config.layers
    last_only = _last_row_only(target, work.plan)
    head = costs.decoder_flops(config, 1)["head"]
    prefill = work.prefill | {"head": head} if last_only else work.prefill
    decode = costs.decoder_flops(config, 1, max(rows) - 1)
    # What grows is read, written anew with its new row, and read again by the attention.
    reads = 1 if _in_place(target, work.plan) else 3
    dense, mixed = _KINDS[storage.precision]
    tower = len({n.split(".")[3] for n in model.shapes if n.startswith("vision_tower.encoder.layers.")})
    decoder = weights.decoder + weights.head
    return (
        Stage("vision", work.vision, weights.vision, weights.vision, dense, tower),
        Stage("prefill", prefill, decoder + cache, decoder, mixed, config.layers),
        Stage("decode", decode, decoder + reads * cache, decoder, mixed, config.layers),
    )


def _memory(
    model: Architecture,
    work: Work,
    request: PlanRequest,
    target: Target,
    storage: Storage,
    weights: Weights,
    rows: list[int],
    device: Device | None,
) -> tuple[Part, ...]:
    config, made = model.decoder_config, work.plan
    prompt = made.handed_over + work.others
    # One of each sequence; one that grows by Concat is there twice while it does.
    copies = request.max_batch * (1 if _in_place(target, made) else 2)
    cache = copies * costs.cache_bytes_per_row(config, storage) * sum(rows) // config.layers
    inside = made.at(Site.DECODER_LAYER) is not None  # then prefill is a graph without a past
    columns = prompt + (max(rows) if _form(target, made).apart and not inside else 0)
    head_rows = 1 if _last_row_only(target, made) else prompt
    activations = [
        work.vision_activations(storage),
        costs.prefill_activations(config, prompt, columns, head_rows, storage),
    ]
    least, most = sum(a for a, _ in activations), sum(a for _, a in activations)  # engines keep their own
    parts = [
        Part("weights: vision", _exactly(weights.vision)),
        Part("weights: decoder", _exactly(weights.decoder)),
        Part("weights: lm_head", _exactly(weights.head)),
        Part("KV cache", _exactly(cache)),
        Part("activations", Range(least, (least + most) / 2, most)),
        Part("engine and runtime", roofline.memory("runtime")),
    ]
    if device is None or shares_memory(device):
        parts.append(Part("process", roofline.memory("process")))
    return tuple(parts)


def _in_place(target: Target, made: ReductionPlan) -> bool:
    """Whether a step writes its rows into the cache that it reads."""
    return _form(target, made).in_place


def _last_row_only(target: Target, made: ReductionPlan) -> bool:
    """Whether prefill computes the logits of the last row alone."""
    return _form(target, made).last_row_only or made.at(Site.DECODER_LAYER) is not None


def _form(target: Target, made: ReductionPlan) -> DecoderForm:
    return decoders.form(target.decoder, per_layer=made.at(Site.DECODER_LAYER) is not None)


def _exactly(count: int) -> Range:
    return Range(count, count, count)


def shares_memory(device: Device) -> bool:
    """Whether GPU and system have one memory, as on a Jetson."""
    return bool(device.jetpack)


def _room(device: Device) -> Range:
    """Bytes that a model can have of the device's memory."""
    if device.usable_gb:
        return _exactly(int(device.usable_gb * 1e9))
    taken = roofline.memory("system_of_jetson" if shares_memory(device) else "system_of_gpu")
    return taken.map(lambda system: max(0.0, device.memory_gb * 1e9 - system))


def _verdict(needed: Range, room: Range) -> Verdict:
    if needed.most <= room.least:
        return "fits"
    return "does not fit" if needed.least > room.most else "may fit"


def _speeds(stages: Sequence[Stage], device: Device) -> Iterator[Speed]:
    """Of the device at its fastest, then of each power mode."""
    modes: list[PowerMode | None] = [*device.modes] or [None]
    for mode in modes:
        on = roofline.machine(device, mode)
        times = [roofline.milliseconds(on, s.kind, s.total_flops, s.moved_bytes, s.layers) for s in stages]
        vision, prefill, token = times
        if vision and prefill and token:
            rate = token.map(lambda ms: 1e3 / ms)
            yield Speed(mode.name if mode else "", vision, prefill, vision + prefill, token, rate)
