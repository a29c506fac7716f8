"""Every error this package raises on purpose.

    FicoError                 exit 1
    ├── ConfigError           exit 2: the request was wrong; nothing was written
    │   ├── CheckpointError   the model's files cannot be used
    │   ├── BundleError       the bundle is missing, damaged, or from another version
    │   ├── InputError        the image or the prompt cannot be used
    │   ├── LogError          a log of another tool cannot be read
    │   └── DiskError         the disk has no room for what was asked
    ├── ExportError           torch → ONNX failed, or broke a rule of the graph
    ├── BuildError            a graph could not be made an engine
    ├── EngineError           a graph could not be loaded or run
    ├── ParityError           a graph does not compute what the checkpoint computes
    └── DeployError           another machine cannot be reached, or does not do what it was told

The fix is a required argument: an error that does not say what to do cannot be written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FicoError(Exception):
    """What went wrong, and the flag, value or command that fixes it.

    Args:
        what: the offending value, its name, and what was expected.
        fix: what to do about it, as a flag, a value or a command.
    """

    exit_code = 1

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(f"{what}\n{fix}")
        self.what = what
        self.fix = fix


class ConfigError(FicoError):
    """The request was wrong."""

    exit_code = 2


class CheckpointError(ConfigError):
    """The model's files cannot be used."""


class BundleError(ConfigError):
    """The bundle is missing, damaged, or from another version."""


class InputError(ConfigError):
    """The image or the prompt cannot be used."""


class LogError(ConfigError):
    """A log of another tool cannot be read."""


class DiskError(ConfigError):
    """The disk has no room for what was asked."""


class ExportError(FicoError):
    """torch → ONNX failed, or broke a rule of the graph."""


class BuildError(FicoError):
    """A graph could not be made an engine."""


class EngineError(FicoError):
    """A graph could not be loaded or run."""


class ParityError(FicoError):
    """A graph does not compute what the checkpoint computes."""


class DeployError(FicoError):
    """Another machine cannot be reached, or does not do what it was told."""


class ImageWarning(UserWarning):
    """What was decided about an image for want of better knowledge."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """A ConfigError for a name that is not in a catalogue: lists the known ones, suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"unknown {kind} {name!r}", fix=f"{hint}known: {', '.join(names)}")
