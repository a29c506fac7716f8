"""A step of one sequence, for tests of decoders."""

import numpy as np

from fico_export.runtime.backends.base import Step


def append(decoder, cache, embeds, positions):
    """Logits [V] after new tokens [S, C] at positions [S], by which the cache grows."""
    (logits,) = decoder.step([Step(cache, embeds, np.asarray([positions]))])
    return logits
