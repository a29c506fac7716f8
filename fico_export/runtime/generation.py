"""The loop from a prompt to an answer: prefill, decode, stop. The same for every backend."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fico_export.errors import ConfigError, InputError
from fico_export.runtime.backends.base import Cache, require_rows
from fico_export.runtime.images import ImageFeatures
from fico_export.runtime.prompt import Message
from fico_export.runtime.sampling import Sampler, Sampling
from fico_export.runtime.streaming import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from fico_export.runtime.vlm import ImageSource, Vlm

STAGES = ("preprocess", "vision", "embed", "prefill", "decode")


@dataclass
class Answer:
    """An answer and what it took.

    Attributes:
        text: what the model said.
        token_ids: its tokens, with the end-of-sequence token where there was one.
        finish_reason: eos, stop (a stop string), length (max_new_tokens) or context (no room left).
        prompt_tokens: tokens of the whole prompt, visual ones included.
        visual_tokens: of these, those that stand for pictures.
        cached_tokens: of these, those taken from the KV cache of earlier turns.
        stages_ms: time per stage in milliseconds.
        ttft_ms: from the request to the first token: preprocess, vision, embed and prefill.
        tpot_ms: per token after the first; None where there was none.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    visual_tokens: int = 0
    cached_tokens: int = 0
    stages_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    ttft_ms: float = 0.0
    tpot_ms: float | None = None


class Stream:
    """Pieces of text while they come; `answer` is whole when the iteration ends."""

    def __init__(self, pieces: Iterator[str], answer: Answer) -> None:
        self._pieces = pieces
        self.answer = answer

    def __iter__(self) -> Iterator[str]:
        """The pieces, once."""
        return self._pieces


@dataclass(frozen=True)
class _Prompt:
    """A prompt laid out token by token.

    Attributes:
        keys: what each token is: its id, or (picture, which of its tokens). Equal keys have equal cache entries.
        ids: token ids, image tokens expanded.
        positions: position ids.
        next_position: of the first token of the answer.
    """

    keys: list[Hashable]
    ids: list[int]
    positions: list[int]
    next_position: int


@dataclass(frozen=True)
class _Turn:
    """A turn that is ready to run: the conversation up to it, its pictures encoded."""

    messages: list[Message]
    features: list[ImageFeatures]
    prompt: _Prompt


class Conversation:
    """Turns that share a KV cache: each prefills only what the turns before have not.

    Attributes:
        kept: [K] which of the tokens handed over for the picture the decoder kept, where it reduces; None before it did.
    """

    kept: npt.NDArray[np.int64] | None = None

    def __init__(self, vlm: Vlm) -> None:
        self._vlm = vlm
        self._messages: list[Message] = []
        self._features: list[ImageFeatures] = []
        self._cached: list[Hashable] = []
        # Tokens of the cache that only make sense together: those of a prompt reduced in the decoder.
        self._fixed = 0

    @cached_property
    def _cache(self) -> Cache:
        # When it is first needed: pictures come before, and memory may hold the tower alone.
        return self._vlm.decoder.new_cache()

    def ask(
        self,
        prompt: str,
        images: Sequence[ImageSource | ImageFeatures] = (),
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """The next turn, answered at once; arguments as for `Vlm.stream`."""
        stream = self.stream(prompt, images, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        prompt: str,
        images: Sequence[ImageSource | ImageFeatures] = (),
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Stream:
        """The next turn, answered piece by piece; arguments as for `Vlm.stream`.

        Raises:
            InputError: a picture or the prompt cannot be used; the conversation stays as it was.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}", fix="give at least 1")
        answer, clock = Answer(), _Clock()
        given = [
            image if isinstance(image, ImageFeatures) else self._vlm.preprocess(image) for image in images
        ]
        # Laid out with the pictures' sizes alone, so that a prompt too long is refused before the slow part.
        messages = [*self._messages, Message("user", prompt, len(images))]
        self._require_one_picture(len(self._features) + len(images))
        per_image = self._vlm.manifest.reduction.handed_over
        ids = self._vlm.formatter.encode(messages, per_image)
        self._require_room(ids)
        answer.stages_ms["preprocess"] = clock.lap_ms()
        text = (
            {}
            if all(isinstance(picture, ImageFeatures) for picture in given)
            else self._vlm.read_prompt(prompt)
        )
        features = [*self._features, *(self._encode(picture, text) for picture in given)]
        answer.stages_ms["vision"] = clock.lap_ms()

        turn = _Turn(messages, features, self._lay_out(ids, features))
        answer.prompt_tokens = len(ids)
        answer.visual_tokens = per_image * len(features)
        pieces = self._run(
            turn, answer, clock, max_new_tokens, Sampler(sampling or Sampling()), StopStrings(stop)
        )
        return Stream(pieces, answer)

    def restart(self) -> None:
        """Forget all turns, but not what was computed: the next first turn reuses the pictures it shares with the last."""
        self._messages, self._features = [], []

    def _encode(
        self, picture: ImageFeatures | npt.NDArray[np.float32], text: Mapping[str, npt.NDArray[Any]]
    ) -> ImageFeatures:
        if not isinstance(picture, ImageFeatures):
            return self._vlm.encode_pixels(picture, text)
        expected = (self._vlm.manifest.reduction.handed_over, self._vlm.manifest.decoder.hidden_size)
        if picture.features.shape != expected:
            raise InputError(
                f"a picture's features have the shape {picture.features.shape}, this bundle's are {expected}",
                fix="encode the picture with the bundle that is to answer",
            )
        return picture

    def _run(
        self, turn: _Turn, answer: Answer, clock: _Clock, limit: int, sampler: Sampler, stops: StopStrings
    ) -> Iterator[str]:
        vlm, prompt = self._vlm, turn.prompt
        self._messages, self._features = turn.messages, turn.features
        answer.cached_tokens = known = self._reuse(prompt.keys)
        embeds = self._embed(prompt, known)
        answer.stages_ms["embed"] = clock.lap_ms()
        visual = (
            prompt.ids.index(image_id) if (image_id := vlm.manifest.tokens.image_id) in prompt.ids else None
        )
        if vlm.decoder.reduces and visual is not None and known <= visual:
            logits, self._cache, self.kept = vlm.decoder.prefill(embeds, prompt.positions, visual)
            self._fixed = len(prompt.keys)
        else:
            logits = vlm.decoder.append(self._cache, embeds, prompt.positions[known:])
        self._cached = list(prompt.keys)
        token = sampler(logits)
        answer.stages_ms["prefill"] = clock.lap_ms()
        answer.ttft_ms = sum(answer.stages_ms.values())

        position, decode_ms = prompt.next_position, 0.0
        text = StreamDecoder(vlm.formatter.tokenizer)
        try:
            while True:
                answer.token_ids.append(token)
                if token in vlm.manifest.tokens.eos_ids and not sampler.sampling.ignore_eos:
                    answer.finish_reason = "eos"
                    break
                piece, stopped = stops.push(text.push(token))
                answer.text += piece
                if piece:
                    yield piece
                if stopped or len(answer.token_ids) >= limit or not self._has_room(position):
                    room = "length" if len(answer.token_ids) >= limit else "context"
                    answer.finish_reason = "stop" if stopped else room
                    break
                clock.lap_ms()  # what the reader did with the piece is not the model's time
                logits = vlm.decoder.append(self._cache, vlm.embed([token]), [position])
                self._cached.append(token)
                token = sampler(logits)
                position += 1
                decode_ms += clock.lap_ms()
            if answer.finish_reason != "stop":
                piece, stopped = stops.push(text.flush())
                piece += stops.flush()
                answer.finish_reason = "stop" if stopped else answer.finish_reason
                answer.text += piece
                if piece:
                    yield piece
        finally:
            answer.stages_ms["decode"] = decode_ms
            if len(answer.token_ids) > 1:
                answer.tpot_ms = decode_ms / (len(answer.token_ids) - 1)
            self._messages.append(Message("assistant", answer.text))

    def _lay_out(self, ids: list[int], features: Sequence[ImageFeatures]) -> _Prompt:
        """Keys and position ids: compact counts the tokens; original gives a picture all N positions it had."""
        reduction = self._vlm.manifest.reduction
        image_id = self._vlm.manifest.tokens.image_id
        keys: list[Hashable] = []
        positions: list[int] = []
        position = at = picture = 0
        while at < len(ids):
            if ids[at] != image_id:
                keys.append(ids[at])
                positions.append(position)
                position, at = position + 1, at + 1
                continue
            shown = features[picture]
            original = reduction.positions == "original"
            offsets = shown.keep_index.tolist() if original else range(reduction.handed_over)
            keys += [(shown.digest, i) for i in range(reduction.handed_over)]
            positions += [position + offset for offset in offsets]
            position += reduction.visual_tokens if original else reduction.handed_over
            at, picture = at + reduction.handed_over, picture + 1
        return _Prompt(keys, ids, positions, position)

    def _embed(self, prompt: _Prompt, start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """Embeddings [S, C] of the prompt from token `start` on, pictures in their places."""
        image_id = self._vlm.manifest.tokens.image_id
        ids = np.asarray(prompt.ids)
        visual = ids == image_id
        embeds = self._vlm.embed(np.where(visual, 0, ids)[start:].tolist())
        rows = np.flatnonzero(visual)
        if rows.size:
            features = np.concatenate([f.features for f in self._features])
            embeds[rows[rows >= start] - start] = features[rows >= start]
        return embeds

    def _reuse(self, keys: list[Hashable]) -> int:
        """Cut the cache to what it shares with a new prompt; at least one token is left to run."""
        shared = 0
        while shared < min(len(keys) - 1, len(self._cached)) and keys[shared] == self._cached[shared]:
            shared += 1
        pictured = any(isinstance(key, tuple) for key in keys[shared:])
        if self._vlm.decoder.reduces and (shared < self._fixed or pictured):
            # What the decoder kept of a picture depends on the whole prompt, and it reduces into an empty cache only.
            shared = self._fixed = 0
            self._cache = self._vlm.decoder.new_cache()
        else:
            self._cache.drop_last(len(self._cached) - shared)
        del self._cached[shared:]
        return shared

    def _require_one_picture(self, count: int) -> None:
        if self._vlm.manifest.reduction.in_decoder and count > 1:
            raise InputError(
                f"{count} pictures in a conversation; this bundle reduces inside the decoder, which takes one",
                fix="start a new conversation, or export with a method that acts before the decoder",
            )

    def _require_room(self, ids: list[int]) -> None:
        reduction, context = self._vlm.manifest.reduction, self._vlm.manifest.decoder.context
        pictures = ids.count(self._vlm.manifest.tokens.image_id) // reduction.handed_over
        spread = reduction.visual_tokens - reduction.handed_over if reduction.positions == "original" else 0
        needed = len(ids) + pictures * spread
        rows = self._vlm.manifest.cache_rows
        if rows is not None:
            require_rows(0, len(ids), rows)
        if needed >= context:
            raise InputError(
                f"the prompt takes {needed} positions, {reduction.handed_over} tokens a picture; the model has {context}",
                fix="shorten the prompt, give fewer pictures, or export with a smaller --keep",
            )

    def _has_room(self, position: int) -> bool:
        rows = self._vlm.manifest.cache_rows
        full = rows is not None and max(self._cache.lengths) >= rows
        return position < self._vlm.manifest.decoder.context and not full


class _Clock:
    """Milliseconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        now = time.perf_counter()
        lap, self._last = (now - self._last) * 1000, now
        return lap
