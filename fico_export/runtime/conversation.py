"""Conversations: a history, and a sequence for each of its turns. The same for every backend."""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.errors import ConfigError, InputError
from fico_export.runtime import scheduler
from fico_export.runtime.answer import Answer, Stream, Wish
from fico_export.runtime.inputs.images import ImageFeatures, Images, Pixels, Range, image_list, is_video
from fico_export.runtime.inputs.laid_out import LaidOut
from fico_export.runtime.inputs.layout import require_room
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.open_bundle import OpenBundle
from fico_export.runtime.prefix import Prefix
from fico_export.runtime.sampling import Sampler, Sampling
from fico_export.runtime.sequence import Sequence as Running
from fico_export.runtime.streaming import StopStrings


@dataclass(frozen=True)
class _History:
    """What was said and shown: replaced as a whole, so that no half of a turn is ever in it."""

    messages: list[Message] = field(default_factory=list)
    features: list[ImageFeatures] = field(default_factory=list)
    # Keys of the prompt that was reduced in the decoder: what was kept of its image holds for all turns after it.
    reduced: list[Hashable] = field(default_factory=list)


@dataclass(frozen=True)
class _Turn:
    """A turn that is ready to run: the conversation up to its question, the images encoded.

    Attributes:
        together: how many of the prompt's first tokens are reduced together in the decoder.
        sampler: chooses the tokens of the answer.
        stops: strings that end it.
        limit: most tokens that it may have.
        answer: to be filled.
        clock: of its stages.
    """

    asked: _History
    prompt: LaidOut
    together: int
    sampler: Sampler
    stops: StopStrings
    limit: int
    answer: Answer
    clock: _Clock


class Conversation:
    """Turns that share a KV cache: each prefills only what the turns before have not.

    A turn enters the history when its answer is whole: what fails, is refused, interrupted or left early leaves the history as
    it was, and the next turn answers as if it had never been. One answer is made at a time: a stream that is open must be read
    to its end, stopped or closed before the next turn; `ask` from several threads queues.

    Args:
        bundle: that answers.
        system: a system message before all turns.

    Raises:
        ConfigError: the bundle's chat template takes no system message.
    """

    def __init__(self, bundle: OpenBundle, system: str | None = None) -> None:
        self._bundle = bundle
        self._start = _History() if system is None else _History([Message("system", system)])
        if system is not None:
            bundle.formatter.require_system(system)
        self._history = self._start
        self._prefix = Prefix(bundle)
        self._open: weakref.ref[Stream] | None = None
        self._closed = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said: question and answer of each whole turn, after the system message where there is one."""
        return tuple(self._history.messages)

    @property
    def images(self) -> tuple[ImageFeatures, ...]:
        """What was shown, in the order of the messages."""
        return tuple(self._history.features)

    @property
    def kept(self) -> npt.NDArray[np.int64] | None:
        """[K] which of the tokens handed over for the image the decoder kept, where it reduces; None before it did."""
        return self._prefix.kept

    @property
    def cache_lengths(self) -> list[int]:
        """Tokens in the KV cache of each layer; they differ where the decoder reduces visual tokens."""
        return self._prefix.lengths

    def ask(
        self,
        prompt: str,
        images: Images = (),
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        image_range: Range | None = None,
    ) -> Answer:
        """The next turn, answered at once; arguments as for `Vlm.stream`. Other threads wait until the answer is whole."""
        with self._bundle.owned():
            stream = self.stream(
                prompt,
                images,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop,
                image_range=image_range,
            )
            with stream:
                for _ in stream:
                    pass
        return stream.answer

    def stream(
        self,
        prompt: str,
        images: Images = (),
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        image_range: Range | None = None,
    ) -> Stream:
        """The next turn, answered piece by piece; arguments as for `Vlm.stream`.

        Raises:
            InputError: an image or the prompt cannot be used; the conversation stays as it was.
            ConfigError: another answer of this conversation is under way, or it was closed.
        """
        with self._claimed():
            turn = self._turn(prompt, images, max_new_tokens, sampling, stop, image_range)
            wish = Wish()
            stream = Stream(self._run(turn, wish), turn.answer, wish)
            self._open = weakref.ref(stream)
        return stream

    def begin(
        self,
        prompt: str,
        images: Images = (),
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        image_range: Range | None = None,
    ) -> Running:
        """The next turn as a sequence, for `scheduler.run` to run beside others; the conversation does not remember it.

        It uses the conversation's KV cache, and cannot go on when the conversation begins another turn or is closed. Arguments and
        errors as of `stream`.
        """
        with self._claimed():
            return self._running(self._turn(prompt, images, max_new_tokens, sampling, stop, image_range))

    def restart(self) -> None:
        """Forget all turns, but not what was computed: the next first turn reuses the images it shares with the last.

        Raises:
            ConfigError: an answer of this conversation is under way, or it was closed.
        """
        with self._claimed():
            self._history = self._start

    def close(self) -> None:
        """Leave the answer that is under way, and give the KV cache back; the bundle stays loaded. A second time changes nothing."""
        self._closed = True
        if (stream := self._under_way()) is not None:
            stream.close()
        with self._bundle.lock:
            self._prefix.forget()

    def __enter__(self) -> Conversation:
        """The conversation itself, closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Own the model to begin a turn; refuse to where another is under way."""
        with self._bundle.owned():
            self._require_open()
            if self._under_way() is not None:
                raise ConfigError(
                    "an answer of this conversation is still under way",
                    fix="read its stream to the end, or call .stop() or .close() on it; another thread begins vlm.chat()",
                )
            yield

    def _under_way(self) -> Stream | None:
        stream = None if self._open is None else self._open()
        return None if stream is None or stream.closed else stream

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigError("this conversation was closed", fix="begin another: vlm.chat()")

    def _turn(
        self,
        prompt: str,
        images: Images,
        max_new_tokens: int | None,
        sampling: Sampling | None,
        stop: Sequence[str],
        image_range: Range | None = None,
    ) -> _Turn:
        """The next turn, its images encoded."""
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}", fix="give at least 1")
        stops = StopStrings(stop)
        answer, clock = Answer(), _Clock()
        shown, history, bundle = image_list(images, image_range), self._history, self._bundle
        shown = sorted(shown, key=is_video)  # as a template has them: images, then videos
        videos = sum(map(is_video, shown))
        images_in_all = len(shown) - videos + sum(not is_video(image) for image in history.features)
        given = [
            image if isinstance(image, ImageFeatures) else bundle.preprocess(image, among=images_in_all)
            for image in shown
        ]
        # Laid out with the images' sizes alone, so that a prompt too long is refused before the slow part.
        messages = [*history.messages, Message("user", prompt, len(given) - videos, videos)]
        self._require_one_image(len(history.features) + len(given))
        sizes = [image.size for image in (*history.features, *given)]
        ids = bundle.formatter.encode(messages)
        answer.prompt_tokens = require_room(bundle.manifest, bundle.layout, ids, sizes)
        sampler = bundle.sampler(sampling, ids, sizes)
        answer.stages_ms["preprocess"] = clock.lap_ms()
        encoded = all(isinstance(image, ImageFeatures) for image in given)
        text = {} if encoded else bundle.read_prompt(prompt)
        before = [bundle.as_among(image, images_in_all) for image in history.features]
        features = [*before, *(self._encode(image, text, images_in_all) for image in given)]
        answer.stages_ms["vision"] = clock.lap_ms()

        answer.visual_tokens = sum(len(image.features) for image in features)
        laid_out = bundle.layout.lay_out(ids, features)
        together = self._together(laid_out.keys)
        asked = _History(messages, features, laid_out.keys[:together])
        stops = stops if stop else StopStrings(sampler.stops)
        limit = max_new_tokens or sampler.new_tokens
        return _Turn(asked, laid_out, together, sampler, stops, limit, answer, clock)

    def _together(self, keys: list[Hashable]) -> int:
        """How many of a prompt's first tokens are reduced together: as many as in the turn before it that did so, if any."""
        if not (self._bundle.manifest.reduction.in_decoder and any(isinstance(key, tuple) for key in keys)):
            return 0
        before = self._history.reduced
        return len(before) if before and keys[: len(before)] == before else len(keys)

    def _encode(
        self, image: ImageFeatures | Pixels, text: Mapping[str, npt.NDArray[Any]], count: int
    ) -> ImageFeatures:
        if isinstance(image, Pixels):
            return self._bundle.encode_pixels(image, text)
        image = self._bundle.as_among(image, count)
        manifest = self._bundle.manifest
        layout = self._bundle.layout.of_kind(image.kind)
        expected = (layout.features(image.size), manifest.decoder.hidden_size)
        there = len(image.block.ids)
        if image.features.shape != expected or there != len(layout.place(image.size, image.keep_index).ids):
            raise InputError(
                f"an image's features have the shape {image.features.shape}, this bundle's are {expected}",
                fix="encode the image with the bundle that is to answer",
            )
        return image

    def _run(self, turn: _Turn, wish: Wish) -> Generator[str]:
        answer = turn.answer
        if wish.stop or wish.leave:
            answer.finish_reason = "stopped" if wish.stop else ""
            return
        running = self._running(turn)
        while not wish.leave:
            if wish.stop:
                self._enter(turn, answer, "stopped")
                return
            with self._bundle.owned():  # another thread may have left the answer while this one waited
                if wish.leave:
                    return
                ((piece, reason),) = scheduler.step(self._bundle, [running])
            if running.error is not None:
                raise running.error
            if wish.leave:
                return
            if reason:  # before the piece is shown: whoever leaves after the last one has had the whole
                self._enter(turn, answer, reason)
            if piece:
                yield piece
            if reason:
                return

    def _running(self, turn: _Turn) -> Running:
        """The turn, ready to run what of its prompt the cache does not hold."""
        self._require_open()
        prompt = turn.prompt
        turn.answer.cached_tokens = known = self._prefix.share(prompt.keys, turn.together)
        rows = prompt.rows(self._bundle.embed, turn.asked.features, known)
        turn.answer.stages_ms["embed"] = turn.clock.lap_ms()
        return Running(
            self._bundle,
            self._prefix,
            prompt.keys[known:],
            rows,
            prompt.next_position,
            turn.sampler,
            turn.stops,
            turn.limit,
            turn.answer,
            visual_rows=prompt.visual_rows,
            together=turn.together if known < turn.together else 0,
        )

    def _enter(self, turn: _Turn, answer: Answer, reason: str) -> None:
        """The answer is whole: the turn is part of the history, unless it was stopped before a word was said."""
        answer.finish_reason = reason
        if reason != "stopped" or answer.text:
            messages = [*turn.asked.messages, Message("assistant", answer.text)]
            self._history = replace(turn.asked, messages=messages)

    def _require_one_image(self, count: int) -> None:
        if self._bundle.manifest.reduction.in_decoder and count > 1:
            raise InputError(
                f"{count} images in a conversation; this bundle reduces inside the decoder, which takes one",
                fix="start a new conversation, or export with a method that acts before the decoder",
            )


class _Clock:
    """Milliseconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        now = time.perf_counter()
        lap, self._last = (now - self._last) * 1000, now
        return lap
