"""What a bundle keeps of a picture: runs the vision graph, and prefill where the method acts inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export import documents
from fico_export.bundle.manifest import Manifest
from fico_export.errors import BundleError, InputError
from fico_export.report.geometry import View, patches_of, view
from fico_export.runtime.images import ImageSource, load_image
from fico_export.runtime.vlm import Vlm


@dataclass(frozen=True)
class Kept:
    """What is left of a picture.

    Attributes:
        picture: upright, RGB.
        view: where the patches lie in it.
        patches: [K] or [K − 1] raster positions of the patches kept, ascending; of those a method merges, of the merge's target.
        cls: whether the CLS token is kept besides.
    """

    picture: Image.Image
    view: View
    patches: npt.NDArray[np.int64]
    cls: bool

    @property
    def outside(self) -> int:
        """Kept patches that show nothing of the picture: those in padding."""
        shown = self.view.patch_of_pixels(*self.picture.size)
        return int(np.isin(self.patches, shown, invert=True).sum())


def kept(vlm: Vlm, image: ImageSource, prompt: str | None = None) -> Kept:
    """Which patches of a picture are left in the cache of the decoder's last layer.

    Raises:
        InputError: not a picture; or the method reads the prompt, and there is none, or too long a one.
    """
    reduction = vlm.manifest.reduction
    if prompt is None and (vlm.reads_prompt or reduction.in_decoder):
        raise InputError(
            f"what {reduction.method} keeps of a picture depends on the prompt, and there is none",
            fix='give it: --prompt "…"',
        )
    picture = load_image(image)
    features = vlm.encode_image(picture, prompt)
    index = features.keep_index
    if reduction.in_decoder:
        assert prompt is not None
        chat = vlm.chat()
        chat.ask(prompt, [features], max_new_tokens=1)
        assert chat.kept is not None
        index = index[chat.kept]
    return Kept(
        picture,
        view_of(vlm, picture),
        patches_of(index, reduction.kept_aside),
        bool(index[0] < reduction.kept_aside),
    )


def view_of(vlm: Vlm, picture: Image.Image) -> View:
    """Where the patches of a bundle's tower lie in an upright picture."""
    manifest = vlm.manifest
    size = patch_size(vlm.folder, manifest)
    return view(vlm.processor.crop_box(*picture.size), manifest.image_size, size, manifest.reduction.grid)


def patch_size(folder: Path, manifest: Manifest) -> int:
    """Side of a patch in pixels of what the tower sees.

    Raises:
        BundleError: config.json is damaged, or says another than the grid has room for.
    """
    (rows, columns), side = manifest.reduction.grid, manifest.image_size
    config = documents.read_object(
        folder / manifest.require("config.json"), error=BundleError, fix="copy or export the bundle again"
    )
    vision = config.get("vision_config")
    size = vision.get("patch_size", side / rows) if isinstance(vision, dict) else side / rows
    # config.json may leave out what is transformers' default: then only a grid without a rest tells.
    if (
        not isinstance(size, int | float)
        or not 1 <= size <= side
        or size != int(size)
        or (side // size,) * 2 != (rows, columns)
    ):
        raise BundleError(
            f"{folder}: patches of {size} px do not make a grid of {rows}×{columns} in {side} px",
            fix="give vision_config.patch_size in the bundle's config.json, or export it again",
        )
    return int(size)
