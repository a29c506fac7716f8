"""Draws progress on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fico_export.cli import stop
from fico_export.cli.output import (
    complain,
    detail,
    print_json,
    put,
    say,
    settings,
    visible,
    write,
)

__all__ = [
    "StageProgress",
    "complain",
    "console",
    "human_bytes",
    "print_json",
    "put",
    "say",
    "visible",
    "write",
]


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console of rich that takes text as it is: no markup, no emoji codes, no colours for numbers."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def human_bytes(count: int) -> str:
    """Such as 1.2 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


class _Done(ProgressColumn):
    """How much of a step is done: bytes of bytes, or per cent of its parts."""

    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        """For one step."""
        return self._bytes.render(task) if task.fields["in_bytes"] else Text(f"{task.percentage:.0f} %")


class StageProgress:
    """One line per step with its time and size, and a bar under way where the size is known."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            _Done(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # or results would go to stderr, where the bar is
            disable=settings.quiet or not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._title, self._began = "", 0.0
        self._total: int | None = None

    def __enter__(self) -> StageProgress:
        """Start drawing."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last step, unless it failed."""
        if kind is None:
            self._finish()
        self._bar.stop()

    def stage(self, title: str, total_bytes: int | None = None, *, parts: int | None = None) -> None:
        """A step begins, and the one before it is done."""
        stop.check()
        self._finish()
        title = visible(title)
        self._title, self._total, self._began = title, total_bytes, time.perf_counter()
        detail(f"  {title} …")
        self._task = self._bar.add_task(title, total=parts or total_bytes, in_bytes=parts is None)

    def advance(self, done: int) -> None:
        """So many more bytes or parts of the step are done."""
        stop.check()
        if self._task is not None:
            self._bar.advance(self._task, done)

    def warn(self, text: str) -> None:
        """Something the user should know."""
        self._console.print(f"warning: {visible(text)}", style="yellow", soft_wrap=True)

    def _finish(self) -> None:
        if not self._title:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        size = f"  {human_bytes(self._total)}" if self._total is not None else ""
        if not settings.quiet:
            self._console.print(
                f"  {self._title:<30}{time.perf_counter() - self._began:7.1f} s{size}", soft_wrap=True
            )
        self._title, self._task = "", None
