"""How far a builder is, from the phases within phases that TensorRT's IProgressMonitor reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Phase:
    parent: str | None
    steps: int
    taken: int = 0


class Phases:
    """Tells `on_progress` the part of the outermost phase that is done, in [0, 1]; it never falls.

    A phase has steps, all taken for equal. One that has begun within another is a part of the step that the other is at.
    TensorRT-RTX 1.7 compiles nearly everything in one step, at which it stands.
    """

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self._on_progress = on_progress
        self._outermost: str | None = None
        self._open: dict[str, _Phase] = {}
        self._most = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._outermost = self._outermost or name
        self._open[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> None:
        """A step of a phase, counted from 0, is done; so is what was within it, whatever that did not report."""
        if name in self._open:
            self._open[name].taken = step + 1
            self._open = {n: phase for n, phase in self._open.items() if phase.parent != name}
            self._tell()

    def finish(self, name: str) -> None:
        """A phase is done, whatever steps it did not report."""
        if name in self._open:
            self._open[name].taken = self._open[name].steps
            self._tell()
            del self._open[name]

    def _tell(self) -> None:
        done = self._done(self._outermost) if self._outermost in self._open else 0.0
        if done > self._most:
            self._most = done
            self._on_progress(done)

    def _done(self, name: str | None) -> float:
        phase = self._open[name or ""]
        within = [self._done(child) for child, other in self._open.items() if other.parent == name]
        return min(1.0, (phase.taken + max(within, default=0.0)) / phase.steps)
