"""How far a builder is, from the phases within phases that TensorRT's IProgressMonitor reports."""

from __future__ import annotations

from collections.abc import Callable


class Phases:
    """Tells `on_progress` the part of the outermost phase that is done, in [0, 1]; it never falls.

    A phase has steps, all taken for equal. One that has begun within another is a part of the step that the other is at.
    TensorRT-RTX 1.7 compiles nearly everything in one step, at which it stands.
    """

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self._on_progress = on_progress
        self._open: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
        self._most = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._open[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> None:
        """A step of a phase, counted from 0, is done."""
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, step + 1)
            self._tell()

    def finish(self, name: str) -> None:
        """A phase is done, whatever steps it did not report."""
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, steps)
            self._tell()
            del self._open[name]

    def _tell(self) -> None:
        outermost = [name for name, (parent, _, _) in self._open.items() if parent not in self._open]
        done = max((self._done(name) for name in outermost), default=0.0)
        if done > self._most:
            self._most = done
            self._on_progress(done)

    def _done(self, name: str) -> float:
        _, steps, taken = self._open[name]
        within = [self._done(child) for child, (parent, _, _) in self._open.items() if parent == name]
        return min(1.0, (taken + max(within, default=0.0)) / steps)
