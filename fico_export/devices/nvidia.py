"""NVIDIA's libraries: what each is called by Python, pip, apt, the loader, in build.json and by users. They are named here alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fico_export import extras

Runtime = Literal["tensorrt", "tensorrt_rtx"]
ParserName = Literal["tensorrt", "rtx"]

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
"""The file of CUDA's driver, as the loader finds it."""
BINDINGS = "cuda-bindings"
"""The Python distribution through which engines are run."""
JETPACK = "sudo apt install nvidia-jetpack"
"""The command that installs what a Jetson's image leaves out: CUDA, TensorRT and their Python modules."""


@dataclass(frozen=True)
class Library:
    """A library that makes and runs engines.

    Attributes:
        name: for people.
        runtime: its Python module, and its name in build.json.
        parser: its name in the table of parsers.
        backend: name of the backend that runs its engines.
        wheel: the Python distribution that this package's extra asks for.
        distributions: all that bring it.
        debian: packages of Debian that bring it, the whole before its parts.
    """

    name: str
    runtime: Runtime
    parser: ParserName
    backend: str
    wheel: str
    distributions: tuple[str, ...]
    debian: tuple[str, ...] = ()

    @property
    def install(self) -> str:
        """The command that installs it."""
        return extras.install_module(self.runtime)

    def installed(self, distributions: Mapping[str, str]) -> str | None:
        """Its version, of name (with `_` for `-`) → version of the distributions that are installed; None where it is not."""
        names = (name.replace("-", "_") for name in self.distributions)
        return next((distributions[name] for name in names if name in distributions), None)


TENSORRT = Library(
    name="TensorRT",
    runtime="tensorrt",
    parser="tensorrt",
    backend="trt",
    wheel="tensorrt",
    distributions=("tensorrt",),
    debian=("tensorrt", "libnvinfer-bin", "libnvinfer11", "libnvinfer10", "libnvinfer8"),
)
RTX = Library(
    name="TensorRT-RTX",
    runtime="tensorrt_rtx",
    parser="rtx",
    backend="rtx",
    wheel="tensorrt-rtx-cu13",
    distributions=("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
)
LIBRARIES = (TENSORRT, RTX)


def of_runtime(runtime: Runtime) -> Library:
    """The library that build.json calls so."""
    return next(library for library in LIBRARIES if library.runtime == runtime)


def of_parser(parser: ParserName) -> Library:
    """The library whose parser is called so."""
    return next(library for library in LIBRARIES if library.parser == parser)


def of_backend(backend: str) -> Library:
    """The library whose engines a backend runs."""
    return next(library for library in LIBRARIES if library.backend == backend)
