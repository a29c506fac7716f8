"""How long work reports itself: library code calls this, the command line draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the steps of a long job."""

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        """A step begins, and the one before it is done; `total_bytes` when its size is known."""

    def advance(self, done_bytes: int) -> None:
        """So many more bytes of the step are done."""

    def warn(self, text: str) -> None:
        """Something the user should know, that does not stop the job."""


class Silent:
    """Reports nothing."""

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        """Nothing."""

    def advance(self, done_bytes: int) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""
