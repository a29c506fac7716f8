"""The vector that stands at the end of a row of visual tokens, of models that have one: a small file of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.bundle.manifest import NEWLINE_FILE, Manifest
from fico_export.errors import BundleError

_HEADER = 128
"""Bytes before the numbers of a .npy file of one axis."""


def save(vector: npt.NDArray[np.float32], folder: Path) -> None:
    """Write [D] into a bundle."""
    np.save(folder / NEWLINE_FILE, vector.astype(np.float32), allow_pickle=False)


def load(folder: Path, manifest: Manifest) -> npt.NDArray[np.float32] | None:
    """The vector [D]; None of a bundle that has none.

    Raises:
        BundleError: the file is no vector of the decoder's channels.
    """
    if NEWLINE_FILE not in manifest.files:
        return None
    path, channels = folder / NEWLINE_FILE, manifest.decoder.hidden_size
    try:
        right = path.stat().st_size == _HEADER + 4 * channels
        found: npt.NDArray[Any] = np.load(path, allow_pickle=False) if right else np.zeros(0)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}", fix="export or copy the bundle again") from error
    if found.shape != (channels,) or found.dtype != np.float32 or not np.isfinite(found).all():
        raise BundleError(
            f"{path} is no vector of {channels} finite numbers in float32",
            fix="export or copy the bundle again",
        )
    vector: npt.NDArray[np.float32] = found
    return vector
