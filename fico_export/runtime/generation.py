"""Conversations, and the loop from a prompt to an answer: prefill, decode, stop. The same for every backend."""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fico_export.errors import ConfigError, InputError
from fico_export.runtime.answer import STAGES, Answer, Stream, Wish
from fico_export.runtime.images import ImageFeatures, Images, ImageSource, Pixels, Range, image_list
from fico_export.runtime.layout import LaidOut, require_room
from fico_export.runtime.layouts.base import NONE
from fico_export.runtime.prefix import Prefix, Rows
from fico_export.runtime.prompt import Message
from fico_export.runtime.sampling import Sampler, Sampling
from fico_export.runtime.streaming import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from fico_export.runtime.vlm import Vlm

__all__ = ["STAGES", "Answer", "Conversation", "Stream"]


@dataclass(frozen=True)
class _History:
    """What was said and shown: replaced as a whole, so that no half of a turn is ever in it."""

    messages: list[Message] = field(default_factory=list)
    features: list[ImageFeatures] = field(default_factory=list)
    # Keys of the prompt that was reduced in the decoder: what was kept of its picture holds for all turns after it.
    reduced: list[Hashable] = field(default_factory=list)


@dataclass(frozen=True)
class _Turn:
    """A turn that is ready to run: the conversation up to its question, the pictures encoded.

    Attributes:
        together: how many of the prompt's first tokens are reduced together in the decoder.
        sampler: chooses the tokens of the answer.
    """

    asked: _History
    prompt: LaidOut
    together: int
    sampler: Sampler


class Conversation:
    """Turns that share a KV cache: each prefills only what the turns before have not.

    A turn enters the history when its answer is whole: what fails, is refused, interrupted or left early leaves the history as
    it was, and the next turn answers as if it had never been. One answer is made at a time: a stream that is open must be read
    to its end, stopped or closed before the next turn; `ask` from several threads queues.

    Args:
        vlm: the bundle that answers.
        system: a system message before all turns.

    Attributes:
        kept: [K] which of the tokens handed over for the picture the decoder kept, where it reduces; None before it did.

    Raises:
        ConfigError: the bundle's chat template takes no system message.
    """

    kept: npt.NDArray[np.int64] | None = None

    def __init__(self, vlm: Vlm, system: str | None = None) -> None:
        self._vlm = vlm
        self._start = _History() if system is None else _History([Message("system", system)])
        if system is not None:
            vlm.formatter.require_system(system)
        self._history = self._start
        self._prefix = Prefix(vlm)
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
        with self._vlm.owned():
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
            InputError: a picture or the prompt cannot be used; the conversation stays as it was.
            ConfigError: another answer of this conversation is under way, or it was closed.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}", fix="give at least 1")
        stops = StopStrings(stop)
        with self._claimed():
            answer, clock, wish = Answer(), _Clock(), Wish()
            turn = self._prepare(prompt, image_list(images, image_range), sampling, answer, clock)
            stops = stops if stop else StopStrings(turn.sampler.stops)
            limit = max_new_tokens or turn.sampler.new_tokens
            pieces = self._run(turn, answer, clock, limit, stops, wish)
            stream = Stream(pieces, answer, wish)
            self._open = weakref.ref(stream)
        return stream

    def restart(self) -> None:
        """Forget all turns, but not what was computed: the next first turn reuses the pictures it shares with the last.

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
        with self._vlm.lock:
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
        with self._vlm.owned():
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

    def _prepare(
        self,
        prompt: str,
        shown: Sequence[ImageSource | ImageFeatures],
        sampling: Sampling | None,
        answer: Answer,
        clock: _Clock,
    ) -> _Turn:
        given = [
            image if isinstance(image, ImageFeatures) else self._vlm.preprocess(image) for image in shown
        ]
        # Laid out with the pictures' sizes alone, so that a prompt too long is refused before the slow part.
        history, vlm = self._history, self._vlm
        messages = [*history.messages, Message("user", prompt, len(given))]
        self._require_one_picture(len(history.features) + len(given))
        sizes = [image.size for image in (*history.features, *given)]
        ids = vlm.formatter.encode(messages)
        answer.prompt_tokens = require_room(vlm.manifest, vlm.layout, ids, sizes)
        sampler = vlm.sampler(sampling, ids, sizes)
        answer.stages_ms["preprocess"] = clock.lap_ms()
        encoded = all(isinstance(image, ImageFeatures) for image in given)
        text = {} if encoded else vlm.read_prompt(prompt)
        features = [*history.features, *(self._encode(image, text) for image in given)]
        answer.stages_ms["vision"] = clock.lap_ms()

        answer.visual_tokens = sum(len(image.features) for image in features)
        laid_out = vlm.layout.lay_out(ids, features)
        together = self._together(laid_out.keys)
        return _Turn(_History(messages, features, laid_out.keys[:together]), laid_out, together, sampler)

    def _together(self, keys: list[Hashable]) -> int:
        """How many of a prompt's first tokens are reduced together: as many as in the turn before it that did so, if any."""
        if not (self._vlm.manifest.reduction.in_decoder and any(isinstance(key, tuple) for key in keys)):
            return 0
        before = self._history.reduced
        return len(before) if before and keys[: len(before)] == before else len(keys)

    def _encode(self, image: ImageFeatures | Pixels, text: Mapping[str, npt.NDArray[Any]]) -> ImageFeatures:
        if isinstance(image, Pixels):
            return self._vlm.encode_pixels(image, text)
        manifest = self._vlm.manifest
        expected = [(profile.handed_over, manifest.decoder.hidden_size) for profile in manifest.profiles]
        if image.features.shape not in expected:
            raise InputError(
                f"a picture's features have the shape {image.features.shape}, this bundle's are {expected[0]}",
                fix="encode the picture with the bundle that is to answer",
            )
        return image

    def _run(
        self,
        turn: _Turn,
        answer: Answer,
        clock: _Clock,
        limit: int,
        stops: StopStrings,
        wish: Wish,
    ) -> Generator[str]:
        vlm, sampler = self._vlm, turn.sampler
        if wish.stop or wish.leave:
            answer.finish_reason = "stopped" if wish.stop else ""
            return
        token, position = sampler(self._prefill(turn, answer, clock)), turn.prompt.next_position
        answer.stages_ms["prefill"] = clock.lap_ms()
        answer.ttft_ms = sum(answer.stages_ms.values())
        text = StreamDecoder(vlm.formatter.tokenizer)
        while not wish.leave:
            if wish.stop:
                self._enter(turn, answer, "stopped")
                return
            answer.token_ids.append(token)
            piece = ""
            if token in vlm.manifest.tokens.eos_ids and not sampler.sampling.ignore_eos:
                reason = "eos"
            else:
                piece, stopped = stops.push(text.push(token))
                reason = "stop" if stopped else self._limit_reached(answer, limit, position)
            if reason and reason != "stop":
                rest, stopped = stops.push(text.flush())
                piece, reason = piece + rest + stops.flush(), "stop" if stopped else reason
            answer.text += piece
            if reason:  # before the piece is shown: whoever leaves after the last one has had the whole
                self._enter(turn, answer, reason)
            if piece:
                yield piece
            if reason:
                return
            if wish.stop:
                continue
            clock.lap_ms()  # what the reader did with the piece is not the model's time
            where = np.full((vlm.layout.axes, 1), position)
            logits = self._prefix.extend([token], Rows(vlm.embed([token]), where))
            token = sampler(logits)
            position += 1
            answer.stages_ms["decode"] += clock.lap_ms()
            answer.tpot_ms = answer.stages_ms["decode"] / len(answer.token_ids)

    def _prefill(self, turn: _Turn, answer: Answer, clock: _Clock) -> npt.NDArray[np.float32]:
        """Logits [V] after the prompt, of which the cache may hold a beginning."""
        self._require_open()
        prompt, together = turn.prompt, turn.together
        answer.cached_tokens = known = self._prefix.share(prompt.keys, together)
        rows = self._rows(prompt, turn.asked.features, known)
        answer.stages_ms["embed"] = clock.lap_ms()
        if known < together:
            start = int(np.argmax(prompt.visual != NONE))
            logits, self.kept = self._prefix.begin(prompt.keys[:together], rows.part(0, together), start)
            if together == len(prompt.keys):
                return logits
            known, rows = together, rows.part(together)
        return self._prefix.extend(prompt.keys[known:], rows)

    def _enter(self, turn: _Turn, answer: Answer, reason: str) -> None:
        """The answer is whole: the turn is part of the history, unless it was stopped before a word was said."""
        answer.finish_reason = reason
        if reason != "stopped" or answer.text:
            messages = [*turn.asked.messages, Message("assistant", answer.text)]
            self._history = replace(turn.asked, messages=messages)

    def _limit_reached(self, answer: Answer, limit: int, position: int) -> str:
        """Which of the limits ends an answer here; empty where it may go on."""
        if len(answer.token_ids) >= limit:
            return "length"
        return "" if self._has_room(position) else "context"

    def _rows(self, prompt: LaidOut, shown: Sequence[ImageFeatures], start: int) -> Rows:
        """The prompt from token `start` on as the decoder takes it, pictures in their places."""
        visual = prompt.visual[start:]
        embeds = self._vlm.embed(np.where(visual == NONE, prompt.ids[start:], 0).tolist())
        rows, planes = np.flatnonzero(visual != NONE), None
        if rows.size:
            embeds[rows] = np.concatenate([image.features for image in shown])[visual[rows]]
            added = [image.planes for image in shown if image.planes is not None]
            if added:
                planes = np.zeros((len(added[0]), *embeds.shape), embeds.dtype)
                planes[:, rows] = np.concatenate(added, axis=1)[:, visual[rows]]
        return Rows(embeds, prompt.positions[:, start:], planes)

    def _require_one_picture(self, count: int) -> None:
        if self._vlm.manifest.reduction.in_decoder and count > 1:
            raise InputError(
                f"{count} pictures in a conversation; this bundle reduces inside the decoder, which takes one",
                fix="start a new conversation, or export with a method that acts before the decoder",
            )

    def _has_room(self, position: int) -> bool:
        rows = self._vlm.manifest.cache_rows
        full = rows is not None and max(self._prefix.lengths) >= rows
        return position < self._vlm.manifest.decoder.context and not full


class _Clock:
    """Milliseconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        now = time.perf_counter()
        lap, self._last = (now - self._last) * 1000, now
        return lap
