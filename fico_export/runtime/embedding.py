"""The rows of the embedding table, read where they lie: a prompt needs a few of its tens of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.bundle.manifest import Table
from fico_export.errors import BundleError


def open_table(folder: Path, table: Table) -> npt.NDArray[Any]:
    """The table [V, C], mapped: a row is in memory once it is read, and the system may take it back.

    Raises:
        BundleError: the file does not hold it.
    """
    try:
        return np.memmap(folder / table.file, table.dtype, "r", table.offset, table.shape)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            f"cannot read the embeddings in {table.file}: {error}", mend="export or copy the bundle again"
        ) from error


def rows(table: npt.NDArray[Any], token_ids: Sequence[int]) -> npt.NDArray[Any]:
    """Embeddings [S, C] of token ids, a copy of one's own."""
    return np.array(table[np.asarray(token_ids, np.int64)])
