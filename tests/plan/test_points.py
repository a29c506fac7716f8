"""The planner's likely values against what others have measured: within 25 % of every published point, held-out ones too."""

from importlib import resources

import pytest
import tomllib

from fico_export import models
from fico_export.devices import catalog, targets
from fico_export.exporter import quantize
from fico_export.models.decoders.base import DecoderConfig
from fico_export.options import ExportOptions
from fico_export.plan import costs, roofline

POINTS = tomllib.loads((resources.files("fico_export.plan") / "points.toml").read_text(encoding="utf-8"))
EVERY = [(stage, point) for stage in ("decode", "prefill", "vision") for point in POINTS[stage]]
ANSWERED = 300  # tokens in the cache when decoding was timed: of the size that these benchmarks state


def estimated(stage, point):
    machine = roofline.machine(catalog.get(point["device"]))
    if stage == "vision":
        return roofline.milliseconds(machine, "vision", point["gflop"] * 1e9, 0, 24)
    config = DecoderConfig(
        **POINTS["decoders"][point["decoder"]], context=4096, activation="silu", norm_eps=1e-5, qkv_bias=False,
        out_bias=False, mlp_bias=False, inv_freq=(),
    )  # fmt: skip
    int4 = point["precision"] == "int4"
    record = quantize.make_record(targets.get("trt-10.3"), block=128, head=None, vision=None, awq=False)
    storage = costs.Storage(point["precision"], record if int4 else None)
    rows = point.get("tokens", ANSWERED)
    layers, head = linear_flops(config)
    flops = (layers * rows if stage == "prefill" else layers) + head
    moved = sum(costs.decoder_weights(config, storage)) + rows * costs.cache_bytes_per_row(config, storage)
    return roofline.milliseconds(machine, "prefill_int4" if int4 else "prefill", flops, moved, config.layers)


def linear_flops(config):
    """Of one token in the layers, and in the head; by hand, attention left out."""
    heads = 2 * config.heads + 2 * config.kv_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return 2 * config.layers * layer, 2 * config.hidden_size * config.vocab_size


@pytest.mark.parametrize(
    ("stage", "point"),
    EVERY,
    ids=[f"{s}-{p['device']}-{p.get('decoder', p.get('gflop'))}-{p['role']}" for s, p in EVERY],
)
def test_a_published_point_is_held(stage, point):
    measured = point["ms"] if "ms" in point else 1000 / point["tokens_per_second"]
    found = estimated(stage, point)

    assert found.likely == pytest.approx(measured, rel=0.25)
    assert found.least <= measured <= found.most


@pytest.mark.parametrize(
    ("alias", "device", "ms"),
    [
        ("qwen3-vl-2b", "agx-orin-64gb", 39.0),
        ("qwen3-vl-2b", "orin-nx-16gb", 82.1),
        ("qwen3-vl-8b", "orin-nx-16gb", 120.0),
        ("qwen3-vl-8b", "t5000", 15.8),
    ],
)
def test_operations_counted_on_the_modules_give_the_published_times_of_a_tower(alias, device, ms):
    """TensorRT Edge-LLM 0.9.0, about 265 tokens: 512×544 has 272, and as many more operations."""
    described = models.describe(models.packaged(alias)).shaped(
        ExportOptions(method="none", resolution=("512x544",))
    )
    flops = sum(costs.vision_flops(described, described.plan("none", None, {})).values()) * 265 / 272
    found = roofline.milliseconds(roofline.machine(catalog.get(device)), "vision", flops, 0, 24)

    assert found.likely == pytest.approx(ms, rel=0.25)


def test_points_are_held_out_of_every_stage_and_each_has_its_source():
    assert {stage for stage, point in EVERY if point["role"] == "held out"} == {"decode", "prefill", "vision"}
    assert all(point["source"] and point["role"] in ("calibration", "held out") for _, point in EVERY)


def test_orin_decodes_int4_below_what_its_bandwidth_allows():
    """57 tokens a second are 204.8 GB/s over 3.60 GB, the published bound of a 7B without its cache."""
    (point,) = [p for p in POINTS["decode"] if p["tokens_per_second"] == 39.1]
    found = estimated("decode", point)

    assert 1000 / found.least < 57
    assert 1000 / found.most < 22.5  # llama.cpp on the same board


def test_a_mode_slows_arithmetic_by_clock_and_multiprocessors_and_reading_by_its_memory():
    nano = catalog.get("orin-nano-8gb")
    modes = {mode.name: roofline.machine(nano, mode) for mode in nano.modes}

    assert modes["7W"].flops[0] == pytest.approx(16.7e12 * 408 / 1020 * 4 / 8)
    assert modes["15W"].bandwidth == 68.3e9
    assert modes["MAXN_SUPER"] == roofline.machine(nano)


def test_a_device_whose_peak_is_not_known_has_no_times():
    industrial = roofline.machine(catalog.get("agx-orin-industrial"))

    assert roofline.milliseconds(industrial, "vision", 1e9, 1e6, 1) is None
