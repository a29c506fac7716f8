"""How long work reports itself: library code calls this, the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the steps of a long job."""

    def stage(self, title: str, total_bytes: int | None = None, *, parts: int | None = None) -> None:
        """A step begins, and the one before it is done; `total_bytes` or `parts` when its size is known in them."""

    def advance(self, done: int) -> None:
        """So many more bytes or parts of the step are done."""

    def warn(self, text: str) -> None:
        """Something the user should know, that does not stop the job."""


class Silent:
    """Reports nothing."""

    def stage(self, title: str, total_bytes: int | None = None, *, parts: int | None = None) -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""
