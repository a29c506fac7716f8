"""What a precision and its options mean for a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fico_export.bundle.manifest import Quantization
from fico_export.devices import catalog
from fico_export.devices.catalog import Device
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError
from fico_export.exporter import quantize
from fico_export.options import ExportOptions


def quantization(
    options: ExportOptions, target: Target, shapes: Mapping[str, tuple[int, ...]], *, awq: bool = False
) -> Quantization | None:
    """How INT4 weights are stored; None for another precision, with which its options are refused.

    Args:
        options: of the export, with its precision.
        target: that is to take it.
        shapes: of the checkpoint's tensors, by canonical name.
        awq: whether there are prompts to calibrate with.

    Raises:
        ConfigError: the target does not offer the precision, or an option does not go with it or with the shapes.
    """
    precision, block = options.precision or "fp32", options.block
    if precision not in target.precisions:
        raise target.not_offered(precision)
    if precision != quantize.PRECISION:
        for flag, value in _of_int4(options).items():
            if value is not None:
                raise ConfigError(
                    f"{flag} with --precision {precision}, which quantises nothing",
                    fix=f"--precision {quantize.PRECISION}, or drop {flag}",
                )
        return None
    record = quantize.make_record(
        target,
        block=quantize.BLOCKS[0] if block is None else block,
        head=options.quantize_head,
        vision=options.quantize_vision,
        awq=awq,
    )
    quantize.require_fit(shapes, record)
    return record


def resolve(
    device: Device | None, options: ExportOptions, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Target, str, str]:
    """The target and the precision to export for, as `catalog.resolve` has them; a device's preference gives way to the model.

    Args:
        device: that the bundle is for, or None.
        options: of the export; an option of INT4 among them keeps the device's preference.
        shapes: of the checkpoint's tensors, by canonical name.

    Returns:
        The target, the precision, and a sentence where that is not what the device prefers; else "".

    Raises:
        ConfigError: as of `catalog.resolve`.
    """
    chosen, preferred = catalog.resolve(device, options.target, options.precision)
    int4_asked = any(value is not None for value in _of_int4(options).values())
    if device is None or options.precision is not None or int4_asked:
        return chosen, preferred, ""
    try:
        quantization(replace(options, precision=preferred), chosen, shapes)
    except ConfigError as refused:
        others = (p for p in device.precisions if p != preferred and p in chosen.precisions)
        other = next((p for p in others if p != quantize.PRECISION), None)
        if other is None:
            return chosen, preferred, ""
        return chosen, other, f"{other} instead of {preferred}, which {device.name} prefers: {refused.what}"
    return chosen, preferred, ""


def _of_int4(options: ExportOptions) -> dict[str, object]:
    """The options that INT4 alone has, by their flags."""
    return {
        "--block": options.block,
        "--quantize-head": options.quantize_head,
        "--quantize-vision": options.quantize_vision,
        "--calibrate": options.calibrate,
    }
