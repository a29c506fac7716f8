"""Protocols under which several methods were measured alike; figures of different ones do not compare.

All of LLaVA-1.5-7B: per cent of its own mean with 576 visual tokens.
"""

NINE = "9 benchmarks, arXiv 2510.02912"
EIGHT = "8 benchmarks, arXiv 2606.27161"
ELEVEN = "11 benchmarks by lmms-eval, arXiv 2608.30263"

# Of LLaVA-NeXT-7B: per cent of its own mean with all 2880 visual tokens, every image resized to 672×672.
EIGHT_IN_TILES = "8 benchmarks, TOPS"
NINE_IN_TILES = "9 benchmarks, EADP (ECCV 2026)"
