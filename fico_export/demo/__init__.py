"""The embedded default: a trained model, pictures and questions that need no download."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "model"
"""The trained checkpoint, in LLaVA's ordinary layout."""
