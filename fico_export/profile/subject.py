"""A bundle under measurement, in a process of its own: asked over a pipe, and ended with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from fico_export import documents, errors
from fico_export.errors import EngineError, FicoError
from fico_export.profile.worker import Job, request

_PACKAGE_PARENT = Path(errors.__file__).parents[1]  # so that it runs this very package


class Subject:
    """Runs a job's bundle: `answer` and `finish`, as `worker.Worker` has them. To be closed, or used in a `with`.

    Raises:
        FicoError: what the bundle, the image or the backend is refused for.
        EngineError: the process ended by itself, such as for lack of memory.
    """

    def __init__(self, job: Job) -> None:
        self._bundle = job.bundle
        command = [sys.executable, "-m", "fico_export.profile.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_PACKAGE_PARENT, text=True, encoding="utf-8"
        )  # fmt: skip
        try:
            self._ask(request(job))
        except BaseException:
            self.close()
            raise

    def answer(self, new_tokens: int) -> dict[str, Any]:
        """Times of one answer of so many tokens."""
        return self._ask(json.dumps(new_tokens))

    def finish(self) -> dict[str, Any]:
        """Peaks of memory, and where the vision graph's time goes. The last request."""
        return self._ask(json.dumps(None))

    def close(self) -> None:
        """End the process, whatever it does: all that was asked of it has come, or is not wanted any more."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Subject:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said before it ended says more
        said = self._process.stdout.readline()
        if not said:
            code = self._process.wait()
            raise EngineError(
                f"the process that ran {self._bundle} ended with {_ending(code)}",
                fix="free memory (the system ends what takes too much), or see what it printed above",
            )
        reply = documents.parse_object(
            said, "the answer of the process that runs the bundle", fix="report it"
        )
        if error := reply.get("error"):
            kind: type[FicoError] = getattr(errors, error["kind"])
            raise kind(error["what"], fix=error["fix"])
        return reply


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
