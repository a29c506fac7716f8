"""A loaded bundle: its graphs, and the steps from an image and a prompt to what the decoder takes. Several threads share it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from fico_export import documents
from fico_export.bundle import files, generation_config, graph_names, newline
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import Profile
from fico_export.devices.memory import give_back
from fico_export.errors import BundleError, ConfigError, EngineError, InputError
from fico_export.runtime.backends import AUTO
from fico_export.runtime.backends.base import AnyDecoder, Graphs, Session, loading_steps
from fico_export.runtime.backends.choice import choose
from fico_export.runtime.inputs.clip_text import ClipText
from fico_export.runtime.inputs.embedding import open_table, rows
from fico_export.runtime.inputs.images import ImageFeatures, ImageSource, Pixels, Range, Video, load_image
from fico_export.runtime.inputs.layout import Layout
from fico_export.runtime.inputs.layouts.base import Size
from fico_export.runtime.inputs.preprocess import ImageProcessor
from fico_export.runtime.inputs.prompt import IMAGE, PromptFormatter
from fico_export.runtime.inputs.tile_runs import run_tiles
from fico_export.runtime.inputs.video import frames_of
from fico_export.runtime.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from typing_extensions import Self

_Graph = TypeVar("_Graph")


class OpenBundle:
    """The graphs of a bundle, for any number of threads: one runs the model, the others wait for their turn.

    Args:
        folder: of the bundle.
        backend: one that `fico list backends` names, or auto.
        threads: CPU threads within an operator; 0 for one per core.
        lazy: load each graph when it is first used, for those who use only some.
        low_memory: load each graph when it is needed, in the place of the one before: the tower and the decoder are never in
            memory together, and each image takes the time to load them.

    Attributes:
        lock: held by the thread that runs the model.

    Raises:
        BundleError: the bundle is missing, damaged, or from a newer version.
        ConfigError: the backend cannot run here, or the graphs do not fit into memory.
        EngineError: a graph cannot be loaded.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: str = AUTO,
        threads: int = 0,
        lazy: bool = False,
        low_memory: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.lock = threading.RLock()
        self._open: dict[str, Any] = {}
        self._embed: Session | None = None
        self._closed = False
        self.manifest = Manifest.load(self.folder)
        files.check(self.folder, self.manifest, full=False)
        chosen = choose(backend, self.folder, self.manifest)
        self.backend = chosen.name
        self._graphs: Graphs | None = chosen.open(self.folder, self.manifest, threads)
        self._low_memory = low_memory
        self._table = open_table(self.folder, self.manifest) if self.manifest.embedding else None
        self.layout = Layout.of(self.manifest)
        self.formatter = PromptFormatter(
            _read(self.folder / self.manifest.require("tokenizer.json")),
            self._chat_template(),
            self.manifest.tokens,
        )
        self.processor = ImageProcessor.from_config(
            _read_json(self.folder / self.manifest.require("preprocessor_config.json"))
        )
        self.generation_config = generation_config.load(
            self.folder / self.manifest.require("generation_config.json")
        )
        self._newline = newline.load(self.folder, self.manifest)
        inputs = self.manifest.graph(self.manifest.profile.graph).inputs
        self._text_inputs = {
            i.name: i.shape for i in inputs if i.name not in ("pixel_values", graph_names.VALID)
        }
        if not lazy:
            self._graphs.require_memory(loading_steps(self.manifest), low_memory=low_memory)
        if not lazy and not low_memory:
            _ = [self._vision(profile) for profile in self.manifest.profiles], self.decoder
            if "clip_text" in self._text_inputs:
                _ = self.clip_text

    @property
    def decoder(self) -> AnyDecoder:
        """The decoder graph; whoever runs it beside other threads does so within `owned()`.

        Raises:
            ConfigError: the bundle was closed.
            EngineError: it cannot be loaded.
        """
        return self._opened("decoder", lambda graphs: graphs.decoder())

    @property
    def clip_text(self) -> ClipText:
        """CLIP's text tower, of a bundle whose method compares the image with the prompt in CLIP's space."""
        return self._opened(
            graph_names.CLIP_TEXT,
            lambda graphs: ClipText(self.folder, self.manifest, graphs.session(graph_names.CLIP_TEXT)),
        )

    def _vision(self, profile: Profile) -> Session:
        return self._opened(profile.graph, lambda graphs: graphs.session(profile.graph))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the model for several steps that belong together; other threads wait.

        Raises:
            ConfigError: the bundle was closed.
        """
        with self.lock:
            self._require_open()
            yield

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigError(
                f"the bundle {self.folder} was closed",
                fix=f'load it again: fico_export.load("{self.folder}")',
            )

    def close(self) -> None:
        """Give the graphs back, after the step that is under way; keys and values go with their conversations. A second time changes nothing."""
        with self.lock:
            self._closed = True
            self._let_go()
            self._graphs = self._table = self._embed = None

    def __enter__(self) -> Self:
        """The bundle itself, closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _opened(self, name: str, load: Callable[[Graphs], _Graph]) -> _Graph:
        """A graph, loaded when it is first needed; where memory is short, in the place of the one before."""
        with self.lock:
            if name not in self._open:
                self._require_open()
                if self._low_memory:
                    self._let_go()
                assert self._graphs is not None  # until it is closed
                self._open[name] = load(self._graphs)
            graph: _Graph = self._open[name]
            return graph

    def _let_go(self) -> None:
        decoder: AnyDecoder | None = self._open.get("decoder")
        self._open.clear()
        if decoder is not None:
            decoder.close()

    def preprocess(
        self, image: ImageSource | Video, *, image_range: Range | None = None, among: int = 1
    ) -> Pixels:
        """An image as the tower is shown it; other arguments as for `encode_image`.

        Raises:
            InputError: not an image, or too large; or the bundle takes no prompt with so many, or no video.
        """
        if isinstance(image, Video):
            videos = self.layout.videos
            frames = frames_of(image, videos.sampled, image_range)
            return videos.video_pixels(frames, self.processor, self.formatter.text_ids)
        layout = self.layout.among(among)
        return layout.pixels(load_image(image, image_range=image_range), self.processor)

    @property
    def reads_prompt(self) -> bool:
        """Whether what is kept of an image before the decoder depends on the question."""
        return bool(self._text_inputs)

    def read_prompt(self, prompt: str | None) -> dict[str, npt.NDArray[Any]]:
        """What the vision graph takes of the prompt beside the image; nothing, unless the bundle's method reads it.

        Raises:
            InputError: the graph takes a prompt and there is none, or it is too long.
        """
        if not self.reads_prompt:
            return {}
        if prompt is None:
            raise InputError(
                f"this bundle's method, {self.manifest.reduction.method}, reads the prompt with the image, and there is none",
                fix='give the question too: encode_image(image, prompt="…")',
            )
        prompt = prompt.replace(IMAGE, "")
        ids = self.formatter.text_ids(prompt)
        feeds: dict[str, npt.NDArray[Any]] = {}
        if "text_embeds" in self._text_inputs:
            length = int(self._text_inputs["text_embeds"][1])
            if len(ids) > length:
                raise InputError(
                    f"the prompt has {len(ids)} tokens, and this bundle's vision graph takes {length}",
                    fix=f"shorten it, or export with --set text_length={len(ids)} or more",
                )
            filled = np.arange(length) < len(ids)
            embeds = self.embed([*ids, *[0] * (length - len(ids))]) * filled[:, None]
            feeds |= {"text_embeds": embeds[None], "text_mask": filled[None].astype(np.int64)}
        if "clip_text" in self._text_inputs:
            with self.owned():
                feeds["clip_text"] = self.clip_text(prompt)
        return feeds

    def feeds(
        self, pixels: Pixels, text: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of the vision graph by name, `pixel_values` with all tiles; arguments and errors as of `encode_pixels`."""
        feeds = {"pixel_values": pixels.values, **(self.read_prompt(None) if text is None else text)}
        if self.layout.masked:
            valid = self.layout.of_kind(pixels.kind).valid(pixels.size)
            feeds[graph_names.VALID] = valid.astype(np.int64)
        return feeds

    def encode_pixels(
        self, pixels: Pixels, text: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> ImageFeatures:
        """Run the vision graph on what `preprocess` made of an image and `read_prompt` of the prompt.

        Raises:
            InputError: no `Pixels`.
        """
        if not isinstance(pixels, Pixels):
            raise InputError(
                f"pixels are a {type(pixels).__name__}, and where an image stands in a prompt depends on its size",
                fix="give what preprocess(image) returns",
            )
        layout = self.layout.of_kind(pixels.kind)
        text = self.read_prompt(None) if text is None else text
        feeds, profile = self.feeds(pixels, text), layout.profile(pixels.size)
        with self.owned():
            session = self._vision(profile)
            outputs = run_tiles(lambda given: self._run(session, "vision graph", given), profile, feeds)
            give_back()
        features, keep_index, *planes = outputs
        features, keep_index = layout.shown(pixels.size, features, keep_index)
        block = layout.place(pixels.size, keep_index)
        # The positions too: two images of other shapes can become the same pixels.
        content = b"".join(array.tobytes() for array in (*feeds.values(), block.offsets))
        digest = hashlib.sha256(content).hexdigest()
        row = None if self._newline is None else self._newline.astype(features.dtype)
        added = planes[0] if planes else None
        again = None if pixels.image is None else (pixels.image, text)
        kind = pixels.kind
        return ImageFeatures(features, keep_index, digest, pixels.size, block, added, row, kind, again)

    def as_among(self, image: ImageFeatures, count: int) -> ImageFeatures:
        """An encoded image as it stands in a prompt of so many: encoded again where the model shows it otherwise there.

        Raises:
            InputError: it was encoded for a prompt of another number, and cannot be encoded again; or as of `preprocess`.
        """
        layout = self.layout.among(count)
        if image.kind in (layout.kind, "video"):
            return image
        if image.again is None:
            if image.kind == "alone":
                return image  # of another bundle: whoever takes it compares its shape
            raise InputError(
                "an image was encoded as one of several, and stands alone in this prompt, where the model shows it otherwise",
                fix="encode it for a prompt of its own: encode_image(image)",
            )
        source, text = image.again
        return self.encode_pixels(layout.pixels(source, self.processor), text)

    def encode_image(
        self,
        image: ImageSource | Video,
        prompt: str | None = None,
        *,
        image_range: Range | None = None,
        among: int = 1,
    ) -> ImageFeatures:
        """Features [K, D] and kept positions [K] of an image: to ask about it several times, or for a decoder of your own.

        Args:
            image: the image, or a video.
            prompt: the question to be asked, for a bundle whose method reads it to choose what it keeps.
            image_range: of a grey image of more than 8 bits, the values that become black and white; its own by default.
            among: images that the prompt is to show; some models show one of several otherwise. A conversation that is given
                what stands alone encodes it again where it has to.

        Raises:
            InputError: not an image, or too large; or no prompt where the bundle reads it, or too long a one; or the bundle takes
                no prompt with so many images.
        """
        text = self.read_prompt(prompt)
        return self.encode_pixels(self.preprocess(image, image_range=image_range, among=among), text)

    def embed(self, token_ids: Sequence[int]) -> npt.NDArray[Any]:
        """Embeddings [S, C] of token ids, read from the table."""
        table = self._table  # None once the bundle is closed, which the graph then says
        return self.embed_by_graph(token_ids) if table is None else rows(table, token_ids)

    def embed_by_graph(self, token_ids: Sequence[int]) -> npt.NDArray[Any]:
        """The same by the bundle's graph, as other runtimes do it."""
        ids = np.asarray([token_ids], np.int64)
        with self.owned():
            if self._embed is None:
                assert self._graphs is not None
                self._embed = self._graphs.embedding()
            result: npt.NDArray[Any] = self._run(self._embed, "embedding graph", {"input_ids": ids})[0][0]
        return result

    def sampler(self, sampling: Sampling | None, prompt_ids: Sequence[int], sizes: Sequence[Size]) -> Sampler:
        """What chooses the tokens of an answer to a prompt with one image token for each of the images of these sizes.

        The rules of generation_config.json read the prompt that transformers' ``generate`` has: all N visual tokens an image.
        """
        ids = np.asarray(self.layout.whole_ids(prompt_ids, sizes), np.int64)
        return Sampler(sampling or Sampling(), self.generation_config, ids, self.manifest.tokens.eos_ids)

    def _run(self, session: Session, what: str, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            return session.run(None, feeds)
        except EngineError:
            raise
        except Exception as error:  # a backend's library raises classes of its own
            raise EngineError(
                f"the {what} failed: {error}", fix="free memory, or run `fico verify` on the bundle"
            ) from error

    def _chat_template(self) -> str | None:
        name = "chat_template.jinja"
        return _read(self.folder / name) if name in self.manifest.files else None


def _read(path: Path) -> str:
    return documents.read_text(path, error=BundleError, fix="export or copy the bundle again")


def _read_json(path: Path) -> dict[str, Any]:
    return documents.read_object(path, error=BundleError, fix="export or copy the bundle again")
