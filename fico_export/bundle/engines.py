"""trt/<target>/build.json: what a bundle's engines were made of, with what, and for which machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from fico_export.errors import BundleError
from fico_export.tables import Record

SCHEMA_VERSION = 1
FILE_NAME = "build.json"
FOLDER = "trt"

Sizes = tuple[int, int, int]  # least, likeliest and most


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

    optimization_level: int = 3
    workspace_bytes: int | None = None
    auxiliary_streams: int | None = None
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = False
    low_memory: bool = False


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

    file: str
    sha256: str
    size: int
    sources: dict[str, str]
    profiles: list[dict[str, Sizes]]
    seconds: float
    peak_bytes: int


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

    schema_version: int = SCHEMA_VERSION
    target: str
    runtime: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    platform: str
    compute_capabilities: list[str]
    gpu: str | None = None
    driver: str | None = None
    options: Options
    timing_cache_sha256: str | None = None
    engines: dict[str, Engine]
    created: str

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
        if not path.is_file():
            raise BundleError(f"{bundle} has no engines for {target}", fix=fix)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema_version"] > SCHEMA_VERSION:
                raise BundleError(
                    f"{path} has schema version {content['schema_version']}; this fico_export reads {SCHEMA_VERSION}",
                    fix=f"update fico_export, or build again: {fix}",
                )
            return cls.model_validate(content)
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise BundleError(f"{path} is damaged: {error}", fix=fix) from error
