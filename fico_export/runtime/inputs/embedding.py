"""The rows of the embedding table, read where they lie: a prompt needs a few of its tens of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.bundle.manifest import Manifest
from fico_export.errors import BundleError


def open_table(folder: Path, manifest: Manifest) -> npt.NDArray[Any]:
    """The table [V, C] of a bundle that says where it lies, mapped: the system keeps the rows in memory that are read.

    Raises:
        BundleError: the file does not hold it, or has no hash in the manifest.
    """
    table = manifest.embedding
    assert table is not None
    try:
        path = folder / manifest.require(table.file)
        # A plain array on it: a memmap's own look-up of rows is the slower one.
        return np.asarray(np.memmap(path, table.dtype, "r", table.offset, table.shape))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            f"cannot read the embeddings in {table.file}: {error}", fix="export or copy the bundle again"
        ) from error


def rows(table: npt.NDArray[Any], token_ids: Sequence[int]) -> npt.NDArray[Any]:
    """Embeddings [S, C] of token ids, a copy of one's own."""
    found: npt.NDArray[Any] = table[np.asarray(token_ids, np.int64)]
    return found
