"""trt/<target>/build.json: what a bundle's engines were made of, with what, and for which machines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from fico_export import documents
from fico_export.bundle.bounds import (
    BundlePath,
    Bytes,
    Count,
    GraphName,
    Label,
    Positive,
    Sha256,
    bundle_path,
)
from fico_export.devices.nvidia import Runtime
from fico_export.errors import BundleError
from fico_export.tables import Record

SCHEMA_VERSION = 1
FILE_NAME = "build.json"
FOLDER = "trt"

MAX_BYTES = 16 * 2**20
"""Size of the largest build.json."""

Sizes = tuple[Count, Positive, Positive]  # least, likeliest and most; an empty past has no rows


class Options(Record):
    """What the builder was told.

    Attributes:
        optimization_level: 0 to 5.
        workspace_bytes: most scratch memory of an engine; None for what the device has.
        auxiliary_streams: most of them; None for TensorRT's own choice.
        hardware_compatibility: with which GPUs beside the one it was built on.
        version_compatible: whether later versions of TensorRT run it.
        low_memory: whether memory was spared where it costs speed.
    """

    optimization_level: Count = 3
    workspace_bytes: Bytes | None = None
    auxiliary_streams: Count | None = None
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = False
    low_memory: bool = False


def _file_name(name: str) -> str:
    if "/" in name or not bundle_path(name).endswith(".engine"):
        raise ValueError(f"{name[:60]!r} is no file name of an engine")
    return name


class Engine(Record):
    """An engine, raw: nothing stands before the plan in its file.

    Attributes:
        file: beside build.json.
        sha256: of it.
        size: in bytes.
        sources: the bundle's files that it was built of, the graph and its weights, with the SHA-256 that the manifest gave.
        profiles: for each optimisation profile the sizes of each free axis of the graph.
        seconds: that parsing and building took.
        peak_bytes: most host memory of the process that built it.
    """

    file: Annotated[str, AfterValidator(_file_name)]
    sha256: Sha256
    size: Bytes
    sources: dict[BundlePath, Sha256] = Field(max_length=4096)
    profiles: list[dict[Label, Sizes]] = Field(max_length=64)
    seconds: float
    peak_bytes: Bytes


class Build(Record):
    """The whole of build.json.

    Attributes:
        target: a target's name.
        runtime: the library that built.
        version: of it, whole, such as 10.3.0.30.
        platform: operating system and processor, such as linux-aarch64.
        compute_capabilities: that the engines run on, such as 8.7.
        gpu: the one they were built on; None where there was none.
        driver: version of its driver.
        options: the builder's.
        timing_cache_sha256: of the cache that the builder left.
        engines: by the name of their graph in the manifest.
        created: time of the build.
    """

    schema_version: int = Field(SCHEMA_VERSION, strict=True, ge=1)
    target: Label
    runtime: Runtime
    version: Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9A-Za-z+-]{1,32}){0,8}$")]
    platform: Label
    compute_capabilities: list[Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?$")]] = Field(
        max_length=64
    )
    gpu: Label | None = None
    driver: Label | None = None
    options: Options
    timing_cache_sha256: Sha256 | None = None
    engines: dict[GraphName, Engine] = Field(max_length=64)
    created: Label

    def save(self, folder: Path) -> None:
        """Write build.json."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, bundle: Path, target: str) -> Build:
        """Read the build.json of a bundle's engines for a target.

        Raises:
            BundleError: there are none, or it is damaged or newer.
        """
        path = bundle / FOLDER / target / FILE_NAME
        fix = f"fico build {bundle} --target {target}"
        if not re.fullmatch(r"[\w.-]+", target) or not path.is_file():
            raise BundleError(f"{bundle} has no engines for {target}", fix=fix)
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path} is larger than {MAX_BYTES >> 20} MiB", fix=fix)
        return cls.parse(documents.read_text(path, error=BundleError, fix=fix), str(path), fix)

    @classmethod
    def parse(cls, text: str, place: str, fix: str) -> Build:
        """The build.json that a text holds; `place` names it in errors.

        Raises:
            BundleError: it is damaged or newer; `fix` says what to do.
        """
        content = documents.parse(text, place, error=BundleError, fix=fix)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise BundleError(
                f"{place} has schema version {version}; this fico_export reads {SCHEMA_VERSION}",
                fix=f"update fico_export, or build again: {fix}",
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part)[:64] for part in first["loc"])
            raise BundleError(f"{place} is damaged: {where}: {first['msg']}", fix=fix) from error
