"""What a bundle keeps of an image: runs the vision graph, and prefill where the method acts inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.errors import InputError
from fico_export.report.geometry import View, patches_of, view
from fico_export.runtime.inputs.images import ImageSource, load_image
from fico_export.runtime.vlm import Vlm


@dataclass(frozen=True)
class Kept:
    """What is left of an image.

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
        """Kept patches that show nothing of the image: those in padding."""
        shown = self.view.patch_of_pixels(*self.picture.size)
        return int(np.isin(self.patches, shown, invert=True).sum())


def kept(vlm: Vlm, image: ImageSource, prompt: str | None = None) -> Kept:
    """Which patches of an image are left in the cache of the decoder's last layer.

    Raises:
        InputError: not an image; or the method reads the prompt, and there is none, or too long a one.
    """
    reduction = vlm.manifest.reduction
    if prompt is None and (vlm.reads_prompt or reduction.in_decoder):
        raise InputError(
            f"what {reduction.method} keeps of an image depends on the prompt, and there is none",
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
        # The decoder counts them as the prompt has them, which of several tiles is row by row of the whole.
        visual = features.block.visual[features.block.visual >= 0]
        index = np.sort(index[visual[chat.kept]])
    profile = vlm.layout.profile(picture.size)
    patches = patches_of(index, profile)
    return Kept(picture, view_of(vlm, picture), patches, len(patches) < len(index))


def view_of(vlm: Vlm, picture: Image.Image) -> View:
    """Where the cells of a bundle's tower lie in an upright image."""
    tiles = vlm.layout.tiles(picture.size)
    shown = [(tile, vlm.processor.crop_box(*tile.size)) for tile in tiles]
    return view(vlm.layout.profile(picture.size), shown)
