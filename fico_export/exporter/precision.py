"""What a precision and its options mean for a target."""

from __future__ import annotations

from collections.abc import Mapping

from fico_export.bundle.manifest import Quantization
from fico_export.devices import catalog
from fico_export.devices.catalog import Device
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError
from fico_export.exporter import quantize


def quantization(
    precision: str,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    block: int | None,
    head: str | None,
    vision: str | None,
    awq: bool = False,
) -> Quantization | None:
    """How INT4 weights are stored; None for another precision, with which its options are refused.

    Args:
        precision: fp32, fp16 or int4.
        target: that is to take it.
        shapes: of the checkpoint's tensors, by canonical name.
        block: --block; None for the largest.
        head: --quantize-head.
        vision: --quantize-vision.
        awq: whether there is --calibrate.

    Raises:
        ConfigError: the target does not offer the precision, or an option does not go with it or with the shapes.
    """
    if precision not in target.precisions:
        raise target.not_offered(precision)
    options = {
        "--block": block,
        "--quantize-head": head,
        "--quantize-vision": vision,
        "--calibrate": awq or None,
    }
    if precision != quantize.PRECISION:
        for flag, value in options.items():
            if value is not None:
                raise ConfigError(
                    f"{flag} with --precision {precision}, which quantises nothing",
                    fix=f"--precision {quantize.PRECISION}, or drop {flag}",
                )
        return None
    record = quantize.make_record(
        target, block=quantize.BLOCKS[0] if block is None else block, head=head, vision=vision, awq=awq
    )
    quantize.require_fit(shapes, record)
    return record


def resolve(
    device: Device | None,
    target: str | None,
    precision: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    int4_asked: bool = False,
) -> tuple[Target, str, str]:
    """The target and the precision to export for, as `catalog.resolve` has them; a device's preference gives way to the model.

    Args:
        device: that the bundle is for, or None.
        target: --target; None for the device's.
        precision: --precision; None for what the device prefers, or fp32.
        shapes: of the checkpoint's tensors, by canonical name.
        int4_asked: whether an option of INT4 was given, which keeps the device's preference.

    Returns:
        The target, the precision, and a sentence where that is not what the device prefers; else "".

    Raises:
        ConfigError: as of `catalog.resolve`.
    """
    chosen, preferred = catalog.resolve(device, target, precision)
    if device is None or precision is not None or int4_asked:
        return chosen, preferred, ""
    try:
        quantization(preferred, chosen, shapes, block=None, head=None, vision=None)
    except ConfigError as refused:
        others = (p for p in device.precisions if p != preferred and p in chosen.precisions)
        other = next((p for p in others if p != quantize.PRECISION), None)
        if other is None:
            return chosen, preferred, ""
        return chosen, other, f"{other} instead of {preferred}, which {device.name} prefers: {refused.what}"
    return chosen, preferred, ""
