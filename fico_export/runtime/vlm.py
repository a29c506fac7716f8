"""A loaded bundle that answers: at once, piece by piece, and in conversations."""

from __future__ import annotations

from collections.abc import Sequence

from fico_export.runtime.answer import Answer, Stream
from fico_export.runtime.conversation import Conversation
from fico_export.runtime.inputs.images import Images, Range
from fico_export.runtime.open_bundle import OpenBundle
from fico_export.runtime.sampling import Sampling


class Vlm(OpenBundle):
    """A bundle ready to answer, from any number of threads: one runs the model, the others wait for their turn.

    Two streams take turns token by token; `generate` and `Conversation.ask` run to the end of the answer. With `low_memory`,
    streams of several threads load the graphs anew at every change between tower and decoder: ask there, or stream one by one.

    Args, attributes and errors as of `OpenBundle`.
    """

    def chat(self, system: str | None = None) -> Conversation:
        """A conversation whose turns reuse the KV cache of the turns before.

        Args:
            system: a system message before all turns.

        Raises:
            ConfigError: the bundle's chat template takes no system message.
        """
        return Conversation(self, system)

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
        """Answer piece by piece: iterate over the text; `.answer` holds the whole when it ends.

        Args:
            prompt: the question.
            images: the image or images it is about, shown before it, or a `Video`; or what `encode_image` made of them.
            max_new_tokens: at most so many tokens; by default what the bundle's generation_config.json says, or 256.
            sampling: how tokens are chosen; what it leaves open is what the bundle's generation_config.json says.
            stop: strings that end the answer; by default those of the bundle's generation_config.json.
            image_range: of grey images of more than 8 bits, the values that become black and white; each image's own by default.

        Raises:
            InputError: an image or the prompt cannot be used.
        """
        return self.chat().stream(
            prompt,
            images,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            image_range=image_range,
        )

    def generate(
        self,
        prompt: str,
        images: Images = (),
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        image_range: Range | None = None,
    ) -> Answer:
        """Answer at once; arguments as for `stream`."""
        return self.chat().ask(
            prompt,
            images,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            image_range=image_range,
        )
