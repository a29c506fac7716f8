"""A prompt in CLIP's space, for the vision graphs that compare the image with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fico_export import documents, tokenizer
from fico_export.bundle import graph_names
from fico_export.bundle.manifest import CLIP_TOKENIZER, Manifest
from fico_export.errors import BundleError, EngineError
from fico_export.runtime.backends.base import Session


class ClipText:
    """The text tower of a bundle, with its tokenizer.

    Args:
        folder: of the bundle.
        manifest: of it.
        session: of the graph clip_text.

    Raises:
        BundleError: the tokenizer is missing or damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest, session: Session) -> None:
        graph = manifest.graph(graph_names.CLIP_TEXT)
        path, fix = folder / manifest.require(CLIP_TOKENIZER), "export or copy the bundle again"
        text = documents.read_text(path, error=BundleError, fix=fix)
        self._tokenizer = tokenizer.read(text, str(path), error=BundleError, fix=fix)
        self._length = int(graph.inputs[0].shape[1])
        self._session = session

    def segments(self, prompt: str) -> npt.NDArray[np.int64]:
        """Token ids [segments, L]: the prompt in pieces that fit, each begun and ended as a text of its own, filled up with ends."""
        begin, end = self._tokenizer.encode("", add_special_tokens=True)
        ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        room = self._length - 2
        pieces = [ids[i : i + room] for i in range(0, max(1, len(ids)), room)]
        return np.array(
            [[begin, *piece] + [end] * (self._length - 1 - len(piece)) for piece in pieces], np.int64
        )

    def __call__(self, prompt: str) -> npt.NDArray[np.float32]:
        """[1, P]: the mean over the segments of their unit-length embeddings.

        A product with it is the mean of the cosines with each.

        Raises:
            EngineError: running failed, such as for lack of memory.
        """
        try:
            rows = [self._session.run(None, {"input_ids": ids[None]})[0] for ids in self.segments(prompt)]
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime raises classes of its own without a common base
            raise EngineError(
                f"the text graph failed: {error}", fix="free memory, or run `fico verify` on the bundle"
            ) from error
        mean: npt.NDArray[np.float32] = np.mean(rows, axis=0)
        return mean
