"""transformers draws bars and logs advice while it loads and saves; our own progress says what matters."""

from __future__ import annotations

import logging

from transformers.utils import logging as transformers_logging


def quiet_transformers() -> None:
    """No bars, and errors only."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
