"""A prompt token by token: where its images stand, which positions it takes, and whether the model has room for it.

Letters as in `layouts/base.py`; S tokens of a prompt, images expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import LayoutRecord, Profile
from fico_export.errors import BundleError, InputError
from fico_export.runtime.backends.base import require_rows
from fico_export.runtime.inputs import layouts
from fico_export.runtime.inputs.images import ImageFeatures, Pixels
from fico_export.runtime.inputs.laid_out import LaidOut
from fico_export.runtime.inputs.layouts.base import NONE, Block, Clip, Features, Index, Kind, Size, Tile
from fico_export.runtime.inputs.positions import POLICIES
from fico_export.runtime.inputs.preprocess import ImageProcessor
from fico_export.runtime.inputs.video import Frames


class Layout:
    """How a model's prompts show images: a rule, its numbers, and the policy for positions.

    Args:
        record: rule and numbers.
        profiles: shapes of image.
        positions: name of the policy.
        image_id: the image token, of which a template gives one an image.
        masked: whether the vision graph is told which tokens show padding.
        video_id: the video token, of which a template gives one a video; None where there is none.

    Attributes:
        kind: of what it lays out; several images are as one alone where the model shows them so.

    Raises:
        BundleError: there is no such rule.
    """

    def __init__(
        self,
        record: LayoutRecord,
        profiles: Sequence[Profile],
        positions: str,
        image_id: int,
        masked: bool = False,
        video_id: int | None = None,
    ) -> None:
        self.axes, self._all, self._image_id, self.masked = record.axes, profiles, image_id, masked
        self._record, self._rule = record, layouts.get(record.rule)
        self._policy, self._video_id = POLICIES[positions], video_id
        self._profiles = self._rule.among(profiles, record, "alone")
        self.kind: Kind = "alone"
        self._of_kinds: dict[Kind, Layout] = {"alone": self, "several": self}
        for kind in ("several", "video"):
            others = self._rule.among(profiles, record, kind)
            if others != self._profiles:
                found = self._of_kinds[kind] = copy(self)
                found.kind, found._profiles = kind, others

    @classmethod
    def of(cls, manifest: Manifest) -> Layout:
        """That of a bundle.

        Raises:
            BundleError: the manifest names a rule that there is not, or gives it profiles or numbers that it does not take.
        """
        record, positions = manifest.layout, manifest.reduction.positions
        vision = manifest.graphs.get(manifest.profile.graph)
        masked = vision is not None and graph_names.VALID in vision.shapes()
        tokens = manifest.tokens
        layout = cls(record, manifest.profiles, positions, tokens.image_id, masked, tokens.video_id)
        fix = "export or copy the bundle again"
        for profile in manifest.profiles:
            if problem := layout._rule.problem(profile, record):
                raise BundleError(
                    f"the rule {record.rule} cannot show images of the profile {profile.name} of {manifest.name}: {problem}",
                    fix=fix,
                )
            block = layout._whole(profile, (1, 1))
            if (largest := int(block.ids.max())) >= manifest.decoder.vocab_size:
                raise BundleError(
                    f"{manifest.name} shows an image by the token {largest}, and its decoder has {manifest.decoder.vocab_size}",
                    fix=fix,
                )
        return layout

    def among(self, count: int) -> Layout:
        """That of images in a prompt with so many; all else here is of an image alone in its prompt.

        Raises:
            InputError: the bundle has no profile for so many.
        """
        if not self.takes(count):
            names = ", ".join(profile.name for profile in self._all)
            raise InputError(
                f"{count} images in a prompt: this model shows each of several images as one tile, and this bundle is for {names}",
                fix="ask about one image, or export with --profile 1 beside the others",
            )
        return self._of_kinds["several" if count > 1 else "alone"]

    def takes(self, count: int) -> bool:
        """Whether a prompt can have so many images."""
        return bool(self._of_kinds["several" if count > 1 else "alone"]._profiles)

    @property
    def videos(self) -> Layout:
        """That of videos.

        Raises:
            InputError: the bundle takes none.
        """
        found = self._of_kinds["video"]
        if not found._profiles:
            raise InputError(
                "this bundle takes no video",
                fix="give single frames as images; or export with --frames N, of a model that sees videos",
            )
        return found

    @property
    def frames(self) -> int:
        """Frames of a video; 0 where the bundle takes none."""
        return sum(profile.tiles * profile.frames for profile in self._of_kinds["video"]._profiles)

    def sampled(self, total: int) -> list[int]:
        """Which of so many frames of a video are taken.

        Raises:
            InputError: there are too few.
        """
        if total < self.frames:
            fewer = max(total - total % self._profiles[0].frames, 2)
            raise InputError(
                f"the video has {total} frames, and this bundle takes {self.frames}",
                fix=f"give a longer one, or export with --frames {fewer} or fewer",
            )
        return self._rule.sample(total, self.frames)

    def of_kind(self, kind: Kind) -> Layout:
        """That of what was made for this kind."""
        return self._of_kinds[kind]

    def profile(self, size: Size) -> Profile:
        """The profile that an image of this size takes."""
        return self._rule.choose(self._profiles, size, self._record)

    def pixels(self, image: Image.Image, processor: ImageProcessor) -> Pixels:
        """What the tower is shown of an upright image.

        Raises:
            InputError: as of the processor; or fewer tokens show the image than are to be kept.
        """
        if self.masked:
            self.valid(image.size)
        tiles = self._rule.cut(image, self.profile(image.size), self._record, processor.resample)
        values = np.concatenate([processor(tile) for tile in tiles])
        other = self.kind == "alone" and self._of_kinds["several"] is not self
        return Pixels(values, image.size, self.kind, image if other else None)

    def video_pixels(
        self, frames: Frames, processor: ImageProcessor, encode: Callable[[str], list[int]]
    ) -> Pixels:
        """What the tower is shown of a video's frames, each resized to a tile without keeping its shape.

        Args:
            frames: as many as the bundle takes.
            processor: of the images that they become.
            encode: a text alone → its token ids.
        """
        profile, size = self._profiles[0], frames.images[0].size
        resized = (frame.resize(profile.size[::-1], resample=processor.resample) for frame in frames.images)
        if self._rule.time is not None:
            starts = range(0, len(frames.seconds), profile.frames)
            of_tiles = [frames.seconds[start : start + profile.frames] for start in starts]
            size = Clip(size, [encode(self._rule.time(seconds)) for seconds in of_tiles])
        return Pixels(np.concatenate([processor(frame) for frame in resized]), size, self.kind)

    def tiles(self, size: Size) -> list[Tile]:
        """The parts of an image that it is shown."""
        return self._rule.tiles(size, self.profile(size))

    def whole(self, size: Size) -> Block:
        """All visual tokens of an image that the prompt shows, as the model has it without a reduction."""
        return self._whole(self.profile(size), size)

    def valid(self, size: Size) -> npt.NDArray[np.bool_]:
        """[T, N] which tokens of each tile show something of an image, and not padding.

        Raises:
            InputError: of tiles that are reduced together, fewer do than are to be kept.
        """
        profile = self.profile(size)
        found = self._rule.valid(profile, size).reshape(profile.tiles, -1)
        first = 0
        for tiles, keep in profile.shares:
            if (shown := int(found[first : first + tiles].sum())) < keep:
                raise InputError(
                    f"an image of {size[0]}×{size[1]} is so thin that {shown} tokens of {tiles} tiles show it, and {keep} are to be kept",
                    fix="crop it to a part that is less long and thin; or export with a smaller --keep, or without --unpad",
                )
            first += tiles
        return found

    def shown(self, size: Size, features: Features, index: Index) -> tuple[Features, Index]:
        """What of the vision graph's features [K, D] and kept index [K] stands in the prompt."""
        resample = self._rule.resampled(self.profile(size), size, self._record)
        if resample is not None:
            features = resample(features)
            index = np.arange(len(features))
        stands = np.isin(index, self.whole(size).visual)
        return (features, index) if stands.all() else (features[stands], index[stands])

    def place(self, size: Size, keep_index: Index) -> Block:
        """What stands for an image of which `keep_index` [K] is left, at the positions that the policy gives it."""
        profile = self.profile(size)
        whole = self._whole(profile, size)
        stays = self._rule.stays(profile, whole, keep_index, self._record)
        return self._policy.place(whole.kept(keep_index, stays))

    def features(self, size: Size) -> int:
        """K of an image, known before it is encoded."""
        return self._features(self.profile(size), self.whole(size))

    def rows(self, size: Size) -> int:
        """R at most, likewise known before: which tokens are kept can leave fewer."""
        whole = self.whole(size)
        count = self._features(self.profile(size), whole)
        return count + self._rule.beside(whole, count, self._record)

    def span(self, size: Size) -> int:
        """Position ids that an image takes at most, likewise."""
        return self._policy.span(self.whole(size).span, self.rows(size))

    @staticmethod
    def _features(profile: Profile, whole: Block) -> int:
        return min(profile.handed_over, int((whole.visual >= 0).sum()))

    def whole_ids(self, ids: Sequence[int], sizes: Sequence[Size]) -> list[int]:
        """The prompt as transformers' ``generate`` has it: N visual tokens for each token of an image or a video.

        Raises:
            InputError: there are more or fewer such tokens than sizes; or as of `among` and `videos`.
        """
        layouts = self.of_prompt(ids)
        if len(layouts) != len(sizes):
            raise InputError(
                f"the prompt has {len(layouts)} image tokens, and {len(sizes)} images were given",
                fix="give a size for each image token",
            )
        shown = iter(zip(layouts, sizes, strict=True))
        found: list[int] = []
        for token in ids:
            if token in (self._image_id, self._video_id):
                layout, size = next(shown)
                block = layout.whole(size).ids
                found += np.where(block == NONE, token, block).tolist()
            else:
                found.append(token)
        return found

    def of_prompt(self, ids: Sequence[int]) -> list[Layout]:
        """That of each image and video of a prompt with one token for each.

        Raises:
            InputError: as of `among` and `videos`.
        """
        ids = list(ids)
        images = self.among(ids.count(self._image_id))
        kinds = [token == self._video_id for token in ids if token in (self._image_id, self._video_id)]
        return [self.videos if video else images for video in kinds]

    def lay_out(self, ids: Sequence[int], images: Sequence[ImageFeatures]) -> LaidOut:
        """Keys, ids and position ids of a prompt with one token for each of the images, videos among them."""
        shown = iter(images)
        keys: list[Hashable] = []
        parts: list[Block] = []
        features = 0
        for is_image, run in groupby(ids, key=lambda token: token in (self._image_id, self._video_id)):
            tokens = list(run)
            blocks = [next(shown) for _ in tokens] if is_image else [None]
            for image in blocks:
                block = Block.of_text(tokens, self.axes) if image is None else image.block
                digest = "" if image is None else image.digest
                keys += [
                    (digest, row) if token == NONE else token
                    for token, row in zip(block.ids.tolist(), block.visual.tolist(), strict=True)
                ]
                visual = np.where(block.visual < 0, block.visual, block.visual + features)
                parts.append(replace(block, visual=visual))
                features += 0 if image is None else len(image.features)
        whole = Block.joined(parts)
        return LaidOut(keys, whole.ids, whole.visual, whole.offsets, whole.span)

    def _whole(self, profile: Profile, size: Size) -> Block:
        return self._rule.block(profile, size, self._record)


def require_room(manifest: Manifest, layout: Layout, ids: Sequence[int], sizes: Sequence[Size]) -> int:
    """Refuse a prompt that leaves no room for an answer, before its images are encoded.

    Args:
        manifest: of the bundle.
        layout: of the bundle.
        ids: one image token an image.
        sizes: of the images.

    Returns:
        S.

    Raises:
        InputError: it takes more positions than the model has, or more rows than a static cache; or as of `Layout.among`.
    """
    text, context = len(ids) - len(sizes), manifest.decoder.context
    shown = list(zip(layout.of_prompt(ids), sizes, strict=True))
    length = text + sum(of.rows(size) for of, size in shown)
    if manifest.cache_rows is not None:
        require_rows(0, length, manifest.cache_rows)
    needed = max(length, text + sum(of.span(size) for of, size in shown))
    if needed >= context:
        each = max((of.features(size) for of, size in shown), default=0)
        raise InputError(
            f"the prompt takes {needed} positions, {each} tokens an image; the model has {context}",
            fix="shorten the prompt, give fewer images, or export with a smaller --keep",
        )
    return length
